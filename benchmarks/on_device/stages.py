"""Stages run in a process of their own under a budget; what they find is kept as it comes.

A kernel that crashes, hangs or poisons the device costs its own stage and a new process, nothing
else. Imports no JAX: the devices are left to that process.
"""

import contextlib
import importlib
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from geneformer_jax.common.files import atomic_write

Row = dict[str, Any]
# Of the budget, for the last file and the table.
RESERVE_S = 4.0
_ENDING_S = 10.0


class Stage(NamedTuple):
    """A check or a measurement.

    Attributes:
      name: in the results.
      function: "module:function"; takes sizes and yields rows, each with a name. A row takes the
        place of an earlier one of the same name.
      least_s: seconds without which it is not begun.
      most_s: seconds after which it is ended.
      library: what its process computes with, "jax", "torch" or none; never two beside each
        other, since each takes the device's memory.
    """

    name: str
    function: str
    least_s: float
    most_s: float
    library: str = "jax"


class Report:
    """What was found so far: in memory, and whole on disk after every row."""

    def __init__(self, path: Path, facts: Row):
        """Begins a file; one that is there is replaced."""
        self._path = path
        self.found: Row = {**facts, "devices": {}, "stages": []}
        self.save()

    def save(self) -> None:
        """Writes the file anew, beside it first."""
        with atomic_write(self._path) as aside:
            aside.write_text(json.dumps(self.found, indent=1))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Row]:
        """Yields the entry of a stage; whatever ends the block, its seconds and status are kept."""
        entry = {"name": name, "status": "interrupted", "seconds": 0.0, "rows": []}
        self.found["stages"].append(entry)
        began = time.monotonic()
        try:
            yield entry
        finally:
            entry["seconds"] = round(time.monotonic() - began, 1)
            self.save()

    def add(self, entry: Row, row: Row) -> None:
        """Keeps a row of a stage, in place of an earlier one of its name."""
        kept = [each for each in entry["rows"] if each["name"] != row["name"]]
        entry["rows"] = [*kept, row]
        self.save()


class Worker:
    """A process that runs stages of one library, one after the other."""

    def __init__(self, library: str):
        """Starts it."""
        self.library = library
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, library), daemon=True)
        self._process.start()
        # Else the pipe would not end with the process.
        theirs.close()

    def run(self, stage: Stage, sizes: Any, deadline: float) -> Iterator[tuple[str, Any]]:
        """Yields what a stage says, up to a last "done", "failed" or "cut off"."""
        kind = ""
        # A process that is gone is noticed below.
        with contextlib.suppress(ConnectionError):
            self._pipe.send((stage.function, sizes))
        while kind not in ("done", "failed", "cut off"):
            try:
                if self._pipe.poll(max(deadline - time.monotonic(), 0)):
                    kind, said = self._pipe.recv()
                else:
                    kind, said = "cut off", "its time was over"
            except (EOFError, ConnectionError):
                self._process.join(_ENDING_S)
                kind, said = "failed", f"its process ended with status {self._process.exitcode}"
            yield kind, said

    def end(self) -> None:
        """Ends the process, and with it all that it holds of the device."""
        self._process.kill()
        self._process.join(_ENDING_S)


def _work(pipe: Connection, library: str) -> None:
    """Says what devices there are, and then runs stages as they are asked for."""
    try:
        if library:
            pipe.send(("devices", _device_facts(library)))
        while True:
            function, sizes = pipe.recv()
            for row in _load(function)(sizes):
                pipe.send(("row", row))
            pipe.send(("done", None))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        # Nobody listens any more.
        return
    except Exception as error:
        pipe.send(("failed", in_a_line(error)))


def _load(function: str) -> Callable[[Any], Iterator[Row]]:
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def in_a_line(error: Exception) -> str:
    """Returns an error with the place of ours it came from, on one short line."""
    places = traceback.extract_tb(error.__traceback__)
    ours = [each for each in places if "site-packages" not in each.filename] or places
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({place})"


def _device_facts(library: str) -> Row:
    if library == "torch":
        import torch

        there = torch.cuda.is_available()
        device = torch.cuda.get_device_name() if there else "cpu"
        return {"library": "torch", "version": torch.__version__, "device": device}
    import jax

    devices = jax.devices()
    kind, platform = devices[0].device_kind, devices[0].platform
    facts = {"library": "jax", "version": jax.__version__, "device": kind}
    return {**facts, "platform": platform, "count": len(devices)}


def run_stages(stages: Sequence[Stage], sizes: Any, report: Report, deadline: float) -> None:
    """Runs stages in turn until the deadline (of `time.monotonic`); keeps all that they find.

    A stage for which too little time is left is left out, one that takes too long is cut off, one
    that fails says why; the others go on, in a new process.
    """
    worker = None
    try:
        for stage in stages:
            with report.stage(stage.name) as entry:
                now = time.monotonic()
                if deadline - now < stage.least_s:
                    entry["status"] = "left out"
                    entry["said"] = f"{deadline - now:.0f} s were left, not {stage.least_s:.0f}"
                    continue
                if worker is None or worker.library != stage.library:
                    if worker:
                        worker.end()
                    worker = Worker(stage.library)
                _follow(worker.run(stage, sizes, min(deadline, now + stage.most_s)), report, entry)
                if entry["status"] != "done":
                    worker.end()
                    worker = None
    finally:
        if worker:
            worker.end()


def _follow(messages: Iterator[tuple[str, Any]], report: Report, entry: Row) -> None:
    """Keeps what a stage says."""
    for kind, said in messages:
        if kind == "devices":
            report.found["devices"][said["library"]] = said
        elif kind == "row":
            report.add(entry, said)
            print(f"{entry['name']}: {json.dumps(said)}", flush=True)
        else:
            entry["status"] = kind
            if said:
                entry["said"] = said
