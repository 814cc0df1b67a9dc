"""Commands on a disk of several machines, of which one sees late what another left there.

Usage as `tests.campaigns.disk.running`, with SCENES in place of commands. Each run is the last of a
few: those before were another machine's, and what they left is seen late, not at all as long as the
run lives, or left out of listings. It may end as if nothing had happened, or in one line, and then
the same command must end so as soon as everything is seen. What a process wrote itself it sees.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from tests.campaigns.disk.layer import FAULTS, LATE, Fault, calls_in
from tests.campaigns.disk.running import Bench, judge, main, require

_SHARES = 2
# How much of a run is over when its machine dies, by its calls.
_OVER = 0.6


class Scene(NamedTuple):
    """A command, and whether others made its shares, or broke off where it is to go on."""

    command: str
    is_shared: bool


SCENES = {
    f"{command} {what}": Scene(command, is_shared)
    for command in ("tokenize", "embed", "perturb", "pretrain")
    for what, is_shared in (("joined", True), ("gone on with", False))
    # Its processes work at the same time.
    if not (command == "pretrain" and is_shared)
}


class LateBench(Bench):
    """A scene, and what its command writes where everything is seen at once."""

    faults = LATE

    def __init__(self, name: str, folder: Path):
        """As of any command."""
        self._scene, self._earlier = SCENES[name], folder / "earlier"
        self.more = ("--finish",) if self._scene.is_shared else ()
        super().__init__(self._scene.command, folder)

    def _leave_earlier(self) -> None:
        self._begin()
        if self._scene.is_shared:
            for share in range(_SHARES):
                require(self.run(None, more=(f"--shard={share}/{_SHARES}",)))
        else:
            require(self.run(None))
            calls = [call for call in calls_in(self._calls) if call.kind & FAULTS["no space"].kinds]
            self._begin()
            if self.run(FAULTS["no space"], calls[int(len(calls) * _OVER)].number).status == 0:
                raise RuntimeError("the earlier run came to its end")
        shutil.copytree(self._run, self._earlier)

    def _begin(self) -> None:
        super()._begin()
        if self._earlier.is_dir():
            shutil.copytree(self._earlier, self._run, dirs_exist_ok=True)

    def case(self, fault: Fault, first: int) -> dict[str, str]:
        """Returns what came of what was not seen: verdict, message, and where it was."""
        self._begin()
        ended = self.run(fault, first)
        where = self._where()
        verdict, message = judge(fault, ended)
        if verdict == "refused":
            again = self.run(None)
            if again.status != 0:
                verdict, message = "not gone on", f"{message} / {again.error[-300:]}"
        if verdict in ("finished", "refused"):
            verdict, message = self._compared(verdict, message)
        return {"where": where, "verdict": verdict, "message": message}


if __name__ == "__main__":
    main(LateBench)
