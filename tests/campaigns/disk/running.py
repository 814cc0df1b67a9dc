"""Runs a command again and again on a file system that fails, in children of one process.

Usage: python -m tests.campaigns.disk.running COMMAND FOLDER SEED CALLS FAULTS, with the layer of
faults below it. Prints a JSON line for each case; see `tests.campaigns.disk.campaign`.
"""

import errno
import functools
import importlib
import json
import pickle
import random
import re
import runpy
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.campaigns.disk.commands import COMMANDS, LIGHT, write_inputs
from tests.campaigns.disk.forked import Ended, in_child
from tests.campaigns.disk.layer import EVERY, HARMLESS, Call, Fault, calls_in, faulty
from tests.campaigns.kills.outputs import contents, differences

_FULL = r"no space left while writing .*; free some and run the same command again"
_FAILED = r"the disk failed at .*; check it and run the same command again"
# What the line says of each error, and what to do.
WORDS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: r"no permission for .*; change its permissions or name another path",
    errno.EROFS: r".* lies where nothing can be written; name another path",
    errno.EIO: _FAILED,
    errno.ESTALE: _FAILED,
    # What is not there, and what to do.
    errno.ENOENT: r".*[;:] .*",
    errno.ENOLCK: r".* lies where files cannot be locked; set HDF5_USE_FILE_LOCKING=FALSE .*",
}
# What is not whole, by its name, and what a run that is given again goes on with.
_UNFINISHED = ("*.partial-geneformer", "*.parts", "*.shards", "metrics.jsonl", "checkpoints",
               "training", "tensorboard")  # fmt: skip
# Then the command is let to its end.
FAULTS_IN_A_ROW = 6
# A command does without the list of reports where it cannot be written, and without a checkpoint
# that it cannot read, which it puts aside; one that it cannot remove stays for the next run.
_PASSED_OVER = re.compile(
    r".* index\.html|left over: .*/checkpoints/((damaged-)?\d+|\w+\.orbax-checkpoint-tmp)(/.*)?"
)
_PROGRESS = re.compile(r"(?!error)[a-z\d: -]+: [\d,]+ of [\d,]+ ")


class Bench:
    """A command, its inputs, and what it writes where nothing fails."""

    faults = EVERY
    more: Sequence[str] = ()

    def __init__(self, name: str, folder: Path):
        """Imports what the command does, writes the inputs, and runs it once or twice."""
        self._command, self._folder, self._run = COMMANDS[name], folder, folder / "run"
        self._calls = folder / "calls"
        folder.mkdir(parents=True)
        if name in LIGHT:
            for module in LIGHT[name]:
                importlib.import_module(f"geneformer_jax.{module}")
        else:
            importlib.import_module("tests.campaigns.kills.preload")
        # In a child, since JAX cannot be used before and behind a fork.
        write = functools.partial(write_inputs, name, folder / "inputs")
        require(in_child(write, folder, folder))
        self._leave_earlier()
        # The first run compiles, and the second is like all that follow.
        for _ in range(1 if name in LIGHT else 2):
            self._begin()
            require(self.run(None))
        self.calls, self.whole = calls_in(self._calls), self._contents()
        self._begin()

    def _leave_earlier(self) -> None:
        """Makes what the command finds of earlier runs: nothing."""

    def run(self, fault: Fault | None, first: int = 1, more: Sequence[str] | None = None) -> Ended:
        """Runs the command, with `more` arguments, in the folder that is there."""
        more = self.more if more is None else more
        arguments = [*self._command.arguments_in(self._folder / "inputs", self._run), *more]

        def work() -> None:
            module = f"geneformer_jax.{self._command.name}"
            sys.argv = [module, *arguments]
            self._command.prepare(pytest.MonkeyPatch())
            with faulty(self._run, fault, first, self._calls):
                runpy.run_module(module, run_name="__main__", alter_sys=True)

        return in_child(work, self._folder, self._folder)

    def _begin(self) -> None:
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir()
        self._faults = 0

    def case(self, fault: Fault, first: int) -> dict[str, str]:
        """Returns what came of a fault at a call: verdict, message, and where it was.

        It meets what the cases before it left, until the command came to its end.
        """
        if fault.harmless:
            self._begin()
        ended = self.run(fault, first)
        where = self._where()
        verdict, message = judge(fault, ended)
        self._faults += 1
        if verdict == "refused":
            if half := self._half_done():
                verdict, message = "half done", f"{half} after {message}"
            elif self._faults == FAULTS_IN_A_ROW:
                again = self.run(None)
                if again.status != 0:
                    verdict, message = "not gone on", f"{message} / {again.error[-300:]}"
                verdict, message = self._compared(verdict, message)
        elif verdict == "finished":
            verdict, message = self._compared(verdict, message)
        return {"where": where, "verdict": verdict, "message": message}

    def _where(self) -> str:
        """Kind and path of the first call of the last run that failed; "" where none did."""
        failed = [call for call in calls_in(self._calls) if call.failed]
        return f"{failed[0].kind.name} {failed[0].path.relative_to(self._run)}" if failed else ""

    def _half_done(self) -> str:
        """Names files that have their final names, and are not what they become."""
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._run, copy, ignore=shutil.ignore_patterns(*_UNFINISHED))
        try:
            found = differences(contents(copy), self.whole)
        except ValueError as error:
            return f"a file that cannot be read ({error})"
        return ", ".join(each for each in found if each.startswith("another "))

    def _compared(self, verdict: str, message: str) -> tuple[str, str]:
        """Compares what is there at the end, and begins anew."""
        found = differences(self._contents(), self.whole)
        if other := [each for each in found if not _PASSED_OVER.fullmatch(each)]:
            verdict, message = "other output", f"{other[:3]} {verdict} {message}"
        self._begin()
        return verdict, message

    def _contents(self) -> dict[str, bytes]:
        """What is there, read in a child, since it takes JAX to read a checkpoint."""
        file = self._folder / "contents"

        def read() -> None:
            file.write_bytes(pickle.dumps(contents(self._run)))

        require(in_child(read, self._run, self._folder))
        return pickle.loads(file.read_bytes())


