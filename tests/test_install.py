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


STAND_IN = """import os, pathlib, sys
if sys.argv[1:2] == ["config"]:
    print("global.index-url='https://index'\\nglobal.find-links='/a /b'\\n:env:.quiet='1'")
elif sys.argv[-1] == "uv" and {has_uv}:
    uv = pathlib.Path(sys.executable).with_name("uv")
    uv.write_text("#!/bin/sh\\necho uv $* $UV_DEFAULT_INDEX $UV_FIND_LINKS; exit {status}")
    uv.chmod(0o755)
else:
    print("pip", *sys.argv[1:]); sys.exit({status})
"""


def install(folder: Path, has_uv: bool, status: int, **variables) -> subprocess.CompletedProcess:
    """Runs launch/install.py with a pip, and a uv if that pip finds one, that only say things."""
    (folder / "pip.py").write_text(STAND_IN.format(has_uv=has_uv, status=status))
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    return subprocess.run(
        [python, PROJECT / "launch" / "install.py", "--editable", ".[demo]"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder), **variables},
    )  # fmt: skip


def test_uv_installs_with_the_settings_of_pip(tmp_path):
    done = install(tmp_path, has_uv=True, status=0)
    assert done.returncode == 0
    works_out, called, took = done.stdout.splitlines()
    assert works_out == "  uv works out what .[demo] needs"
    assert called.startswith(f"uv pip install --python {tmp_path}/bin/python")
    assert called.endswith("--editable .[demo] https://index /a /b")
    assert re.fullmatch(r"  installed in \d+ s", took)


def test_where_there_is_no_uv_pip_installs_and_its_status_is_passed_on(tmp_path):
    done = install(tmp_path, has_uv=False, status=3)
    assert done.returncode == 3
    assert "uv cannot be had" in done.stdout
    assert "--editable .[demo]" in done.stdout


@pytest.mark.parametrize(("variable", "compiles"), [("", False), ("1", True)])
def test_modules_are_compiled_at_once_only_where_python_never_would(tmp_path, variable, compiles):
    done = install(tmp_path, has_uv=True, status=0, PYTHONDONTWRITEBYTECODE=variable)
    assert ("--compile-bytecode" in done.stdout) == compiles


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
