"""Work on several cores by threads, for what holds no lock of Python's (compiled kernels, zlib)."""

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_SPANS_PER_THREAD = 4
# Options of glibc's mallopt, and what they are set to by `keep_freed_memory`.
_ONE_HEAP, _NEVER_MAP, _NEVER_TRIM = (-8, 1), (-4, 0), (-1, -1)

T = TypeVar("T")
_END = object()


def compiled(function: Callable) -> Callable:
    """Compiles a kernel that holds no lock; cached on disk where a folder is writable."""
    # Half a second to import, for those who only count cores.
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable folder for the compiled code
        return numba.njit(nogil=True)(function)


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def keep_freed_memory() -> None:
    """Makes glibc keep memory that is freed, for what is asked next; to be called before imports.

    By default it gives large arrays back to the system, which clears their pages one by one when it
    hands them out again: a sixth of a training step on a CPU. Only one heap can keep arrays of any
    size, so all threads share it, also those that libraries start as they are imported. Left alone
    is what the user set by MALLOC_... or GLIBC_TUNABLES, and any other C library.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if chosen or sys.platform != "linux":
        return
    import ctypes

    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    for option, value in (_ONE_HEAP, _NEVER_MAP, _NEVER_TRIM):
        library.mallopt(option, value)


def spans(count: int, threads: int | None = None, smallest: int = 1) -> list[tuple[int, int]]:
    """Cuts 0 .. count into spans (first, end), several per thread so that none waits long.

    One span where one thread is enough; threads are as many as cores if None.
    """
    threads = cores() if threads is None else threads
    size = count if threads == 1 else max(smallest, -(-count // (threads * _SPANS_PER_THREAD)))
    return [(first, min(first + size, count)) for first in range(0, count, max(size, 1))]


def for_each(
    work: Callable[[int, int], object], parts: list[tuple[int, int]], threads: int | None = None
) -> None:
    """Calls `work` on the (first, end) of every span, in up to `threads` threads (cores if None).

    Raises what `work` raised for the first span on which it failed.
    """
    threads = min(cores() if threads is None else threads, len(parts))
    if threads <= 1:
        for part in parts:
            work(*part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda part: work(*part), parts):
            pass


def prefetch(items: Generator[T]) -> Iterator[T]:
    """Returns the items of a generator, the next of which is being made meanwhile, from now on.

    One item is ahead at a time, so that memory holds two. An error comes where the item would have.
    This gains where making items leaves Python free to go on, as HDF5 and zlib do.
    """
    thread = ThreadPoolExecutor(1)
    return _prefetched(items, thread, thread.submit(next, items, _END))


def _prefetched(items: Generator[T], thread: ThreadPoolExecutor, coming: Future[T]) -> Iterator[T]:
    with contextlib.closing(items), thread:
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield item
            del item
