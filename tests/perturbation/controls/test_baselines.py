"""Genes of two states compared without a model, beside slow versions and planted truth."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import ranksums, spearmanr

from geneformer_jax.cells.tokenization.tokenizer import tokenize_cells
from geneformer_jax.inference.cells import open_cells, select_cells
from geneformer_jax.inference.counts import expression_reader
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from geneformer_jax.perturbation.controls import baselines
from geneformer_jax.perturbation.controls.baselines import (
    compare_states,
    covariance_shifts,
    differential_expression,
    rank_values,
)
from tests.helpers.toy import toy_model, toy_vocabulary
from tests.helpers.toy_screens import CONTROL, gene_id, toy_screen

CELLS, GENES = 40, 30


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = np.round(rng.uniform(size=(CELLS, GENES)), 1) * (
        rng.uniform(size=(CELLS, GENES)) < 0.6
    )
    values[:, -1] = 0
    return values


@pytest.fixture(scope="module")
def is_goal() -> np.ndarray:
    return np.arange(CELLS) % 3 == 0


def test_genes_are_compared_as_by_a_rank_sum_test_of_each(dense, is_goal):
    effects, p_values = differential_expression(sparse.csr_matrix(dense), is_goal)
    for gene in range(GENES):
        goal, others = dense[is_goal, gene], dense[~is_goal, gene]
        assert p_values[gene] == pytest.approx(ranksums(goal, others).pvalue)
        above = np.sign(goal[:, None] - others).mean()
        assert effects[gene] == pytest.approx(above)


def test_covariance_predicts_as_the_columns_of_the_matrix_do(dense, is_goal):
    start, away = dense[~is_goal], dense[is_goal].mean(axis=0) - dense[~is_goal].mean(axis=0)
    columns = np.cov(start.T, bias=True)
    expected = [-columns[:, gene] @ away / np.linalg.norm(away) for gene in range(GENES)]
    found = covariance_shifts(sparse.csr_matrix(dense), is_goal)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_genes_stand_from_one_down_and_special_tokens_are_no_genes():
    vocabulary = toy_vocabulary(("<pad>", "<mask>", "<cls>", "<eos>"))
    cells = [np.array([2, 10, 4, 7, 5, 3]), np.array([2, 6, 3])]
    values = rank_values(cells, vocabulary).toarray()
    assert values[0, [10, 4, 7, 5]].tolist() == [1, 0.75, 0.5, 0.25]
    assert values[1, 6] == 1 and values.sum() == 3.5


class Cells:
    """Cells of two states: gene 3 is always first, gene 5 leads in state b and ends in a."""

    vocabulary = toy_vocabulary(("<pad>", "<mask>"))

    def __init__(self, states: list[str]):
        self.obs = pd.DataFrame({"kind": states})
        self.lengths = np.full(len(states), 82)

    def read(self, rows):
        rng = np.random.default_rng(1)
        others = [rng.permutation(np.arange(10, 90)) for _ in self.lengths]
        leads = self.obs["kind"] == "b"
        cells = [[5, *own] if lead else [*own, 5] for lead, own in zip(leads, others, strict=True)]
        return [np.array([3, *cells[row]], np.uint16) for row in rows]


def test_the_gene_that_differs_is_found_and_no_other(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_CELLS", 25)
    table, sizes = compare_states(Cells(["a"] * 40 + ["b"] * 30 + [None] * 9), "kind", "b", "a")
    assert sizes == {"b": 25, "a": 25}
    differs = table.set_index("perturbed").query("DE_FDR < 0.01")
    gene = Cells.vocabulary.gene_id_of(5)
    assert list(differs.index) == [gene] and differs["DE_effect_size"][gene] == 1
    assert len(table) == 82


def test_without_a_start_all_others_are_compared_and_nothing_without_them():
    cells = Cells(["a"] * 5 + ["b"] * 6 + ["c"] * 7)
    assert compare_states(cells, "kind", "b")[1] == {"b": 6, "all others": 12}
    table, sizes = compare_states(Cells(["b"] * 6), "kind", "b")
    assert table.empty and sizes["all others"] == 0


@pytest.mark.slow
def test_counts_are_compared_as_scanpy_does(tmp_path):
    scanpy = pytest.importorskip("scanpy")
    cells = toy_screen()
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    model, column, goal = toy_model(), "target", gene_id(5)
    filters = {column: [goal, CONTROL]}
    chosen = select_cells(open_cells(path, model), filters)
    expression = expression_reader(chosen, path, {})
    table, _ = compare_states(chosen, column, goal, CONTROL, expression=expression)
    cells.X = cells.X.astype(np.float64)
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    named = {"groups": [goal], "reference": CONTROL, "method": "wilcoxon"}
    scanpy.tl.rank_genes_groups(cells, column, **named)
    expected = scanpy.get.rank_genes_groups_df(cells, goal).set_index("names")
    found = table.set_index("perturbed").reindex(expected.index)
    np.testing.assert_allclose(found["DE_pval"], expected["pvals"], rtol=1e-4)
    assert (np.sign(found["DE_effect_size"]) == np.sign(expected["scores"])).all()


def test_cells_without_counts_have_none_to_compare(toy_store):
    chosen = select_cells(toy_store)
    assert expression_reader(chosen, toy_store.folder, {}) is None


@pytest.mark.slow
@pytest.mark.reference_data
def test_ranks_give_the_order_of_genes_that_scanpy_finds_in_counts(data_dir):
    scanpy = pytest.importorskip("scanpy")
    adata = ad.read_h5ad(data_dir / "cells" / "pbmc_ifnb_kang.h5ad")
    adata = adata[:, (adata.X > 0).mean(axis=0) > 0.1].copy()
    adata.var_names = adata.var["ensembl_id"].astype(str)
    vocabulary = read_original_vocabulary(data_dir / "dictionaries" / "v1_gc30M")
    table, _ = compare_states(tokenize_cells(adata, vocabulary), "stim", "ctrl", "stim")
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    scanpy.tl.rank_genes_groups(adata, "stim", groups=["ctrl"], reference="stim", method="wilcoxon")
    scores = scanpy.get.rank_genes_groups_df(adata, "ctrl").set_index("names")["scores"]
    ours = table.set_index("perturbed")["DE_effect_size"].reindex(scores.index)
    known = ours.notna()
    assert known.sum() > 900 and spearmanr(ours[known], scores[known])[0] > 0.95
