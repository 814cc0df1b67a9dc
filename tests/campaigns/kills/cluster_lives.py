"""Lives of cluster commands, with Ray or with workers that are forked, as seen from outside."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

from tests.campaigns.kills.commands import PROJECT
from tests.campaigns.kills.forked import drive
from tests.helpers.processes import BEGUN_IN, begun_in, of_session, title

DRIVER, EVERYTHING, WORKER = "driver", "everything", "worker"
# What Ray, which waits for 30 seconds, brings about where others have the processors.
NOT_BEGUN = "Ray does not begin"
# Of a command that others leave little of the processors; and of what a dead one has left alive.
_PATIENCE, SECONDS_TO_END = 1_800, 30
_SECONDS_BETWEEN_COUNTS = 0.25
# How Ray calls its workers, and those that do a step.
_WORKERS, _AT_WORK = ("ray::perform", "ray::Keeper", "ray::IDLE"), ("ray::perform", "ray::Keeper.")
# These write nothing of ours, and see only after a minute that their Ray was killed.
_AGENTS = "ray::DashboardAgent", "ray::RuntimeEnvAgent"
_AT_ONCE = 2


class Life(ABC):
    """A cluster command, and all that it began.

    Attributes:
      driver: number of its process.
      began: when, in seconds of the monotonic clock.
      died: when the driver was killed, 0 if it was not.
      is_at_work: whether it has changed names of the output.
      outlived: seconds after its death at which something that it began was last seen alive.
    """

    driver: int

    def __init__(self, log: Path):
        """Takes the file that gets what it prints."""
        self._log = log
        self.began, self.died, self.outlived = time.monotonic(), 0.0, 0.0
        self.is_at_work = self._is_gone = False
        self._names: Sequence[str] | None = None

    @abstractmethod
    def alive(self) -> list[int]:
        """Processes that may write, among them the driver."""

    @abstractmethod
    def _workers(self) -> list[int]:
        """Those of them that may be killed as workers."""

    @abstractmethod
    def status(self, seconds: float = 0) -> int | None:
        """Waits for the driver's end; returns its exit status, None if it has not come."""

    def kill(self, target: str, draw: random.Random) -> bool:
        """Kills; returns whether there was anybody to be killed."""
        if target == WORKER:
            if workers := self._workers():
                _kill(draw.choice(workers))
            return bool(workers)
        self.died = time.monotonic()
        if target == DRIVER:
            _kill(self.driver)
        else:
            # Most of it at one go.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.driver, signal.SIGKILL)
            self.clear()
        self.status(_PATIENCE)
        return True

    def clear(self) -> None:
        """Kills whatever of it is alive."""
        while alive := self.alive():
            for each in alive:
                _kill(each)
            self.status(_SECONDS_BETWEEN_COUNTS)

    def look(self) -> bool:
        """Whether something is alive that the dead driver has left."""
        self._is_gone = self._is_gone or not self.alive()
        if self.died and not self._is_gone:
            self.outlived = time.monotonic() - self.died
        return not self._is_gone

    def watch(self, names: Sequence[str], dead: "Sequence[Life]") -> None:
        """Takes names of the output that are there now; the dead may have left workers at it."""
        if self._names is None or (not self.is_at_work and any_alive(dead)):
            self._names = names
        self.is_at_work = self.is_at_work or set(names) != set(self._names)

    def end(self) -> str:
        """Waits for its end; returns the last line that it said if that was no good one."""
        status = self.status(_PATIENCE)
        if status is None:
            self.clear()
            return "hangs"
        lines = [line for line in self._log.read_text().splitlines() if line.strip()]
        return f"status {status}: {lines[-1] if lines else ''}" if status else ""

    def remains(self) -> list[str]:
        """What of it is still alive some time later; none of it afterwards."""
        until = time.monotonic() + SECONDS_TO_END
        while self.alive() and time.monotonic() < until:
            time.sleep(_SECONDS_BETWEEN_COUNTS)
        left = [f"alive {SECONDS_TO_END} s later: {title(each)}" for each in self.alive()]
        self.clear()
        return left


class RayLife(Life):
    """One that begins a Ray of its own."""

    def __init__(self, command: Sequence[str], shares: int, folder: Path, log: Path):
        """Begins it in a session of its own, as in a terminal.

        Args:
          command: name and flags.
          shares: into how many it is cut.
          folder: for Ray's files, and compiled programs.
          log: gets what it prints.
        """
        super().__init__(log)
        self._mark = str(log)
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "TMPDIR": str(folder),
            # Workers are else put behind all others on a busy machine.
            "RAY_worker_niceness": "0",
            BEGUN_IN: self._mark,
        }
        ours = [f"--shares={shares}", f"--workers={_AT_ONCE}", "--", *command]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "geneformer_jax.cluster", *ours],
                env=environment, start_new_session=True, stdout=output, stderr=output,
            )  # fmt: skip
        self.driver = self._process.pid

    def alive(self) -> list[int]:
        """All but Ray's agents."""
        return [each for each in begun_in(self._mark) if title(each) not in _AGENTS]

    def _workers(self) -> list[int]:
        workers = {each: title(each) for each in self.alive()}
        workers = {each: workers[each] for each in workers if workers[each].startswith(_WORKERS)}
        at_work = [each for each in workers if workers[each].startswith(_AT_WORK)]
        return at_work or list(workers)

    def status(self, seconds: float = 0) -> int | None:
        """See `Life`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode

    def clear(self) -> None:
        """Kills Ray's agents too."""
        super().clear()
        for each in begun_in(self._mark):
            _kill(each)


class ForkedLife(Life):
    """One whose workers are forked."""

    def __init__(self, command: Sequence[str], shares: int, folder: Path, log: Path):
        """Begins it; see `RayLife`."""
        super().__init__(log)
        context = get_context("forkserver")
        context.set_forkserver_preload(["tests.campaigns.kills.preload", drive.__module__])
        given = command, shares, _AT_ONCE, folder, log
        self._process = context.Process(target=drive, args=given)
        self._process.start()
        self.driver = self._process.pid

    def alive(self) -> list[int]:
        """All of its session."""
        return list(of_session(self.driver))

    def _workers(self) -> list[int]:
        return [each for each in self.alive() if each != self.driver]

    def status(self, seconds: float = 0) -> int | None:
        """See `Life`."""
        self._process.join(seconds)
        return self._process.exitcode


def any_alive(dead: Sequence[Life]) -> bool:
    """Whether something is alive that dead drivers have left."""
    return bool(sum(each.look() for each in dead))


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
