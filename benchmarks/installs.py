"""Tries the two commands of the README on several Pythons, and weighs what they install.

    python benchmarks/installs.py --pythons=python3.11,python3.12,python3.13        # resolve only
    python benchmarks/installs.py --pythons=python3.12 --run=quickstart,test        # run them too
    python benchmarks/installs.py --pythons=python3.12 --weigh=HEAD,6837f1e         # two commits

Everything happens in clones of the last commit in a temporary folder. pip is the one that each
Python brings, and the newest. What pip has cached is not downloaded again: run a comparison twice,
and take the second.
"""

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
# What `make quickstart` and `make test` install.
EXTRAS = ("demo", "test,parity")


def main() -> None:
    """Prints a table for each thing that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pythons", default=sys.executable, help="interpreters, with commas")
    parser.add_argument("--run", default="", help="targets of make to run, with commas")
    parser.add_argument("--weigh", default="", help="commits whose install to weigh, with commas")
    asked = parser.parse_args()
    pythons = asked.pythons.split(",")
    with tempfile.TemporaryDirectory() as folder:
        if asked.weigh:
            weigh(pythons, asked.weigh.split(","), Path(folder))
        elif asked.run:
            run_targets(pythons, asked.run.split(","), Path(folder))
        else:
            resolve(pythons, Path(folder))


def resolve(pythons: list[str], folder: Path) -> None:
    """Has each pip find out what it would install."""
    project = clone("HEAD", folder)
    print("| Python | pip | " + " | ".join(f"`.[{each}]`" for each in EXTRAS) + " |")
    print("|" + "---|" * (2 + len(EXTRAS)))
    for number, python in enumerate(pythons):
        for newest in (False, True):
            made = environment(python, folder / f"{number}-{newest}", newest)
            pip = (made, "-m", "pip")
            cells = [output(made, "-V").split()[1], output(*pip, "--version").split()[1]]
            for extras in EXTRAS:
                said = call(project, *pip, "install", "--dry-run", f"{project}[{extras}]")
                would = re.search(r"^Would install (.*)$", said.stdout, re.M)
                last = (said.stderr.strip().splitlines() or ["no answer"])[-1]
                cells.append(f"{len(would[1].split())} packages" if would else last)
            print("| " + " | ".join(cells) + " |", flush=True)


def run_targets(pythons: list[str], targets: list[str], folder: Path) -> None:
    """Runs targets of make one after another in a fresh clone for each Python."""
    print("| Python | target | minutes | exit status | last line |\n|---|---|---|---|---|")
    for number, python in enumerate(pythons):
        project = clone("HEAD", folder / str(number))
        for target in targets:
            began = time.monotonic()
            done = call(project, "make", f"PYTHON={python}", target)
            minutes = (time.monotonic() - began) / 60
            said = done.stderr if done.returncode else done.stdout
            last = said.strip().splitlines()[-1]
            version = output(python, "-V").split()[1]
            print(
                f"| {version} | {target} | {minutes:.1f} | {done.returncode} | {last} |", flush=True
            )


def weigh(pythons: list[str], commits: list[str], folder: Path) -> None:
    """Installs for the quickstart, as each of some commits does it."""
    print(
        "| Python | commit | seconds | CPU seconds | packages | MB on disk |\n" + "|---" * 6 + "|"
    )
    for number, python in enumerate(pythons):
        for commit in commits:
            project = clone(commit, folder / f"{number}-{commit}")
            target = ".venv/.installed-demo"
            began, before = time.monotonic(), children_seconds()
            done = call(project, "make", f"PYTHON={python}", target)
            seconds, cpu = time.monotonic() - began, children_seconds() - before
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            packages = len(list(project.glob(".venv/lib/*/site-packages/*.dist-info")))
            megabytes = sum(p.lstat().st_size for p in project.glob(".venv/lib/**/*")) / 1e6
            version = output(python, "-V").split()[1]
            row = (version, commit, f"{seconds:.0f}", f"{cpu:.0f}", packages, f"{megabytes:.0f}")
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


def clone(commit: str, folder: Path) -> Path:
    """Returns a fresh clone at a commit."""
    project = folder / "project"
    output("git", "clone", "--quiet", "--no-checkout", str(PROJECT), str(project))
    output("git", "-C", str(project), "checkout", "--quiet", output(
        "git", "-C", str(PROJECT), "rev-parse", commit
    ).strip())  # fmt: skip
    return project


def environment(python: str, folder: Path, newest: bool) -> str:
    """Makes an environment, with the pip that Python brings or the newest; returns its Python."""
    output(python, "-m", "venv", str(folder))
    made = str(folder / "bin" / "python")
    if newest:
        output(made, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    return made


def call(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Runs a command in a folder, and keeps what it says."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def output(*command: str) -> str:
    """What a command that must not fail prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def children_seconds() -> float:
    """CPU time of all processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
