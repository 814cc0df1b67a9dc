"""The documentation site: every public name has its place, and it builds without a warning."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import geneformer_jax as gf

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"


def test_the_reference_has_every_public_name():
    text = (DOCS / "python_reference.md").read_text()
    shown = set(re.findall(r"^\.\. auto\w+:: geneformer_jax\.([\w.]+)", text, re.M))
    modules = {name: importlib.import_module(path) for name, path in gf._MODULES.items()}
    public = {name for name in gf.__all__ if name not in modules} - {"__version__"}
    public |= {f"{name}.{each}" for name, module in modules.items() for each in module.__all__}
    assert public <= shown


@pytest.mark.slow
def test_the_site_builds_from_nothing_without_a_warning(tmp_path):
    if find_spec("sphinx") is None or find_spec("myst_nb") is None:
        pytest.skip('no Sphinx: install the docs extra, pip install "geneformer_jax[docs]"')
    # A copy, for notebooks keep cells in docs/_build.
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns(".*", "_build", "quickstart"))
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "docs", "site"]
    # As for users: on the devices that there are, where tests make up some.
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    variables["PYTHONPATH"] = str(project)
    built = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {path.stem for path in (project / "site").rglob("*.html")}
    assert {path.stem for path in (project / "docs").rglob("*.md")} <= pages
