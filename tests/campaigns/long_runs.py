"""Long runs: are memory, file handles and threads flat, and is a run with many restarts the same?

Usage: python -m tests.campaigns.long_runs train [--steps=100000]
       python -m tests.campaigns.long_runs load [--steps=100000] [--workers=2]
       python -m tests.campaigns.long_runs embed [--cells=5000000]
       python -m tests.campaigns.long_runs restart [--steps=2000] [--every=300]
Each of the first three runs in a process of its own, which is looked at from outside. The last
pretrains on one core, sent SIGTERM every so many seconds and begun again, and compares weights and
losses, bit for bit, with a run that nothing interrupts. Prints JSON; ends with 1 where it fails.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
# Of the time, before what is held is compared; and by how much it may have grown at the end.
WARM_UP, GROWTH = 0.3, 0.02
_WINDOW = 0.15
_SECONDS_BETWEEN = 0.25


@dataclass(frozen=True)
class Held:
    """What a process holds at one time.

    Attributes:
      memory: bytes of its own, those that files have mapped left out.
      handles: open files, sockets and pipes.
      threads: of the process; those of its children are not counted.
    """

    memory: int
    handles: int
    threads: int


def held_by(pid: int) -> Held | None:
    """Returns what a process holds, or None when it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        status = (folder / "status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        handles = len(list((folder / "fd").iterdir()))
        return Held(1024 * int(fields["RssAnon"].split()[0]), handles, int(fields["Threads"]))
    except (OSError, KeyError):
        return None


def watch(process: subprocess.Popen) -> list[Held]:
    """Looks at a process until it ends."""
    samples = []
    while process.poll() is None:
        if (held := held_by(process.pid)) is not None:
            samples.append(held)
        time.sleep(_SECONDS_BETWEEN)
    return samples


def growth(samples: list[Held]) -> dict[str, float]:
    """Returns how much more of each was held at the end than after the warm-up.

    Means over windows of the time: a checkpoint that is written takes memory for a moment.
    """
    size = max(int(_WINDOW * len(samples)), 1)
    begin = int(WARM_UP * len(samples))
    # In the last moments a process gives back what it has.
    end = int((1 - _WINDOW / 3) * len(samples))
    early, late = samples[begin : begin + size], samples[end - size : end]
    found = {}
    for name in asdict(samples[0]):
        before, after = (np.mean([getattr(held, name) for held in part]) for part in (early, late))
        found[name] = float(after / before - 1)
    return found


def is_flat(grown: dict[str, float]) -> bool:
    """Whether nothing grew beyond bounds."""
    return all(each <= GROWTH for each in grown.values())


def watch_inside(what: str, *arguments: str) -> dict[str, object]:
    """Runs a loop in a process of its own; returns what it held."""
    with tempfile.TemporaryDirectory() as folder:
        process = _start(
            "-m", "tests.campaigns.long_loops", what, folder, *arguments, log=Path(folder) / "log"
        )
        samples = watch(process)
        if process.returncode:
            raise SystemExit(f"{what} failed: {(Path(folder) / 'log').read_text()[-2000:]}")
    grown = growth(samples)
    return {
        "what": what,
        "arguments": arguments,
        "samples": len(samples),
        "memory_mb": round(samples[int(WARM_UP * len(samples))].memory / 1e6, 1),
        "handles": max(held.handles for held in samples),
        "threads": max(held.threads for held in samples),
        "grown": grown,
        "right": is_flat(grown),
    }


def _start(*arguments: str, log: Path, cores: str = "") -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}
    pinned = ["taskset", "--cpu-list", cores] if cores else []
    with log.open("a") as file:
        return subprocess.Popen(
            [*pinned, sys.executable, *arguments],
            cwd=PROJECT, env=environment, stdout=file, stderr=file,
        )  # fmt: skip


def restarts(steps: int, every: float) -> dict[str, object]:
    """Compares a run that is stopped every so many seconds with one that is not."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        began = time.monotonic()
        _until_done(folder, "whole", steps, float("inf"))
        alone = time.monotonic() - began
        stopped = _until_done(folder, "restarted", steps, every)
        process = _start(
            "-m", "tests.campaigns.long_loops", "compare", scratch, log=folder / "compare.log"
        )
        right = process.wait() == 0
        return {
            "what": "restart",
            "steps": steps,
            "every_seconds": every,
            "stopped": stopped,
            "seconds": round(alone),
            "right": right and stopped > 0,
            "told": (folder / "compare.log").read_text()[-500:],
        }


def _until_done(folder: Path, name: str, steps: int, every: float) -> int:
    """Pretrains to the end; returns how often the run was stopped."""
    stopped, log = 0, folder / f"{name}.log"
    while True:
        inside = ("-m", "tests.campaigns.long_loops", "pretrain", str(folder), name, str(steps))
        process = _start(*inside, log=log, cores="0")
        try:
            process.wait(None if every == float("inf") else every)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
        if process.returncode == 0:
            return stopped
        if process.returncode not in (143, -signal.SIGTERM):
            raise SystemExit(f"{name} failed: {log.read_text()[-2000:]}")
        stopped += 1


def main() -> None:
    """Runs one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "load", "embed", "restart"))
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--cells", type=int, default=5_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=300)
    given = parser.parse_args()
    inside = {
        "train": (given.steps,),
        "load": (given.steps, given.workers),
        "embed": (given.cells,),
    }
    if given.what == "restart":
        told = restarts(given.steps, given.every)
    else:
        told = watch_inside(given.what, *map(str, inside[given.what]))
    print(json.dumps(told))
    sys.exit(not told["right"])


if __name__ == "__main__":
    main()
