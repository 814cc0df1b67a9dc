"""Work on several cores by threads, for what holds no lock of Python's (compiled kernels, zlib)."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def for_each(work: Callable[[T], object], items: Iterable[T], threads: int | None = None) -> None:
    """Calls `work` on every item, in up to `threads` threads (all cores if None).

    Raises what `work` raised for the first item on which it failed.
    """
    items = list(items)
    threads = min(threads or cores(), len(items))
    if threads <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, items):
            pass
