"""What README and docs tell users to type: flags and keys that exist, and chains that run.

Notebooks are executed where the site is built, see test_docs.py.
"""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

from tests.helpers.commands import COMMAND_FILES, run_command
from tests.helpers.readme_inputs import (
    Command,
    code_blocks,
    commands_in,
    made_up_cells,
    real_cells,
    write_census_of,
    write_inputs,
)
from tests.helpers.soma_files import require_tiledbsoma

PROJECT = Path(__file__).resolve().parents[1]
README = PROJECT / "README.md"
SKILL = PROJECT / "geneformer_jax" / "SKILL.md"
HOW_TOS = sorted((PROJECT / "docs" / "how_to").glob("*.md"))
PAGES = [*sorted((PROJECT / "docs").glob("*.md")), *HOW_TOS]
DOCUMENTS = [README, SKILL, *PAGES]
WITH_COMMANDS = [path for path in DOCUMENTS if commands_in(path)]
WITH_PYTHON = [path for path in DOCUMENTS if "python" in dict(code_blocks(path))]
CENSUS = "soma://"
FROM_CENSUS = [path for path in WITH_COMMANDS if CENSUS in path.read_text()]


# Of a block of the shell: what other tests run, of installing, of make and of completion.
ELSEWHERE = ("pip install ", "make ", 'eval "$(geneformer-jax --completion=')


# Flags of the program itself and of configurations; and of Ray, Slurm and kb-python.
OF_ALL = {"help", "version", "cite", "completion", "config"}
OF_OTHERS = {"head", "signal", "mm", "cellranger", "workflow"}


def named(path: Path) -> str:
    return path.stem


def test_readme_has_a_line_for_each_command():
    listed = [command.name for command in commands_in(README)]
    assert sorted(listed) == sorted(COMMAND_FILES)


def test_each_command_is_used_in_a_how_to():
    used = {
        part.name for path in DOCUMENTS[1:] for each in commands_in(path) for part in each.parts
    }
    assert used == set(COMMAND_FILES)


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", README.read_text())
    assert len(links) > 5
    assert [link for link in links if not (PROJECT / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_nothing_in_a_block_of_code_goes_untested(document):
    """A line that neither runs below nor is of a kind that another test runs."""
    for language, block in code_blocks(document):
        lines = block.replace("\\\n", " ").splitlines()
        lines = [line for line in lines if line and not line.startswith("#")]
        if language in ("", "bash"):
            known = ("geneformer-jax ", "python -m geneformer_jax.", *ELSEWHERE)
            assert [line for line in lines if not line.startswith(known)] == []
        else:
            assert language == "python"


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


def test_flags_and_keys_in_the_text_exist(monkeypatch, capsys):
    text = "\n".join(path.read_text() for path in [README, *PAGES])
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    inline = "\n".join(re.findall(r"`([^`\n]+)`", text))
    helps = [run_command(name, ["--help"], monkeypatch, capsys)[1] for name in COMMAND_FILES]
    flags = {flag for usage in helps for flag in re.findall(r"^  --(\w+)", usage, re.M)}
    named = set(re.findall(r"(?<![\w-])--(\w+)", inline))
    assert named - flags - OF_ALL - OF_OTHERS == set()
    keys = {key for usage in helps for key in re.findall(r"^  ([a-z_.]+)  ", usage, re.M)}
    sections = {key.rpartition(".")[0] for key in keys}
    used = set(re.findall(r"\bconfig\.([a-z_]+(?:\.[a-z_]+)*)", inline))
    assert used - keys - sections == {"json"}  # a file


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
@pytest.mark.parametrize("document", sorted({*WITH_COMMANDS, *WITH_PYTHON}), ids=named)
def test_code_runs_as_it_is_written(document, tmp_path, tmp_path_factory, monkeypatch, capsys):
    folder = tmp_path / "folder"
    if document in PAGES:
        begun = begin(tmp_path_factory.getbasetemp() / "begun", monkeypatch, capsys)
        shutil.copytree(begun, folder)
    else:
        folder.mkdir()
        write_inputs(folder, *made_up_cells())
    run_all(commands_in(document, without=CENSUS), folder, monkeypatch, capsys)
    names: dict = {}
    for language, block in code_blocks(document):
        if language == "python":
            exec(compile(block, document.name, "exec"), names)


def begin(folder: Path, monkeypatch, capsys) -> Path:
    """Makes what pages begin with, once: vocabulary, store and model, as the README does."""
    if not folder.exists():
        folder.mkdir()
        write_inputs(folder, *made_up_cells())
        run_all(commands_in(README)[:3], folder, monkeypatch, capsys)
    return folder


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
    shown = run_all(commands_in(README), tmp_path, monkeypatch, capsys)
    assert (cells.X > 0).sum(axis=1).max() > 1_800
    assert "of 192 cells have more than the 512 tokens that the model takes" in shown
    cut = json.loads((tmp_path / "embeddings.provenance.json").read_text())["counts"]["cells_cut"]
    assert cut > 150


def run_all(commands: list[Command], folder: Path, monkeypatch, capsys) -> str:
    """Runs commands one after another in a folder; returns what they print."""
    monkeypatch.chdir(folder)
    shown = []
    for name, arguments in commands:
        # Has tests of its own, as it ends only when it is interrupted.
        if name == "explore":
            continue
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
