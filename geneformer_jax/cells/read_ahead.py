"""Reading the next cells while the last ones are worked on."""

import contextlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def read_ahead(items: Generator[T]) -> Iterator[T]:
    """Yields the items of a generator, the next of which is being made meanwhile.

    One item is ahead at a time, so that memory holds two. An error comes where the item would have.
    This gains where making items leaves Python free to go on, as HDF5 and zlib do.
    """
    with contextlib.closing(items), ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield item
            del item
