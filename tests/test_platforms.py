"""Where it can be installed: every package has a wheel for the machines that we name."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parents[1]
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


class Machine(NamedTuple):
    """A row of the table of installations.

    Attributes:
      platform: as uv names it; the glibc is the oldest that all wheels take.
      extra: to be installed, "" for none.
      brings: packages that make the machine's devices usable.
    """

    platform: str
    extra: str
    brings: tuple[str, ...]


MACHINES = {
    "CPU, x86-64 Linux": Machine("x86_64-manylinux_2_28", "", ("jaxlib", "isal")),
    "CPU, aarch64 Linux": Machine("aarch64-manylinux_2_28", "", ("jaxlib", "isal")),
    "Apple silicon": Machine("aarch64-apple-darwin", "", ("jaxlib", "isal")),
    "NVIDIA GPU": Machine("x86_64-manylinux_2_28", "gpu", ("jax-cuda13-plugin",)),
    "NVIDIA GPU, aarch64, such as GB10": Machine(
        "aarch64-manylinux_2_28", "gpu", ("jax-cuda13-plugin",)
    ),
    "NVIDIA V100": Machine(
        "x86_64-manylinux_2_28", "volta", ("jax-cuda12-plugin", "nvidia-cudnn-cu12==9.10.2.21")
    ),
    "TPU": Machine("x86_64-manylinux_2_31", "tpu", ("libtpu",)),
}
# array_record has no wheel for them.
NOWHERE = ("x86_64-apple-darwin", "x86_64-pc-windows-msvc")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def resolve(tmp_path_factory):
    """Asks uv what it would install on another machine: (platform, python, extra) -> its answer.

    pip has --platform too, but takes markers such as platform_machine from the machine it runs on.
    """
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if not uv:
        pytest.skip('no uv: install the test extra, pip install "geneformer_jax[test]"')
    folder = tmp_path_factory.mktemp("resolve")
    # tensorflow-datasets needs it, and it is pure Python, but comes as source alone.
    pip = [sys.executable, "-m", "pip"]
    source = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "wheels", "promise"]
    if subprocess.run(source, capture_output=True).returncode:
        pytest.skip("no package index")
    settings = runpy.run_path(str(PROJECT / "launch" / "install.py"))["settings_of_pip"](pip)

    def ask(platform: str, python: str, extra: str) -> subprocess.CompletedProcess:
        wanted = METADATA["optional-dependencies"][extra] if extra else []
        asked = folder / "asked.txt"
        asked.write_text("\n".join([*METADATA["dependencies"], *wanted]))
        return subprocess.run(
            [uv, "pip", "install", "--dry-run", "--target", folder / "none", "--only-binary=:all:",
             f"--find-links={folder / 'wheels'}", f"--python-platform={platform}",
             f"--python-version={python}", "--index-strategy=unsafe-best-match", "-r", asked],
            capture_output=True, text=True, env={**os.environ, **settings},
        )  # fmt: skip

    return ask


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_package_has_a_wheel(resolve, machine, python):
    platform, extra, brings = MACHINES[machine]
    done = resolve(platform, python, extra)
    assert done.returncode == 0, done.stderr
    would = re.findall(r"^ \+ (\S+)", done.stderr + done.stdout, re.M)
    for name in brings:
        assert any(f"{each}==".startswith(f"{name}==") for each in would), name
    (jax,) = [each for each in would if each.startswith("jax==")]
    (jaxlib,) = [each for each in would if each.startswith("jaxlib==")]
    assert jax.partition("==")[2].split(".")[:2] == jaxlib.partition("==")[2].split(".")[:2]


@pytest.mark.parametrize("platform", NOWHERE)
def test_where_it_cannot_be_installed_one_package_is_why(resolve, platform):
    done = resolve(platform, "3.12", "")
    assert done.returncode
    assert "array-record" in done.stderr and "no wheels with a matching platform" in done.stderr