def require(ended: Ended) -> None:
    """Raises RuntimeError if a run that nothing disturbed did not end well."""
    if ended.status:
        raise RuntimeError(f"without any fault: {ended.output[-500:]} {ended.error[-2000:]}")


def judge(fault: Fault, ended: Ended) -> tuple[str, str]:
    """Returns ("finished", ""), ("refused", its line), or what is wrong with how it gave up."""
    if ended.status == 0:
        return "finished", ""
    printed = ended.error.splitlines()
    lines = [line for line in printed if line.strip() and not _PROGRESS.match(line)]
    if ended.status < 0:
        return f"signal {-ended.status}", ended.error[-300:]
    if any(line.startswith("Traceback") for line in lines):
        return "traceback", " | ".join(lines[-4:])[-600:]
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return "several lines", " | ".join(lines)[-600:]
    if not re.fullmatch(f"error: {WORDS.get(fault.error)}", lines[0]):
        return "unclear", lines[0]
    if "the output folder" in lines[0]:
        return "no path", lines[0]
    return "refused", lines[0]


def sites(calls: Sequence[Call], fault: Fault, rng: random.Random) -> list[int]:
    """Draws one call of each sort, by kind and by the name of its file, that a fault is for."""
    sorts: dict[tuple[int, str], list[int]] = {}
    for call in calls:
        if call.kind & fault.kinds:
            name = re.sub(r"[0-9a-f]{6,}|\d+", "#", str(call.path))
            sorts.setdefault((call.kind, name), []).append(call.number)
    return [rng.choice(each) for each in sorts.values()]


def cases(bench: Bench, names: Sequence[str], seed: int, count: int) -> Iterator[tuple[str, int]]:
    """Yields faults, and calls at which they begin; all of them where `count` is 0."""
    rng = random.Random(seed)
    for name in names:
        if name in HARMLESS:
            yield name, 1
            continue
        found = sites(bench.calls, bench.faults[name], rng)
        chosen = rng.sample(found, min(count, len(found))) if count else found
        yield from ((name, first) for first in sorted(chosen))


def main(kind: type[Bench]) -> None:
    """Makes all cases of a bench that the command line asks for."""
    name, folder, seed, count, names = sys.argv[1:]
    bench = kind(name, Path(folder).resolve())
    for fault, first in cases(bench, names.split(","), int(seed), int(count)):
        line = {"fault": fault, "first": first, **bench.case(bench.faults[fault], first)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Bench)
