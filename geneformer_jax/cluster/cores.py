"""Cores of a worker: as many as it was given, and none that another worker has."""

import os
import socket

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
    """Takes a name that the kernel gives to one process of a machine, and frees as it ends."""
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(f"\0{NAME}-{core}")
    except OSError:
        name.close()
        return None
    return name
