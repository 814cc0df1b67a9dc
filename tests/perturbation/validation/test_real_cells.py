"""Blood cells with and without interferon: what is known of them must be measured."""

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import geneformer_jax as gf
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from geneformer_jax.perturbation.statistics.shifts import goal_state_shift
from geneformer_jax.perturbation.validation.screen.expression import (
    measure_expression,
    split_halves,
)
from tests.helpers.toy import toy_model

# Stimulated by interferon in all blood cells (Kang et al., Nature Biotechnology 36, 2018).
STIMULATED = ("ISG15", "ISG20", "IFI6", "IFIT1", "IFIT3", "MX1", "LY6E", "OAS1", "IFITM3", "IRF7")

pytestmark = pytest.mark.reference_data


@pytest.fixture(scope="module")
def cells(data_dir) -> ad.AnnData:
    return ad.read_h5ad(data_dir / "cells" / "pbmc_ifnb_kang.h5ad")


def test_genes_that_interferon_stimulates_are_found_in_both_halves(cells):
    groups = np.where(cells.obs["stim"] == "stim", 0, 1)
    totals = cells.obs["n_counts"].to_numpy(np.float64)
    batch = [(np.arange(cells.n_obs), cells.X.tocsr(), totals)]
    genes = np.arange(cells.n_vars)
    found = measure_expression(
        batch, genes, groups, split_halves(groups, seed=0), (2, len(genes))
    )  # fmt: skip
    names = cells.var["gene_symbol"].astype(str).to_numpy()
    own = np.isin(names, STIMULATED)
    statistics = []
    for half in (0, 1):
        differential = found.differential(half)
        assert (differential.rates[0][own] < 1e-6).all()
        assert (differential.fold_changes[0][own] > 1).all()
        assert own[np.argsort(-np.nan_to_num(differential.statistics[0]))[:12]].sum() >= 7
        statistics.append(np.nan_to_num(differential.statistics[0]))
    assert np.corrcoef(statistics)[0, 1] > 0.6


@pytest.mark.slow
def test_stimulated_genes_beside_genes_of_like_rank(cells, data_dir):
    """Asks it of random weights: the number of cells tells such genes, these weights do not."""
    vocabulary = read_original_vocabulary(data_dir / "dictionaries" / "v1_gc30M")
    shape = toy_model(genes=len(vocabulary.gene_ids), positions=512)
    model = dataclasses.replace(shape, vocabulary=vocabulary)
    common = np.asarray((cells.X > 0).mean(axis=0)).ravel() > 0.2
    named = [*STIMULATED, *cells.var["gene_symbol"].astype(str)[common]]
    states = {"column": "stim", "start": "stim", "goal": "ctrl"}
    shifts = gf.perturb_cells(
        model, cells, states=states, genes=list(dict.fromkeys(named)), max_cells=20, hidden_layer=0
    )  # fmt: skip
    table = goal_state_shift([shifts[shifts["measure"] == "state_shift"]], "ctrl")
    found = gf.validate_hits(table, pd.DataFrame({"gene": STIMULATED}), min_cells=5)
    row = found.metrics.set_index("protocol").loc["roc_auc"]
    kept = table[table["N_Detections"] >= 5]
    is_stimulated = kept["Gene_name"].isin(STIMULATED)
    assert is_stimulated.sum() >= 8
    assert row["prediction"] == pytest.approx(
        roc_auc_score(is_stimulated, kept["Shift_to_goal_end"])
    )
    assert row["cells"] == pytest.approx(roc_auc_score(is_stimulated, kept["N_Detections"]))
    assert row["pval"] > 0.001
