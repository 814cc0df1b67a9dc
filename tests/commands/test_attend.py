"""The command attend: what it writes, and what it refuses."""

import dataclasses
import html
import json

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.attention_analysis.api import attend_cells
from geneformer_jax.attention_analysis.run import AttentionRun
from geneformer_jax.attention_analysis.summary import answers
from geneformer_jax.model import pretrained
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.pages import Page, assert_files_are_linked
from tests.helpers.toy import toy_model, toy_vocabulary

GENES = [f"ENSG{number:011d}" for number in range(0, 60, 3)]


@pytest.fixture(scope="module")
def model() -> pretrained.PretrainedModel:
    return toy_model(3, layers=3, feed_forward=16, initializer_range=0.4)


@pytest.fixture
def attend(model, toy_store, tmp_path, monkeypatch, capsys):
    """Runs the command with a toy model; returns (exit status, output, error)."""
    monkeypatch.setattr(pretrained, "load_model", lambda path, quantize=None: model)
    (tmp_path / "genes.txt").write_text("\n".join(GENES))

    def run(*arguments: str) -> tuple[int, str, str]:
        defaults = {
            "--checkpoint": "toy",
            "--cells": str(toy_store.folder),
            "--output": str(tmp_path / "out"),
            "--genes": str(tmp_path / "genes.txt"),
            "--max_cells": "40",
        }
        given = [argument.partition("=")[0] for argument in arguments]
        defaults = [f"{name}={value}" for name, value in defaults.items() if name not in given]
        return run_command("attend", [*defaults, *arguments], monkeypatch, capsys)

    return run


def test_tables_figures_and_report_are_written(attend, model, toy_store, tmp_path):
    pairs = ",".join(GENES[:3])
    status, output, error = attend(
        "--control=random", "--groupby=kind", f"--pairs={pairs}", "--layers=1,3", "--heads=2"
    )
    assert status == 0, error
    folder = tmp_path / "out"
    assert not (tmp_path / "out.parts").exists()
    found = attend_cells(
        model, toy_store, {"genes": GENES}, groupby="kind", control=True, max_cells=40
    )
    heads = pd.read_parquet(folder / "heads.parquet")
    pd.testing.assert_frame_equal(heads, found.heads, rtol=1e-4)
    statements = pd.read_parquet(folder / "statements.parquet")
    pd.testing.assert_frame_equal(statements, found.statements)
    assert "\n".join(answers(found)) in output
    genes = pd.read_parquet(folder / "genes.parquet")
    assert set(genes["group"]) == {"all cells", "a", "b"}
    assert set(genes["layer"]) == {1, 3}
    assert set(genes["head"]) == {2}
    assert np.isfinite(genes["received"]).all()
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert drawn == {"groups", "layers", "pairs", "preference_genes_vs_other_genes", "ranks"}
    page = html.unescape((folder / "report.html").read_text())
    assert page.count("<img width") == len(drawn)
    assert "20 % (5 of 24)" not in page, "the paper speaks of transcription factors"
    assert all(f">{line[0].upper()}{line[1:]}.</p>" in page for line in answers(found))
    files = sorted(path.name for path in folder.iterdir() if path.name != "report.html")
    assert_files_are_linked(Page(page), folder, files)
    assert json.loads((folder / "provenance.json").read_text())["counts"]["cells"] == 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers=0"], "--layers is 0: the model has 3; give numbers from 1 to 3"),
        (["--heads=1,3"], "--heads is 1,3: the model has 2; give numbers from 1 to 2"),
        (["--layers=first"], "--layers=first must list numbers"),
        (["--genes=nowhere.txt"], "nowhere.txt does not exist"),
        (["--groupby=kin"], 'no obs column "kin" (did you mean "kind"?)'),
        (["--groupby=kind", "--min_cells=39"], "--groupby: no value of column"),
        (["--attention=splash"], '"splash" never holds its weights'),
        (["--pairs=nobody,nothing"], 'gene "nobody" is not in the vocabulary'),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(attend, tmp_path, arguments, words):
    status, _, error = attend(*arguments)
    assert status == 1
    assert_one_line(error)
    assert words in error
    assert not list(tmp_path.glob("out*"))


def test_lists_that_match_nothing_show_both_sides(attend, tmp_path):
    mouse = tmp_path / "mouse.txt"
    mouse.write_text("ENSMUSG00000000001\nENSMUSG00000000003\n")
    status, _, error = attend(f"--genes={mouse}")
    assert status == 1
    assert_one_line(error)
    assert "none of the 2 genes of mouse" in error
    assert "ENSMUSG00000000001, ENSMUSG00000000003" in error
    assert "ENSG00000000000" in error


def test_cells_of_another_vocabulary_are_refused(attend, model, monkeypatch):
    other = toy_vocabulary(("<pad>", "<mask>", "<cls>", "<eos>"))
    config = dataclasses.replace(model.config, vocabulary_size=other.size)
    another = dataclasses.replace(model, vocabulary=other, config=config)
    monkeypatch.setattr(pretrained, "load_model", lambda path, quantize=None: another)
    status, _, error = attend()
    assert status == 1
    assert_one_line(error)
    assert "the cells were tokenised with vocabulary" in error


def test_a_folder_of_something_else_is_not_overwritten(attend, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    status, _, error = attend()
    assert status == 1
    assert_one_line(error)
    assert "was not written by this command" in error
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_listed_genes_that_are_not_there_are_named(attend, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(["Gene symbol", *GENES, "TP53", "MYC"]))
    given = (f"--genes={tmp_path}/list.txt", f"--pairs={GENES[0]},{GENES[1]},TP53")
    status, output, error = attend(*given, "--max_cells=12")
    assert status == 0, error
    left_out = pd.read_csv(tmp_path / "out" / "genes_left_out.tsv", sep="\t")
    unknown = left_out[left_out["reason"] == "not in the vocabulary"]
    assert unknown["gene"].tolist() == ["TP53", "MYC"] and set(left_out["list"]) == {"list"}
    assert "not in the vocabulary: 2 (TP53, MYC)" in output
    assert "not in the vocabulary: 1 (TP53)" in output  # of the pairs
    assert "genes_left_out.tsv" in (tmp_path / "out" / "report.html").read_text()


def test_the_same_command_again_does_nothing_and_another_is_refused(attend, tmp_path, monkeypatch):
    assert attend("--max_cells=12")[0] == 0
    monkeypatch.setattr(AttentionRun, "prepare", None)
    status, output, _ = attend("--max_cells=12")
    assert status == 0 and "nothing to do" in output
    status, _, error = attend("--max_cells=13")
    assert status == 1
    assert_one_line(error)
    assert "was not written by this command" in error
