"""Kills commands that Ray's workers share, or some of the workers, and gives them again.

Killed is the driver alone, whose Ray and workers are left to end by themselves; or everything that
it began, at once; or a worker, without which the command must get on. The same command is given
again at once, and its output must be that of an undisturbed one.

Usage: python -m tests.campaigns.kills.clusters [--commands=tokenize] [--kills=100] [--seed=0]
Prints a line per command, and each fault with the deaths that brought it about.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from tests.campaigns.kills.commands import COMMANDS, PROJECT, write_counts, write_inputs
from tests.campaigns.kills.outputs import contents, differences
from tests.helpers.processes import BEGUN_IN, begun_in, is_begun_in, title

DRIVER, EVERYTHING, WORKER = "driver", "everything", "worker"
BEFORE, BEGUN, WRITING, BETWEEN = "before output", "begun", "writing", "between shares"
JOIN, RENAME, BEHIND = "join", "rename", "behind it"
# In their order; two of them follow each other again and again.
_AGAIN = 2
_RANKS = {BEFORE: 0, BEGUN: 1, WRITING: _AGAIN, BETWEEN: _AGAIN, JOIN: 3, RENAME: 4, BEHIND: 5}
REFUSED = "another process is"
# What Ray, which waits for 30 seconds, brings about where others have the processors.
_NOT_BEGUN = "Ray does not begin"
_ANY_TIME = 1 / 4
# Seconds behind a moment, as powers of ten.
_SOON = (-4.0, -0.5)
# In a row, before the command is left to its end; and of workers until then.
_MOST_DEATHS, _MOST_WORKERS = 3, 3
_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_COUNTS = 0.004, 0.25
# Of a command that others leave little of the processors; and of what a dead one has left alive.
_PATIENCE, _SECONDS_TO_END = 1_800, 30
# How Ray calls its workers, and those that do a step.
_WORKERS, _AT_WORK = ("ray::perform", "ray::Keeper", "ray::IDLE"), ("ray::perform", "ray::Keeper.")
# These write nothing of ours, and see only after a minute that their Ray was killed.
_AGENTS = "ray::DashboardAgent", "ray::RuntimeEnvAgent"


class Shared(NamedTuple):
    """A command of COMMANDS that is shared out, and what tells from outside how far it is.

    Attributes:
      more: arguments, which count where COMMANDS has them too.
      shares: into how many it is cut, each a part of the work.
      made: pattern of the name that is there for each part that is made.
      renamed: pattern of the first name that the joined output has.
      whole: pattern of the name that is there when all is.
    """

    more: Sequence[str]
    shares: int
    made: str
    renamed: str
    whole: str

    def progress(self, names: Sequence[str]) -> tuple[str, int]:
        """What the command is at, and how many parts are made, given all names of its output."""
        names = [name for name in names if not name.endswith("lock")]
        aside = [name for name in names if ".partial" in name]
        made = len(set(_matching(names, self.made)) - set(aside))
        if _matching(names, self.whole):
            return BEHIND, made
        if _matching(names, self.renamed):
            return RENAME, made
        if made == self.shares:
            return JOIN, made
        if aside:
            return WRITING, made
        return (BETWEEN if made else BEGUN if names else BEFORE), made


SHARED = {
    "tokenize": Shared(
        ("--counts={inputs}/many/counts",), 6, "store/sources/*/source.json",
        "store/cells-train*", "store/dataset_info.json",
    ),
    "perturb": Shared(
        ("--tokens_per_device=256", "--statistics=none"), 6, "shifts.parts/records/part-*.json",
        "shifts", "index.html",
    ),
}  # fmt: skip


class Order(NamedTuple):
    """What is killed, and when.

    Attributes:
      target: DRIVER, EVERYTHING or WORKER.
      phase: once the command is at this, or past it; "" for any time.
      made: parts that are made by then.
      seconds: after that, or after the beginning.
    """

    target: str
    phase: str
    made: int
    seconds: float


class Trial(NamedTuple):
    """A command that was killed, perhaps again and again, and then came to its end.

    Attributes:
      deaths: (target, what the command was at), in order.
      refused: how often a command was refused, as workers of one before it were still at work.
      outlived: seconds for which something of a dead command lived on, but for Ray's agents.
      faults: what is wrong.
    """

    deaths: Sequence[tuple[str, str]]
    refused: int
    outlived: float
    faults: Sequence[str]


class Pair(NamedTuple):
    """Two commands at once.

    Attributes:
      seconds: by which the second was later.
      refused: how many of them were.
      faults: what is wrong.
    """

    seconds: float
    refused: int
    faults: Sequence[str]


class Life:
    """A cluster command, and all that it began.

    Attributes:
      began: when, in seconds of the monotonic clock.
      is_at_work: whether it has changed names of the output.
      outlived: seconds after its death at which something that it began was last seen alive.
    """

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str], log: Path):
        """Begins it in a session of its own, as in a terminal."""
        self._mark, self._log = str(log), log
        self.began, self._died, self.outlived = time.monotonic(), 0.0, 0.0
        self._left: list[int] = []
        self.is_at_work, self._names = False, None
        with log.open("wb") as output:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "geneformer_jax.cluster", *arguments],
                env={**os.environ, **variables, BEGUN_IN: self._mark},
                start_new_session=True, stdout=output, stderr=output,
            )  # fmt: skip

    def is_alive(self) -> bool:
        """Whether the driver is."""
        return self._driver.poll() is None

    def kill(self, target: str, draw: random.Random) -> bool:
        """Kills; returns whether there was anybody to be killed."""
        if target == WORKER:
            return self._kill_a_worker(draw)
        self._died = time.monotonic()
        (os.killpg if target == EVERYTHING else os.kill)(self._driver.pid, signal.SIGKILL)
        if target == EVERYTHING:
            self.clear()
        self._driver.wait()
        self._left = self._alive()
        return True

    def _alive(self) -> list[int]:
        return [each for each in begun_in(self._mark) if title(each) not in _AGENTS]

    def _kill_a_worker(self, draw: random.Random) -> bool:
        workers = {each: title(each) for each in begun_in(self._mark)}
        workers = {each: workers[each] for each in workers if workers[each].startswith(_WORKERS)}
        at_work = [each for each in workers if workers[each].startswith(_AT_WORK)]
        if workers:
            _kill(draw.choice(at_work or list(workers)))
        return bool(workers)

    def clear(self) -> None:
        """Kills whatever of it is alive."""
        while alive := list(begun_in(self._mark)):
            for each in alive:
                _kill(each)

    def watch(self, names: Sequence[str], dead: "Sequence[Life]") -> None:
        """Takes names of the output that are there now; the dead may have left workers at it."""
        if self._names is None or (not self.is_at_work and _any_alive(dead)):
            self._names = names
        self.is_at_work = self.is_at_work or set(names) != set(self._names)

    def look(self) -> bool:
        """Whether something is alive that a dead driver has left."""
        left = [each for each in self._left if is_begun_in(self._mark, each)]
        self._left = [each for each in left if title(each) not in _AGENTS]
        if self._left:
            self.outlived = time.monotonic() - self._died
        return bool(self._left)

    def end(self) -> str:
        """Waits for its end; returns the last line that it said if that was no good one."""
        try:
            status = self._driver.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.clear()
            self._driver.wait()
            return "hangs"
        lines = [line for line in self._log.read_text().splitlines() if line.strip()]
        return f"status {status}: {lines[-1] if lines else ''}" if status else ""

    def remains(self) -> list[str]:
        """What of it is still alive some time later; none of it afterwards."""
        until = time.monotonic() + _SECONDS_TO_END
        while (alive := self._alive()) and time.monotonic() < until:
            self.look()
            time.sleep(_SECONDS_BETWEEN_COUNTS)
        self.clear()
        return [f"alive {_SECONDS_TO_END} s later: {title(each)}" for each in alive]


class Campaign:
    """Kills of one command."""

    def __init__(self, folder: Path, name: str, seed: int):
        """Runs the command twice without a kill, in a new folder, and once more where it was.

        Attributes:
          faults: of these runs.
        """
        self._folder, self._output, self._ray = folder, folder / "output", folder / "ray"
        self._name, self._shared, self._number = name, SHARED[name], 0
        self._draw = random.Random(f"cluster/{name}/{seed}")
        self.faults: list[str] = []
        write_inputs(folder / "inputs")
        write_counts(folder / "inputs" / "many", files="abcdef", cells=40)
        self._expected: Mapping[str, bytes] = {}
        for run in ("first", "two runs", "run again"):
            if run != "run again":
                self._fresh()
            life = self._begin()
            while _NOT_BEGUN in (fault := life.end()):
                life = self._begin()
            faults = [*filter(None, [fault]), *life.remains()]
            if run == "two runs":
                self.seconds = time.monotonic() - life.began
            found = contents(self._output)
            self._expected = self._expected or found
            faults += differences(found, self._expected)
            self.faults += [f"{run}: {fault}" for fault in faults]

    def _fresh(self) -> None:
        # Ray's own files, which stay behind a kill, are big.
        for folder in (self._output, self._ray):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def _begin(self) -> Life:
        self._number += 1
        command = COMMANDS[self._name]
        given = [*command.arguments, *self._shared.more]
        paths = {"inputs": self._folder / "inputs", "output": self._output}
        given = [each.format(**paths) for each in given]
        ours = [f"--shares={self._shared.shares}", "--workers=2", "--", self._name]
        variables = {
            "PYTHONPATH": str(PROJECT),
            "TMPDIR": str(self._ray),
            # Else they wait until all others have done their work.
            "RAY_worker_niceness": "0",
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / "programs"),
        }
        return Life([*ours, *given], variables, self._folder / f"life{self._number}.log")

    def trials(self, kills: int) -> Iterator[Trial]:
        """Kills so many times, a few in a row, and looks at what is left when nobody was killed."""
        made = 0
        while made < kills:
            trial = self._trial(kills - made)
            made += len(trial.deaths)
            yield trial

    def _trial(self, most: int) -> Trial:
        self._fresh()
        dead: list[Life] = []
        deaths: list[tuple[str, str]] = []
        life = self._begin()
        for order in self._orders(most):
            if BEHIND in [phase for _, phase in deaths] or not self._await(life, order, dead):
                break
            if life.kill(order.target, self._draw):
                deaths.append((order.target, self._progress(life, dead)[0]))
                if order.target != WORKER:
                    dead.append(life)
                    life = self._begin()
        refused = 0
        while (fault := self._end(life, dead)) and self._is_passing(fault, dead):
            refused += REFUSED in fault
            dead.append(life)
            life = self._begin()
        faults = [fault, *(line for each in (*dead, life) for line in each.remains())]
        outlived = max((each.outlived for each in dead), default=0.0)
        return Trial(deaths, refused, outlived, [*filter(None, faults), *self._left()])

    def _orders(self, most: int) -> list[Order]:
        """Draws what is killed: a few times all or the driver, then workers of the last one."""
        wanted = min(self._draw.randint(1, _MOST_DEATHS), most)
        workers = min(self._draw.randint(0, _MOST_WORKERS), most - wanted)
        of_drivers = [self._order((DRIVER, EVERYTHING)) for _ in range(wanted)]
        of_workers = [self._order((WORKER,)) for _ in range(workers)]
        return [*sorted(of_drivers, key=_rank), *sorted(of_workers, key=_rank)]

    def _order(self, targets: Sequence[str]) -> Order:
        draw = self._draw
        if draw.random() < _ANY_TIME:
            return Order(draw.choice(targets), "", 0, draw.uniform(0, self.seconds))
        made = draw.randrange(self._shared.shares)
        phase = draw.choice([phase for phase in _RANKS if phase != BEFORE])
        return Order(draw.choice(targets), phase, made, 10 ** draw.uniform(*_SOON))

    def _await(self, life: Life, order: Order, dead: Sequence[Life]) -> bool:
        """Waits for the moment that is ordered; returns False if the command ended before."""
        moment = None if order.phase else life.began + order.seconds
        while life.is_alive():
            phase, made = self._progress(life, dead)
            at_it = phase == order.phase and (made >= order.made or _RANKS[phase] != _AGAIN)
            if moment is None and (at_it or _RANKS[phase] > _RANKS[order.phase]):
                moment = time.monotonic() + order.seconds
            if moment is not None and time.monotonic() >= moment:
                return True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return False

    def _progress(self, life: Life, dead: Sequence[Life]) -> tuple[str, int]:
        names = _names_below(self._output)
        life.watch(names, dead)
        phase, made = self._shared.progress(names)
        return (phase if life.is_at_work else BEFORE), made

    def _is_passing(self, fault: str, dead: Sequence[Life]) -> bool:
        return _NOT_BEGUN in fault or (REFUSED in fault and _any_alive(dead))

    def _end(self, life: Life, dead: Sequence[Life]) -> str:
        while life.is_alive() and _any_alive(dead):
            time.sleep(_SECONDS_BETWEEN_COUNTS)
        return life.end()

    def _left(self) -> list[str]:
        return differences(contents(self._output), self._expected)

    def two_at_once(self) -> Pair:
        """Begins the command twice, the second while the first is alive."""
        self._fresh()
        seconds = self._draw.uniform(0, self.seconds / 4)
        first = self._begin()
        time.sleep(seconds)
        lives = first, self._begin()
        ends = [life.end() for life in lives]
        told = REFUSED, _NOT_BEGUN
        faults = [line for line in ends if line and not any(each in line for each in told)]
        faults += ["both were refused"] if all(ends) else []
        faults += [line for life in lives for line in life.remains()]
        return Pair(seconds, sum(map(bool, ends)), [*faults, *self._left()])


def _any_alive(dead: Sequence[Life]) -> bool:
    """Whether something is alive that dead drivers have left."""
    return bool(sum(each.look() for each in dead))


def _rank(order: Order) -> int:
    return _RANKS[order.phase] if order.phase else 0


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _names_below(folder: Path) -> list[str]:
    found = []
    for path, folders, files in os.walk(folder):
        found += [os.path.relpath(os.path.join(path, name), folder) for name in (*folders, *files)]
    return found


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatch(name, pattern)]


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for a while, whose name leaves room for those of Ray's sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", default=",".join(SHARED))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=0, help="commands at once, in place of kills")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.commands.split(","):
        with short_folder() as folder:
            _tell(Campaign(folder, name, given.seed), name, given)


def _tell(campaign: Campaign, name: str, given: argparse.Namespace) -> None:
    print(f"{name}: {campaign.seconds:.1f} s", *campaign.faults, sep="\n  ", flush=True)
    deaths: Counter[tuple[str, str]] = Counter()
    faulty = refused = 0
    outlived = 0.0
    for trial in campaign.trials(0 if given.pairs else given.kills):
        deaths.update(trial.deaths)
        refused, outlived = refused + trial.refused, max(outlived, trial.outlived)
        faulty += bool(trial.faults)
        print(f"  killed: {trial}", flush=True)
    for _ in range(given.pairs):
        pair = campaign.two_at_once()
        refused += pair.refused
        faulty += bool(pair.faults)
        print(f"  {pair}", flush=True)
    listed = ", ".join(f"{target} {phase} {n}" for (target, phase), n in sorted(deaths.items()))
    print(
        f"  {deaths.total()} kills ({listed}), {given.pairs} pairs: {refused} refused; what was "
        f"left of the dead lived for {outlived:.1f} s at most; {faulty} faulty ends", flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
