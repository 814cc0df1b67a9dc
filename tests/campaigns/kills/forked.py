"""A cluster command whose workers are forked, in place of Ray's: a life takes a second, not many.

All else is as with Ray: the driver, what it hands out, the workers' steps, what it does about those
that are lost. Workers of a killed driver go on with what they are at, and then see that it is gone.
"""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from geneformer_jax.cluster import api
from geneformer_jax.cluster.messages import Answer, Command, Share, Step
from geneformer_jax.cluster.worker import perform
from geneformer_jax.cluster.workers import WorkerSize
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import show_log

_LOST = Answer(failed="its worker was killed")


class ForkedPool:
    """A `handing_out.Pool` of processes that are forked from this one."""

    def __init__(self, ray: Any, command: Command, size: WorkerSize):
        self._command, self._size = command, size
        self._numbers = itertools.count()
        self._free: list[Connection] = []
        self._running: dict[Connection, int] = {}
        for _ in range(size.count):
            self._start()

    def _start(self) -> None:
        ours, its = Pipe()
        if os.fork() == 0:
            _keep_only(its.fileno())
            _work(its)
        its.close()
        self._free.append(ours)

    def has_room(self) -> bool:
        """Whether a worker is free."""
        return bool(self._free)

    def submit(self, step: Step, *given: Share) -> int:
        """Gives a step to a free worker; returns a number for it."""
        number, worker = next(self._numbers), self._free.pop()
        # One that was killed is found to be lost.
        with contextlib.suppress(BrokenPipeError):
            worker.send((self._command, step, *given))
        self._running[worker] = number
        return number

    def wait(self) -> list[tuple[int, Answer]]:
        """Returns the number and answer of the step that is done first."""
        worker = wait(list(self._running))[0]
        number = self._running.pop(worker)
        try:
            answer = worker.recv()
        except (EOFError, ConnectionResetError):
            worker.close()
            self._start()
            return [(number, _LOST)]
        self._free.append(worker)
        return [(number, answer)]

    def close(self) -> None:
        """Lets workers see that there is no more to do."""
        for worker in (*self._free, *self._running):
            worker.close()


def _keep_only(kept: int) -> None:
    """Closes files of the driver, as a process does that is begun by a program of its own."""
    for each in map(int, os.listdir("/proc/self/fd")):
        if each > 2 and each != kept:
            with contextlib.suppress(OSError):
                os.close(each)


def _work(driver: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            driver.send(perform(*driver.recv()))
    os._exit(0)


def drive(command: Sequence[str], shares: int, workers: int, folder: Path, log: Path) -> None:
    """Runs a cluster command in this process, as the leader of a session of its own."""
    os.setsid()
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    patch = pytest.MonkeyPatch()
    patch.setattr(api, "connected", _connected)
    patch.setattr(api, "size_workers", lambda *_: WorkerSize(workers, 1, 0))
    patch.setattr(api, "TaskPool", ForkedPool)
    patch.setattr(api, "ActorPool", ForkedPool)
    show_log()
    try:
        api.run(list(command), shares=shares, workers=workers)
    except InputError as error:
        print(f"error: {error}", flush=True)
        sys.exit(1)


@contextlib.contextmanager
def _connected(*_: Any) -> Iterator[SimpleNamespace]:
    yield SimpleNamespace(__version__="of none")
