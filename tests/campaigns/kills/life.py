"""One life of a command, in a process that others watch and may kill.

What a process does with files below a folder is counted as events, by Python's audit hooks; so it
can be killed at the n-th of them. What libraries of C write between two events is met by kills
some time after an event, or at any time.
"""

import importlib
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.campaigns.kills.commands import COMMANDS

# What a process is at, of its output.
PHASES = ("before output", "writing", "rename", "between", "removing")
BEFORE, WRITING, RENAME, BETWEEN, REMOVING = range(len(PHASES))
_PHASE_OF = {
    "open": WRITING,
    "os.mkdir": WRITING,
    "os.truncate": WRITING,
    "os.rename": RENAME,
    "os.link": RENAME,
    "os.remove": REMOVING,
    "os.rmdir": REMOVING,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Of the array that the process and its watcher share.
EVENTS, PHASE, JOINING = range(3)


class Order(NamedTuple):
    """When a process is to die.

    Attributes:
      event: number of the event, from 1; 0 for none.
      behind: just behind the event, which must be a rename, in place of just before it.
      seconds: after the event, or after the start; None for at once.
    """

    event: int = 0
    behind: bool = False
    seconds: float | None = None


class World(NamedTuple):
    """How things are while a process lives.

    Attributes:
      clock_back: seconds that the clock was set back.
      pid: number that the process believes to have; 0 for its own.
    """

    clock_back: int = 0
    pid: int = 0


AS_IT_IS = World()
BEFORE_A_REBOOT = World(pid=4242)
AFTER_A_REBOOT = World(pid=4242, clock_back=24 * 60 * 60)
NO_ORDER = Order()


class Event(NamedTuple):
    """What a process does with a file.

    Attributes:
      phase: number in PHASES.
      joining: whether the output is being put together.
      what: kind of the event and path, for people.
    """

    phase: int
    joining: bool
    what: str


class _Watch:
    """Counts events, and tells what the process is at."""

    def __init__(self, folder: Path, told: SynchronizedArray, order: Order):
        self._folder, self._told, self._order = f"{folder}{os.sep}", told, order
        self._pid = os.getpid()
        self.events: list[Event] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _PHASE_OF:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return
        path = _path_of(event, arguments)
        if not path.startswith(self._folder):
            return
        self._told[PHASE] = _PHASE_OF[event]
        what = f"{event} {path.removeprefix(self._folder)}"
        self.events.append(Event(_PHASE_OF[event], bool(self._told[JOINING]), what))
        if self._order == Order(event=len(self.events)):
            os.kill(self._pid, signal.SIGKILL)
        self._told[EVENTS] = len(self.events)

    def renaming(self, rename: Callable[..., None]) -> Callable[..., None]:
        """The function, that tells when it has ended."""

        def renamed(*arguments: Any, **given: Any) -> None:
            before = len(self.events)
            rename(*arguments, **given)
            if len(self.events) > before:
                if self._order == Order(event=len(self.events), behind=True):
                    os.kill(self._pid, signal.SIGKILL)
                self._told[PHASE] = BETWEEN

        return renamed

    def joining(self, join: Callable[..., Any]) -> Callable[..., Any]:
        """The function, that tells when it is at work."""

        def joined(*arguments: Any, **given: Any) -> Any:
            self._told[JOINING] = 1
            try:
                return join(*arguments, **given)
            finally:
                self._told[JOINING] = 0

        return joined


def _path_of(event: str, arguments: tuple[Any, ...]) -> str:
    """The path that an event is about, "" if it has none."""
    if not isinstance(arguments[0], str | bytes):
        return ""
    path = os.fsdecode(arguments[0])
    # Whole folders are removed by names within an open folder.
    if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
        return os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), path)
    return path


def live(
    name: str,
    inputs: Path,
    output: Path,
    told: SynchronizedArray,
    order: Order,
    world: World,
    log: Path,
) -> None:
    """Runs a command from beginning to end, if it gets so far.

    Args:
      name: in COMMANDS.
      inputs, output: folders.
      told: gets the number of events once it begins, the phase, and whether it joins.
      order: when it kills itself, if that is at an event.
      world: what it believes of clock and process.
      log: file that gets what it prints, and its events.
    """
    command = COMMANDS[name]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    watch = _Watch(output, told, order)
    for join in command.joins:
        _wrap(join, watch.joining)
    command.prepare(pytest.MonkeyPatch())
    for function in ("rename", "replace"):
        setattr(os, function, watch.renaming(getattr(os, function)))
    sys.addaudithook(watch)
    module = f"geneformer_jax.{command.name}"
    sys.argv = [module, *command.arguments_in(inputs, output)]
    _enter(world)
    began, told[EVENTS] = time.monotonic(), 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        events = list(map(tuple, watch.events))
        log.with_suffix(".events").write_text(repr((time.monotonic() - began, events)))


def _enter(world: World) -> None:
    if world.clock_back:
        for name, unit in (("time", 1), ("time_ns", 10**9)):
            clock = getattr(time, name)
            setattr(time, name, lambda clock=clock, unit=unit: clock() - unit * world.clock_back)
    if world.pid:
        os.getpid = lambda: world.pid


def _wrap(name: str, wrapper: Callable[..., Any]) -> None:
    module, _, path = name.partition(":")
    *parents, last = path.split(".")
    holder = importlib.import_module(module)
    for parent in parents:
        holder = getattr(holder, parent)
    setattr(holder, last, wrapper(getattr(holder, last)))
