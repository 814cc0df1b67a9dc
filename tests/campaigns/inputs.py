"""Damaged files of every kind that is read: is each read right, or refused in one line?

Usage: python -m tests.campaigns.inputs [--readers=h5ad,store] [--cases=1000] [--seed=0]
Prints a line per reader, with the most memory a reading took, and each fault with the seed that
makes its file.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.campaigns.readers import GROUPS, readers_of
from tests.campaigns.reading import SECONDS

PROJECT = Path(__file__).resolve().parents[2]
FINE = ("equal", "refused", "other")
# The clock may run on while other processes have the processor.
_CLOCK_SECONDS = 15 * SECONDS
_START_SECONDS = 30 * SECONDS


def run_cases(group: str, name: str, cases: int, seed: int, folder: Path) -> Iterator[dict]:
    """Yields a dict per case: case, damage, verdict, message, mebibytes (the most memory taken).

    A process that dies is replaced; of its last case no memory is known.
    """
    first = part = 0
    while first < cases:
        process, errors = _start(group, name, seed, first, cases, folder / f"{part}")
        at = None
        try:
            for line in _lines(process):
                if "verdict" not in line:
                    at = line["case"]
                    continue
                first = line["case"] + 1
                yield line
        except TimeoutError:
            pass
        finally:
            process.kill()
            process.communicate()
        told = errors.read_text(errors="replace")[-2000:]
        if first >= cases:
            return
        if at is None or at < first:
            raise RuntimeError(f"reading {name} ended before case {first}: {told}")
        how = f"signal {-process.returncode}" if process.returncode < 0 else told[-300:]
        hung = process.returncode in (-9, -24)
        yield {"case": at, "damage": "", "verdict": "hang" if hung else "crash", "message": how}
        first, part = at + 1, part + 1


def _start(
    group: str, name: str, seed: int, first: int, last: int, folder: Path
) -> tuple[subprocess.Popen, Path]:
    """Returns the process, and the file of what it writes besides: libraries log a lot."""
    arguments = [group, name, str(folder), str(seed), str(first), str(last)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    errors = folder.with_suffix(".log")
    with errors.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.reading", *arguments],
            stdout=subprocess.PIPE, stderr=log, env=environment, cwd=PROJECT,
        )  # fmt: skip
    return process, errors


def _lines(process: subprocess.Popen) -> Iterator[dict]:
    patience = _START_SECONDS
    while True:
        if not select.select([process.stdout], [], [], patience)[0]:
            raise TimeoutError
        line = process.stdout.readline()
        if not line:
            process.wait()
            return
        patience = _CLOCK_SECONDS
        if line.startswith(b"{"):
            yield json.loads(line)


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", default="", help="parts of their names, between commas")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", action="store_true", help="print every case")
    given = parser.parse_args()
    wanted = given.readers.split(",")
    for group in GROUPS:
        for name in [each for each in readers_of(group) if any(part in each for part in wanted)]:
            print(_tried(group, name, given), flush=True)


def _tried(group: str, name: str, given: argparse.Namespace) -> str:
    verdicts: Counter[str] = Counter()
    most = 0
    with tempfile.TemporaryDirectory() as folder:
        for line in run_cases(group, name, given.cases, given.seed, Path(folder)):
            verdicts[line["verdict"]] += 1
            most = max(most, line.get("mebibytes", 0))
            if given.shown or line["verdict"] not in FINE:
                told = f"{line['verdict']}: {line['damage']}: {line['message']}"
                print(f"  {name}/{given.seed}/{line['case']} {told}", flush=True)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
    return f"{name}: {counts}; at most {most} MiB"


if __name__ == "__main__":
    main()
