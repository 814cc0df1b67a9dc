"""Kills commands that Ray's workers share, or some of the workers, and gives them again.

Killed is the driver alone, whose Ray and workers are left to end by themselves; or everything that
it began, at once; or a worker, without which the command must get on. The same command is given
again at once, and its output must be that of an undisturbed one. As Ray takes long to begin,
workers may be forked in its place.

Usage: python -m tests.campaigns.kills.clusters [--commands=tokenize] [--kills=100] [--forked]
Prints a line per command, and each fault with the deaths that brought it about.
"""

import argparse
import contextlib
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from tests.campaigns.kills.campaign import Pair
from tests.campaigns.kills.cluster_lives import (
    DRIVER,
    EVERYTHING,
    NOT_BEGUN,
    SECONDS_TO_END,
    WORKER,
    ForkedLife,
    Life,
    RayLife,
    any_alive,
)
from tests.campaigns.kills.commands import COMMANDS, write_counts, write_inputs
from tests.campaigns.kills.outputs import contents, differences

BEFORE, BEGUN, WRITING, BETWEEN = "before output", "begun", "writing", "between shares"
JOIN, RENAME, BEHIND = "join", "rename", "behind it"
# In their order; two of them follow each other again and again.
_AGAIN = 2
_RANKS = {BEFORE: 0, BEGUN: 1, WRITING: _AGAIN, BETWEEN: _AGAIN, JOIN: 3, RENAME: 4, BEHIND: 5}
REFUSED = "another process is"
_ANY_TIME = 1 / 4
# Seconds behind a moment, as powers of ten.
_SOON = (-4.0, -0.5)
# In a row, before the command is left to its end; and of workers until then.
_MOST_DEATHS, _MOST_WORKERS = 3, 3
_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_COUNTS = 0.004, 0.25


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


class ClusterCampaign:
    """Kills of one command."""

    def __init__(self, folder: Path, name: str, seed: int, kind: type[RayLife | ForkedLife]):
        """Runs the command twice without a kill, in a new folder, and once more where it was.

        Args:
          folder: with a short name.
          name: of the command, in SHARED.
          seed: of the kills.
          kind: of the command's lives.

        Attributes:
          faults: of these runs.
        """
        self._folder, self._output, self._ray = folder, folder / "output", folder / "ray"
        self._name, self._shared, self._number = name, SHARED[name], 0
        self._kind = kind
        self._draw = random.Random(f"cluster/{name}/{seed}")
        self.faults: list[str] = []
        write_inputs(folder / "inputs")
        write_counts(folder / "inputs" / "many", files="abcdef", cells=40)
        self._expected: Mapping[str, bytes] = {}
        for run in ("first", "two runs", "run again"):
            if run != "run again":
                self._fresh()
            life = self._begin()
            while NOT_BEGUN in (fault := life.end()):
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
        given = [self._name, *COMMANDS[self._name].arguments, *self._shared.more]
        paths = {"inputs": self._folder / "inputs", "output": self._output}
        given = [each.format(**paths) for each in given]
        log = self._folder / f"life{self._number}.log"
        return self._kind(given, self._shared.shares, self._ray, log)

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
        while (fault := self._end(life, dead)) and _is_passing(fault, dead):
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
        while life.status() is None:
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

    def _end(self, life: Life, dead: Sequence[Life]) -> str:
        while life.status() is None and any_alive(dead):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
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
        told = REFUSED, NOT_BEGUN
        faults = [line for line in ends if line and not any(each in line for each in told)]
        faults += ["both were refused"] if all(ends) else []
        faults += [line for life in lives for line in life.remains()]
        return Pair(seconds, sum(map(bool, ends)), [*faults, *self._left()])


def _is_passing(fault: str, dead: Sequence[Life]) -> bool:
    """Whether a fault is of others on the machine, or of what the dead have left at work."""
    last = max((each.died for each in dead), default=0.0)
    return NOT_BEGUN in fault or (REFUSED in fault and time.monotonic() < last + SECONDS_TO_END)


def _rank(order: Order) -> int:
    return _RANKS[order.phase] if order.phase else 0


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
    parser.add_argument("--forked", action="store_true", help="fork workers in place of Ray's")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.commands.split(","):
        with short_folder() as folder:
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
            kind = ForkedLife if given.forked else RayLife
            _tell(ClusterCampaign(folder, name, given.seed, kind), name, given)


def _tell(campaign: ClusterCampaign, name: str, given: argparse.Namespace) -> None:
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
