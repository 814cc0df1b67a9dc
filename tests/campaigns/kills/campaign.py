"""Kills commands at random moments and at chosen ones, gives them again, compares what they leave.

Usage: python -m tests.campaigns.kills.campaign [--commands=embed,screen] [--kills=100] [--seed=0]
Prints a line per command, and each fault with the deaths that brought it about.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from ast import literal_eval
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tests.campaigns.kills.commands import COMMANDS, write_inputs
from tests.campaigns.kills.life import (
    AFTER_A_REBOOT,
    AS_IT_IS,
    BEFORE_A_REBOOT,
    EVENTS,
    JOINING,
    NO_ORDER,
    PHASE,
    PHASES,
    RENAME,
    Event,
    Order,
    World,
    live,
)
from tests.campaigns.kills.outputs import contents, differences

# Other processes may have the processors.
_PATIENCE = 900
_MOST_DEATHS = 3
_REFUSED = "another process is"
# Seconds after an event, as powers of ten: what a library writes of a small file takes so long.
_SOON = (-4.3, -1.7)


class Death(NamedTuple):
    """How a process was killed, and what it was at."""

    order: Order
    phase: str


class End(NamedTuple):
    """How a process ended.

    Attributes:
      killed: by us.
      fault: what is wrong, "" if it was killed or ended well.
      phase: what it was at, as a name of PHASES, with "join: " in front if it joined.
    """

    killed: bool
    fault: str
    phase: str


class Trial(NamedTuple):
    """A command that was killed, perhaps again and again, and then given once more."""

    deaths: Sequence[Death]
    faults: Sequence[str]


class Pair(NamedTuple):
    """Two processes, or cluster commands, on one output at once.

    Attributes:
      seconds: by which the second was later.
      refused: how many of them were.
      faults: what is wrong.
    """

    seconds: float
    refused: int
    faults: Sequence[str]


class Arena:
    """Where commands live, die and are given again.

    Attributes:
      output: folder of what they write.
    """

    def __init__(self, folder: Path):
        """Makes the inputs in a new folder."""
        self._folder, self.output = folder, folder / "output"
        self._inputs, self._log = folder / "inputs", folder / "life.log"
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["tests.campaigns.kills.preload"])
        maker = self._context.Process(target=write_inputs, args=(self._inputs,))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError("the inputs could not be made")

    def begin(self, name: str, order: Order, world: World, log: Path):
        """Starts a command; returns its process, and what it shares with us."""
        told = self._context.Array("q", 4, lock=False)
        told[EVENTS] = -1
        arguments = (name, self._inputs, self.output, told, order, world, log)
        process = self._context.Process(target=live, args=arguments)
        process.start()
        return process, told

    def run(self, name: str, order: Order = NO_ORDER, world: World = AS_IT_IS) -> End:
        """Runs a command until it ends, or dies as it is told to."""
        process, told = self.begin(name, order, world, self._log)
        if order.seconds is not None:
            while process.is_alive() and told[EVENTS] < order.event:
                time.sleep(0.0005)
            process.join(order.seconds)
            process.kill()
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            return End(False, "hangs", "")
        phase = f"{'join: ' if told[JOINING] else ''}{PHASES[told[PHASE]]}"
        killed = process.exitcode == -signal.SIGKILL
        fault = "" if killed else _last_line(process.exitcode, self._log)
        return End(killed, fault, phase)

    def run_two(self, name: str, seconds: float) -> list[str]:
        """Runs a command twice at once; returns how each failed, "" if it did not."""
        logs = [self._log.with_name(f"life{each}.log") for each in range(2)]
        processes = []
        for wait, log in zip((seconds, 0), logs, strict=True):
            process, told = self.begin(name, NO_ORDER, AS_IT_IS, log)
            while process.is_alive() and told[EVENTS] < 0:
                time.sleep(0.001)
            process.join(wait)
            processes.append(process)
        for process in processes:
            process.join(_PATIENCE)
            process.kill()
        pairs = zip(processes, logs, strict=True)
        return [_last_line(process.exitcode, log) for process, log in pairs]

    def fresh(self) -> None:
        """Empties the folder of outputs."""
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir()

    def events(self) -> tuple[float, list[Event]]:
        """Seconds and events of the last life that came to its end."""
        seconds, events = literal_eval(self._log.with_suffix(".events").read_text())
        return seconds, [Event(*event) for event in events]


def _last_line(status: int, log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return f"status {status}: {lines[-1] if lines else ''}" if status else ""


class Campaign:
    """Kills of one command."""

    def __init__(self, arena: Arena, name: str, seed: int):
        """Runs the command three times without a kill: in a fresh folder, again, and twice there.

        Attributes:
          faults: of these runs.
        """
        self._arena, self._name = arena, name
        self._draw = random.Random(f"{name}/{seed}")
        self.faults: list[str] = []
        arena.fresh()
        self._live()
        first = contents(arena.output)
        arena.fresh()
        self._live()
        self.seconds, self.events = arena.events()
        self._expected = contents(arena.output)
        self.faults += [f"two runs: {line}" for line in differences(self._expected, first)]
        self._give_again()
        again = contents(arena.output)
        self.faults += [f"run again: {line}" for line in differences(again, self._expected)]

    def _live(self) -> None:
        if fault := self._arena.run(self._name).fault:
            self.faults.append(f"without a kill: {fault}")

    def _give_again(self) -> None:
        done, fault = COMMANDS[self._name].done, self._arena.run(self._name).fault
        if fault if not done else done not in fault:
            self.faults.append(f"given again when all is done: {fault}")

    def trials(self, kills: int, reboots: bool = False) -> Iterator[Trial]:
        """Kills so many processes, a few in a row, and looks at what is left when one was not.

        Args:
          kills: in all.
          reboots: as if the machine had been started anew after each, its clock set back: the
            next process has the number of the one before, and files are from the future.
        """
        made = 0
        while made < kills:
            trial = self._trial(kills - made, reboots)
            made += len(trial.deaths)
            yield trial

    def _trial(self, most: int, reboots: bool) -> Trial:
        self._arena.fresh()
        deaths: list[Death] = []
        wanted = min(self._draw.randint(1, _MOST_DEATHS), most)
        world, later = (BEFORE_A_REBOOT, AFTER_A_REBOOT) if reboots else (AS_IT_IS, AS_IT_IS)
        end = End(True, "", "")
        while end.killed and len(deaths) < wanted:
            order = self._order()
            end = self._arena.run(self._name, order, world)
            world = later
            if end.killed:
                deaths.append(Death(order, end.phase))
        if end.killed:
            end = self._arena.run(self._name, world=world)
        # Killed behind its last word, it may refuse to begin anew.
        done = COMMANDS[self._name].done
        faults = [end.fault] if end.fault and not (done and done in end.fault) else []
        return Trial(deaths, [*faults, *self._left()])

    def _left(self) -> list[str]:
        return differences(contents(self._arena.output), self._expected)

    def two_at_once(self) -> Pair:
        """Starts the command twice, the second while the first is at work."""
        self._arena.fresh()
        seconds = self._draw.uniform(0, self.seconds)
        ends = self._arena.run_two(self._name, seconds)
        # The second may come when all is done.
        told = [_REFUSED, *filter(None, [COMMANDS[self._name].done])]
        faults = [line for line in ends if line and not any(each in line for each in told)]
        none = ["both were refused"] if all(ends) else []
        return Pair(seconds, sum(map(bool, ends)), [*faults, *none, *self._left()])

    def _order(self) -> Order:
        """Draws when to kill: at any time, or, each phase as often, at or soon after an event."""
        draw = self._draw
        if draw.random() < 1 / 3:
            return Order(seconds=draw.uniform(0, self.seconds))
        kinds = sorted({(event.phase, event.joining) for event in self.events})
        kind = draw.choice(kinds)
        numbers = [n for n, event in enumerate(self.events, 1) if event[:2] == kind]
        event = draw.choice(numbers)
        if draw.random() < 1 / 2:
            return Order(event, behind=kind[0] == RENAME and draw.random() < 1 / 2)
        return Order(event, seconds=10 ** draw.uniform(*_SOON))


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reboots", action="store_true", help="start the machine anew after each")
    parser.add_argument("--pairs", type=int, default=0, help="processes at once, in place of kills")
    parser.add_argument("--events", action="store_true", help="print those of a whole life")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    # All lives share what one of them compiled.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        arena = Arena(folder)
        for name in given.commands.split(","):
            _tell(Campaign(arena, name, given.seed), name, given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tell(campaign: Campaign, name: str, given: argparse.Namespace) -> None:
    print(f"{name}: {campaign.seconds:.1f} s, {len(campaign.events)} events", flush=True)
    for fault in campaign.faults:
        print(f"  {fault}", flush=True)
    if given.events:
        for number, event in enumerate(campaign.events, 1):
            print(f"  {number} {'join ' if event.joining else ''}{event.what}")
    phases: Counter[str] = Counter()
    faulty = 0
    for trial in campaign.trials(0 if given.pairs else given.kills, given.reboots):
        phases.update(death.phase for death in trial.deaths)
        if trial.faults:
            faulty += 1
            told = "; ".join(f"{phase} {tuple(order)}" for order, phase in trial.deaths)
            print(f"  killed: {told}", *trial.faults[:8], sep="\n    ", flush=True)
    refused: Counter[int] = Counter()
    for _ in range(given.pairs):
        pair = campaign.two_at_once()
        refused[pair.refused] += 1
        if pair.faults:
            faulty += 1
            print(f"  the second {pair.seconds:.2f} s later", *pair.faults[:8], sep="\n    ")
    if given.pairs:
        print(f"  {given.pairs} pairs, {refused[1]} times one was refused; {faulty} faulty ends")
        return
    listed = ", ".join(f"{number} {phase}" for phase, number in phases.most_common())
    print(f"  {phases.total()} kills ({listed}); {faulty} faulty ends", flush=True)


if __name__ == "__main__":
    main()
