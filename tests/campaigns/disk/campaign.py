"""Commands whose disk fails at any call: one line, nothing half done, and later the same output.

Usage: python -m tests.campaigns.disk.campaign [--commands=embed,perturb] [--faults=read-only]
    [--calls=3] [--seed=0]
Each fault begins at so many calls, of different sorts, drawn for each command (0: one of each).
Scenes of two machines, such as "embed joined", stand behind the commands; see `late.py`.
Prints a line per command, and each case that went wrong.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.campaigns.disk.commands import COMMANDS
from tests.campaigns.disk.late import SCENES
from tests.campaigns.disk.layer import EVERY, LATE, build, environment
from tests.helpers.xla import QUICK_COMPILING

PROJECT = Path(__file__).resolve().parents[3]
FINE = ("finished", "refused")


def run_cases(
    name: str, folder: Path, seed: int = 0, calls: int = 3, faults: Sequence[str] = ()
) -> Iterator[dict]:
    """Yields a dict per case: fault, first (call that fails), where, verdict, message.

    Args:
      name: one of COMMANDS or SCENES.
      folder: an empty one.
      seed: of the draw of calls.
      calls: at which each fault begins, drawn from different sorts; 0 takes one of each sort.
      faults: their names; all if empty.
    """
    variables = environment(build(folder)) | {
        "PYTHONPATH": str(PROJECT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK_COMPILING,
        "OMP_NUM_THREADS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    variables.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    module, known = ("late", LATE) if name in SCENES else ("running", EVERY)
    names = ",".join(faults or known)
    command = [sys.executable, "-m", f"tests.campaigns.disk.{module}", name, folder / "work",
               str(seed), str(calls), names]  # fmt: skip
    with (
        (folder / "log").open("w+") as log,
        subprocess.Popen(
            command, cwd=PROJECT, env=variables, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        yield from map(json.loads, process.stdout)
        if process.wait():
            log.seek(0)
            raise RuntimeError(f"the campaign itself failed at {name}: {log.read()[-2000:]}")


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", default="", help="parts of their names, between commas")
    parser.add_argument("--faults", default="", help="names, between commas")
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    faults = [name for name in given.faults.split(",") if name]
    wanted = given.commands.split(",")
    for name in [name for name in (*COMMANDS, *SCENES) if any(part in name for part in wanted)]:
        verdicts: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            for line in run_cases(name, Path(folder), given.seed, given.calls, faults):
                verdicts[line["verdict"]] += 1
                if line["verdict"] not in FINE:
                    print(f"  {line}", flush=True)
        told = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())
        print(f"{name}: {told}", flush=True)


if __name__ == "__main__":
    main()
