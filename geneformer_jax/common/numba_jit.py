"""Kernels compiled by numba, and kept compiled between runs where a folder for that is there."""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Compiles a kernel that holds no lock; kept on disk where a place for that is writable."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable folder for the compiled code
        return numba.njit(nogil=True)(function)
