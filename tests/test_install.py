"""Installing: what the user is told meanwhile, and that every pip understands the metadata."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

PROJECT = Path(__file__).resolve().parents[1]
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS = METADATA["optional-dependencies"]
SAID = r"""Collecting jaxlib
  Downloading jaxlib-1.0-py3-none-any.whl.metadata (9 kB)
  Downloading https://host/a/jaxlib-1.0-cp311-cp311-manylinux.whl (80.5 MB)
  Using cached absl_py-2.0-py3-none-any.whl (500 kB)
Installing collected packages: absl-py, jaxlib
Successfully installed absl-py-2.0 jaxlib-1.0
"""


def install(folder: Path, said: str, status: int, **variables) -> subprocess.CompletedProcess:
    """Runs launch/install.py with a pip that says and answers what it is told to."""
    (folder / "pip.py").write_text(
        f"import sys; print(sys.argv[1:]); print({said!r}, end=''); sys.exit({status})"
    )
    return subprocess.run(
        [sys.executable, PROJECT / "launch" / "install.py", "--editable", ".[demo]"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder), **variables},
    )  # fmt: skip


def test_installing_tells_what_it_waits_for(tmp_path):
    done = install(tmp_path, SAID, status=0)
    assert done.returncode == 0
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "fetching jaxlib 1.0 (80 MB)" in lines
    # Small ones have no line of their own, but count.
    assert "absl" not in done.stdout
    assert re.match(r"2 packages, 81 MB, in \d+ s", lines[-1])


def test_where_pip_fails_its_last_words_and_its_status_are_passed_on(tmp_path):
    done = install(tmp_path, "Collecting nothing\nno such package\n", status=3)
    assert done.returncode == 3
    assert "no such package" in done.stdout
    assert "--editable', '.[demo]'" in done.stdout


@pytest.mark.parametrize(("variable", "compiles"), [("", False), ("1", True)])
def test_modules_are_compiled_at_once_only_where_python_never_would(tmp_path, variable, compiles):
    done = install(tmp_path, "", status=3, PYTHONDONTWRITEBYTECODE=variable)
    assert ("--no-compile" in done.stdout) != compiles


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """Wheels that hold metadata alone: of this project, and of all that it asks for."""
    folder = tmp_path_factory.mktemp("wheels")
    wanted = [Requirement(text) for text in METADATA["dependencies"]]
    wanted += [Requirement(text) for extra in EXTRAS.values() for text in extra]
    for each in wanted:
        here = each.marker is None or each.marker.evaluate()
        if here and each.name != METADATA["name"]:
            lowest = (
                next(s.version for s in each.specifier if s.operator in (">=", "=="))
                if each.specifier
                else "99"
            )
            write_wheel(folder, each.name, lowest, [], ["cuda12", "cuda13", "tpu"])
    needs = list(METADATA["dependencies"])
    # As setuptools writes them.
    needs += [
        f'{text}{" and" if ";" in text else ";"} extra == "{name}"'
        for name, extra in EXTRAS.items()
        for text in extra
    ]
    write_wheel(folder, METADATA["name"], "0.1", needs, list(EXTRAS))
    return folder


def write_wheel(folder: Path, name: str, version: str, needs: list[str], extras: list[str]):
    stem = f"{name.replace('-', '_')}-{version}"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in needs]
    lines += [f"Provides-Extra: {each}" for each in extras]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.mark.parametrize("name", EXTRAS)
def test_no_name_of_an_extra_reads_as_a_version(name):
    """pip 24.1 to 24.3 takes the first that does for one, and refuses all others then."""
    with pytest.raises(InvalidVersion):
        Version(name)


# Of 3 s each: the one that refused names of extras is tried always, the others in CI.
OTHERS = [] if os.environ.get("CI") else [pytest.mark.slow]


@pytest.mark.parametrize(
    "pip",
    [
        "pip==24.2",
        *(pytest.param(each, marks=OTHERS) for each in ("pip==24.0", "pip==25.0", "pip")),
    ],
)
def test_every_pip_resolves_every_extra(pip, stand_ins, tmp_path):
    here = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(tmp_path)]
    if subprocess.run([*here, pip], capture_output=True).returncode:
        if os.environ.get("CI"):
            pytest.fail(f"{pip} cannot be fetched")
        pytest.skip(f"{pip} cannot be fetched: no network?")
    (wheel,) = tmp_path.glob("pip-*.whl")
    done = subprocess.run(
        [sys.executable, wheel / "pip", "install", "--dry-run", "--ignore-installed", "--isolated",
         "--no-index", f"--find-links={stand_ins}", f"{METADATA['name']}[{','.join(EXTRAS)}]"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    would = next(line for line in done.stdout.splitlines() if line.startswith("Would install"))
    for name in ("jax", "scanpy", "transformers", "libtpu", "torch"):
        assert f" {name}-" in would
