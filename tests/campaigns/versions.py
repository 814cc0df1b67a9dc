"""The tests with the oldest and the newest dependencies that are allowed, on each Python.

Usage: python -m tests.campaigns.versions --folder=FOLDER [--pythons=3.11,3.12,3.13]
         [--choices=oldest,newest] [--tests="tests/cells tests/training"] [--extras=test]
Makes an environment for each in FOLDER (kept, and used again), runs the tests in it, and lets each
read the checkpoints of all. Writes FOLDER/matrix.md, the requirements as they were resolved, and a
log of each run. The Pythons must be found, as python3.12 in PATH or where uv keeps its own.
"""

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
# Of all packages that pyproject.toml names; what those need themselves is the newest in both.
CHOICES = {"oldest": "lowest-direct", "newest": "highest"}
SHOWN = (
    "jax", "flax", "orbax-checkpoint", "grain", "anndata", "zarr", "pandas", "numpy", "transformers"
)  # fmt: skip
SELECTED = "not slow and not gpu and not tpu"
# Old releases warn of themselves beside newer ones of others, which nobody can mend.
_OF_OLD = [f"-Wdefault::{each}Warning" for each in ("Deprecation", "Syntax", "Future", "User")]


@dataclass(frozen=True)
class Environment:
    """One Python with one choice of packages.

    Attributes:
      folder: of all environments.
      python: its version, such as "3.12".
      choice: one of CHOICES.
    """

    folder: Path
    python: str
    choice: str

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.python}-{self.choice}"

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.folder / self.name

    @property
    def requirements(self) -> Path:
        """File of all packages, as resolved; it is there when the environment is whole."""
        return self.folder / f"{self.name}.txt"

    def make(self, extras: list[str]) -> None:
        """Resolves and installs, unless it is there."""
        if self.requirements.exists():
            return
        aside = self.requirements.with_suffix(".resolved")
        named = [f"--extra={extra}" for extra in extras]
        index = "--index-strategy=unsafe-best-match"
        wheels = _wheels(self.folder)
        _uv("pip", "compile", "pyproject.toml", *named, index, "--quiet", "--no-annotate", *wheels,
            f"--resolution={CHOICES[self.choice]}", f"--python-version={self.python}",
            f"--output-file={aside}", "--upgrade")  # fmt: skip
        _uv("venv", "--quiet", "--clear", f"--python={self.python}", str(self.path))
        target = f"--python={self.path / 'bin' / 'python'}"
        _uv("pip", "install", "--quiet", "--compile-bytecode", target, index, *wheels,
            "--requirement", str(aside))  # fmt: skip
        os.replace(aside, self.requirements)

    def versions(self) -> dict[str, str]:
        """Returns name -> version of all packages."""
        pairs = re.findall(r"^([\w.-]+)==(\S+)", self.requirements.read_text(), re.M)
        return dict(pairs)

    def run(self, *arguments: str, log: Path) -> subprocess.CompletedProcess:
        """Runs its Python; standard output is returned, and all of it logged."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "PATH": f"{self.path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.path),
        }
        # Programs that another version of JAX compiled are of no use.
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        done = subprocess.run(
            [self.path / "bin" / "python", *arguments],
            cwd=PROJECT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        log.write_text(done.stdout + done.stderr)
        return done


def _wheels(folder: Path) -> tuple[str, str]:
    """Returns options that take nothing but wheels: old releases do not build on newer Pythons.

    tensorflow-datasets needs promise, which is pure Python, but comes as source alone.
    """
    wheels = folder / "wheels"
    if not wheels.exists():
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        subprocess.run([*pip, f"--wheel-dir={wheels}", "promise"], check=True)
    return "--only-binary=:all:", f"--find-links={wheels}"


def _uv(*arguments: str) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    install = runpy.run_path(str(PROJECT / "launch" / "install.py"))
    settings = install["settings_of_pip"]([sys.executable, "-m", "pip"])
    done = subprocess.run(
        [uv, *arguments],
        cwd=PROJECT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"uv {' '.join(arguments)}: {done.stderr[-2000:]}")


def run_tests(environment: Environment, tests: list[str]) -> str:
    """Returns what pytest says in its last line."""
    warnings = _OF_OLD if environment.choice == "oldest" else []
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", SELECTED, *warnings, *tests]
    done = environment.run(*arguments, log=environment.folder / f"{environment.name}.tests.log")
    lines = done.stdout.strip().splitlines()
    return lines[-1].strip("= ") if lines else done.stderr[-200:]


def exchange(environments: list[Environment]) -> dict[tuple[str, str], str]:
    """Returns (writer, reader) -> "read" or what went wrong."""
    found = {}
    for writer in environments:
        folder = writer.folder / f"{writer.name}.written"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        log = writer.folder / f"{writer.name}.write.log"
        module = ("-m", "tests.campaigns.exchanged")
        if writer.run(*module, "write", str(folder), log=log).returncode:
            found |= {(writer.name, each.name): f"not written, see {log}" for each in environments}
            continue
        for reader in environments:
            log = writer.folder / f"{writer.name}.read-by-{reader.name}.log"
            done = reader.run(*module, "read", str(folder), log=log)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            error = json.loads(lines[-1])["error"] if lines else f"no answer, see {log}"
            found[writer.name, reader.name] = error or "read"
    return found


def matrix(
    environments: list[Environment], results: dict[str, str], read: dict[tuple[str, str], str]
) -> str:
    """Returns all results as tables in Markdown."""
    head = ["environment", *SHOWN, "tests"]
    rows = []
    for each in environments:
        versions = each.versions()
        rows.append([each.name, *(versions.get(name, "-") for name in SHOWN), results[each.name]])
    tables = [_table(head, rows)]
    names = [each.name for each in environments]
    if read:
        rows = [[one, *(read[one, other] for other in names)] for one in names]
        tables.append(_table(["written by, read by", *names], rows))
    return "\n\n".join(tables) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Makes the environments, runs the tests and the exchange, writes the matrix."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pythons", default=",".join(PYTHONS))
    parser.add_argument("--choices", default=",".join(CHOICES))
    parser.add_argument("--extras", default="test", help="parity takes PyTorch, gigabytes")
    parser.add_argument("--tests", default="tests", help='"" runs none')
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    environments = [
        Environment(folder, python, choice)
        for python in given.pythons.split(",")
        for choice in given.choices.split(",")
    ]
    results = {}
    for each in environments:
        each.make(given.extras.split(","))
        print(f"{each.name}: {len(each.versions())} packages in {each.path}", flush=True)
        results[each.name] = run_tests(each, given.tests.split()) if given.tests else "not run"
        print(f"{each.name}: {results[each.name]}", flush=True)
    told = matrix(environments, results, exchange(environments))
    (folder / "matrix.md").write_text(told)
    print(told)


if __name__ == "__main__":
    main()
