"""Kernels compiled by numba and cached between runs, where a folder for that is writable."""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Compiles a kernel that holds no lock; cached on disk where a folder is writable."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable folder for the compiled code
        return numba.njit(nogil=True)(function)
