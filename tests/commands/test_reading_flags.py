"""Every command that takes counts takes the options of how they are read."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.embedding.embedder import KEY
from geneformer_jax.finetuning.classification.config import TaskConfig
from geneformer_jax.model import pretrained
from geneformer_jax.model.heads import HeadConfig
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.toy import GENES, toy_cells, toy_model, toy_vocabulary

NEEDED = {
    "attend": ["--genes={folder}/genes.txt"],
    "embed": [],
    "perturb": ["--genes=ENSG00000000000"],
    "predict": [],
}
COUNTED = ("build_vocabulary", "tokenize")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command on made-up cells with estimated counts; returns (status, output, error)."""
    head = HeadConfig("cell_classifier", ("a", "b"), dropout=0.0)
    plain, classifier = toy_model(positions=64), toy_model(positions=64, head=head)
    adata = toy_cells(24)
    adata.X = adata.X.astype(np.float32)
    adata.X.data[::7] += 0.25
    adata.write_h5ad(tmp_path / "cells.h5ad")
    toy_vocabulary().save(tmp_path / "vocabulary")
    (tmp_path / "genes.txt").write_text("\n".join(f"ENSG{n:011d}" for n in range(0, GENES, 3)))

    def command(name, *arguments):
        model = classifier if name == "predict" else plain
        monkeypatch.setattr(pretrained, "load_model", lambda path, quantize=None: model)
        given = [f"--output={tmp_path / 'out.h5ad'}"]
        if name in COUNTED:
            given.append(f"--counts={tmp_path / 'cells.h5ad'}")
            given += [f"--vocabulary={tmp_path / 'vocabulary'}"] if name == "tokenize" else []
        else:
            # Before the output: given twice in a row they would be refused.
            given = [f"--cells={tmp_path / 'cells.h5ad'}", "--checkpoint=toy", *given]
            given += [each.format(folder=tmp_path) for each in NEEDED[name]]
        return run_command(name, [*given, *arguments], monkeypatch, capsys)

    return command


@pytest.mark.parametrize("name", [*NEEDED, *COUNTED])
def test_the_options_reach_the_counts(name, run):
    status, _, error = run(name)
    assert status == 1
    # Progress may stand before it.
    assert_one_line(error.splitlines()[-1])
    assert '--fractional: "round"' in error
    status, _, error = run(name, "--counts_layer=umi", "--fractional=keep")
    assert status == 1
    assert 'no layer "umi"' in error
    status, _, error = run(name, "--gene_column=genes", "--fractional=keep")
    assert status == 1
    assert 'no column "genes"' in error


@pytest.mark.parametrize("name", [*NEEDED, *COUNTED])
def test_a_matrix_given_by_an_old_flag_names_todays(name, run):
    for given in (["--layer=raw"], ["--layer", "raw"]):
        status, _, error = run(name, *given)
        assert status == 1
        assert_one_line(error)
        assert "raw counts is named by --counts_layer" in error


@pytest.mark.parametrize(
    "name",
    ["embed", "predict", *(pytest.param(n, marks=pytest.mark.slow) for n in ("perturb", "attend"))],
)
def test_counts_in_a_layer_and_ids_in_a_column_are_found(name, run, tmp_path):
    """As analysed cells are saved: X normalised, symbols in the index."""
    adata = toy_cells(24)
    adata.layers["umi"], adata.X = adata.X, adata.X.astype(np.float32).log1p()
    adata.var = pd.DataFrame({"gene_ids": adata.var_names}, [f"SYM{n}" for n in range(GENES)])
    adata.write_h5ad(tmp_path / "analysed.h5ad")
    status, output, error = run(name, f"--cells={tmp_path / 'analysed.h5ad'}")
    assert status == 0, error
    assert "counts in layers/umi, gene ids in gene_ids" in output
    (facts,) = [*tmp_path.glob("out*/provenance.json"), *tmp_path.glob("out.provenance.json")]
    counts = json.loads(facts.read_text())["counts"]
    assert counts["cells_cut"] == ((adata.layers["umi"] > 0).sum(axis=1) > 64).sum() > 0
    read = counts["counts_read"]
    assert read["counts_matrix"] == "layers/umi"
    assert read["gene_column"] == "gene_ids"
    assert read["matched_gene_ids"] == GENES


def test_estimated_counts_are_embedded(run, tmp_path):
    status, _, error = run("embed", "--fractional=keep")
    assert status == 0, error
    assert ad.read_h5ad(tmp_path / "out.h5ad").obsm[KEY].shape[0] == 24


def test_a_configuration_of_a_task_has_them():
    task = TaskConfig(counts="cells.h5ad", counts_layer="raw", fractional="round")
    assert task.reading() == CountOptions(counts_layer="raw", fractional="round")


def test_cells_in_the_home_folder(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    status, _, error = run("embed", "--fractional=round", "--cells=~/cells.h5ad")
    assert status == 0, error
