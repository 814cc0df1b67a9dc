"""What README and docs tell users to type: flags and keys that exist, and chains that run."""

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.helpers.commands import run_command
from tests.helpers.readme_inputs import (
    Command,
    commands_in,
    made_up_cells,
    real_cells,
    write_census_of,
    write_inputs,
)
from tests.helpers.soma_files import require_tiledbsoma

PROJECT = Path(__file__).resolve().parents[1]
SKILL = PROJECT / "geneformer_jax" / "SKILL.md"
DOCUMENTS = [PROJECT / "README.md", SKILL, *sorted((PROJECT / "docs").glob("*.md"))]
WITH_COMMANDS = [path for path in DOCUMENTS if commands_in(path)]
CENSUS = "soma://"
FROM_CENSUS = [path for path in WITH_COMMANDS if CENSUS in path.read_text()]


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=named)
def test_flags_and_keys_are_those_the_commands_have(document, monkeypatch, capsys):
    commands = [part for command in commands_in(document) for part in command.parts]
    for name in {command.name for command in commands}:
        _, usage, _ = run_command(name, ["--help"], monkeypatch, capsys)
        known = set(re.findall(r"^  --(\w+)", usage, re.M))
        for command in commands:
            if command.name == name:
                given = {flag for flag in command.flags if not flag.startswith("config.")}
                assert given <= known
                check_keys(command.flags)


def check_keys(flags: dict[str, str]) -> None:
    """Fails with KeyError if a configuration has no such key."""
    if "config" in flags:
        config = runpy.run_path(str(PROJECT / flags["config"]))["get_config"]()
        for flag in flags:
            if flag.startswith("config."):
                value = config
                for part in flag.split(".")[1:]:
                    value = value[part]


@pytest.mark.slow
@pytest.mark.parametrize("document", WITH_COMMANDS, ids=named)
def test_commands_run_as_they_are_written(document, tmp_path, monkeypatch, capsys):
    write_inputs(tmp_path, *made_up_cells())
    run_all(commands_in(document, without=CENSUS), tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("document", FROM_CENSUS, ids=named)
def test_commands_run_on_a_census(document, tmp_path, monkeypatch, capsys):
    require_tiledbsoma()
    write_inputs(tmp_path, *made_up_cells())
    write_census_of(tmp_path, *made_up_cells())
    blocks = commands_in(document, without=CENSUS)
    commands = [command for command in commands_in(document) if command not in blocks]
    run_all(commands, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.reference_data
def test_the_chain_of_the_readme_runs_on_real_cells(data_dir, tmp_path, monkeypatch, capsys):
    """Cells with several times the tokens that the model of the chain takes."""
    cells, genes = real_cells(data_dir / "cells" / "pbmc3k.h5ad")
    write_inputs(tmp_path, cells, genes)
    shown = run_all(
        commands_in(PROJECT / "README.md", without=CENSUS), tmp_path, monkeypatch, capsys
    )
    assert (cells.X > 0).sum(axis=1).max() > 1_800
    assert "of 192 cells have more than the 512 tokens that the model takes" in shown
    cut = json.loads((tmp_path / "embeddings.provenance.json").read_text())["counts"]["cells_cut"]
    assert cut > 150


def run_all(commands: list[Command], folder: Path, monkeypatch, capsys) -> str:
    """Runs commands one after another in a folder; returns what they print."""
    monkeypatch.chdir(folder)
    shown = []
    for name, arguments in commands:
        # Compiling for other hardware has tests of its own, which take minutes.
        if any(argument.startswith("--target=tpu") for argument in arguments):
            continue
        both = [arguments]
        if "--shard=0/2" in arguments:
            both.append([each.replace("=0/2", "=1/2") for each in arguments])
        for each in both:
            status, output, error = run_command(name, each, monkeypatch, capsys)
            assert status == 0, f"{name} {each}\n{output}\n{error}"
            shown.append(output)
    return "\n".join(shown)
