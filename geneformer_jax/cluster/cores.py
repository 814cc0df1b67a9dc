"""Cores of a worker: as many as it was given, and none that another worker has."""

import contextlib
import os
import socket

from geneformer_jax.cluster.names import take_name

# Of the cores of a machine, for all workers on it, whatever they work on.
NAME = "geneformer_jax-core"
# What was taken is this process's until it ends, however it ends.
_TAKEN: list[socket.socket] = []


def take_cores(count: int) -> None:
    """Keeps this process, and threads begun from now on, to `count` cores that nobody took yet.

    Left as they are where fewer are free. Every library that counts cores then counts these.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if _TAKEN or count >= len(allowed):
        return
    free = ((core, name) for core in allowed if (name := _take(core)))
    taken = dict(pair for pair, _ in zip(free, range(count), strict=False))
    if len(taken) == count:
        os.sched_setaffinity(0, taken)
        _TAKEN.extend(taken.values())


def _take(core: int) -> socket.socket | None:
    """Takes a core, if no process of this machine has it."""
    with contextlib.suppress(OSError):
        return take_name(f"{NAME}-{core}")
    return None
