"""The processes of one run: how they meet, and what all take from the first of them.

Only the first process writes and speaks. What it decides by what lies on the disk, or by numbers
that another machine may round differently, all others take from it: they would wait for each other
for ever if they went different ways.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import hide_log

# Seconds that the others wait for the first process at their end, which may have a report to make.
_LONGEST_WAIT = 7 * 24 * 3_600


def join_processes(processes: int, process: int, coordinator: str) -> None:
    """Joins the processes of a run; to be called before JAX computes anything.

    Args:
      processes: their number; 0 takes what Slurm or the TPU slice states.
      process: which of them this is, from 0; only the first logs what it does.
      coordinator: HOST:PORT of process 0, where all meet.

    Raises:
      InputError: there is no such process, or it is not told where to meet.
    """
    if processes == 0:
        jax.distributed.initialize(shutdown_timeout_seconds=_LONGEST_WAIT)
    elif processes > 1:
        if not coordinator:
            raise InputError(
                f"`processes` is {processes}, but `coordinator` is missing: give HOST:PORT of "
                "process 0"
            )
        if not 0 <= process < processes:
            raise InputError(f"`process` is {process}, but must be 0 to {processes - 1}")
        jax.distributed.initialize(
            coordinator, processes, process, shutdown_timeout_seconds=_LONGEST_WAIT
        )
    if not is_first():
        hide_log()


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def of_first(values: Any) -> np.ndarray:
    """Returns the array, of the same shape and type everywhere, that the first process gives."""
    values = np.ascontiguousarray(values)
    if jax.process_count() == 1:
        return values
    # As bytes: JAX would round float64.
    taken = multihost_utils.broadcast_one_to_all(np.frombuffer(values.tobytes(), np.uint8))
    return np.frombuffer(np.asarray(taken).tobytes(), values.dtype).reshape(values.shape)


def by_first(action: Callable[[], object]) -> None:
    """Does something in the first process, for which all others wait."""
    if is_first():
        action()
    wait_for_all()


def wait_for_all() -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("geneformer_jax")


def whole_on_host(tree: Any) -> Any:
    """Returns the arrays of a tree whole and on the host, whatever processes hold parts of them."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_whole, tree)


def put_whole(tree: Any, shardings: Any) -> Any:
    """Places arrays that each process has whole, alike, on the devices of all."""
    if jax.process_count() > 1:
        tree = jax.tree.map(np.asarray, tree)
    return jax.device_put(tree, shardings)


def _whole(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)
