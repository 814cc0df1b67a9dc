"""The paper's quality control against one cell at a time, and rules one by one."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.tokenization.quality_control import (
    HUMAN_MITOCHONDRIAL_IDS,
    QualityMeasures,
    QualityRules,
    judge,
    measure,
    mitochondrial_columns,
)
from geneformer_jax.common.errors import InputError
from tests.helpers.count_files import example_cells

OFF = {"total_sd": None, "mitochondrial_sd": None, "min_genes": None}


@pytest.fixture
def adata():
    adata = example_cells(n_cells=200, n_genes=60, seed=4)
    symbols = adata.var["gene_symbol"].to_list()
    symbols[:3] = ["MT-ND1", "mt-Co1", "MTOR"]
    adata.var["gene_symbol"] = symbols
    return adata


@pytest.mark.parametrize("repeated", [False, True])
def test_measures_equal_those_of_one_cell_at_a_time(adata, repeated):
    tokens = np.arange(60) + 2
    tokens[::4] = -1
    if repeated:
        tokens[[10, 30]] = tokens[1]
    measures = measure(AnnDataSource(adata), tokens)
    for cell, row in enumerate(adata.X.toarray()):
        total = adata.obs["n_counts"].iloc[cell]
        assert measures.totals[cell] == total
        assert measures.detected[cell] == len(
            {t for t, n in zip(tokens, row, strict=True) if n} - {-1}
        )
        fraction = (row[0] + row[1]) / total if total else 0.0
        assert measures.mitochondrial[cell] == pytest.approx(fraction, abs=1e-15)
    assert measures.detected.dtype == np.int32


def test_mitochondrial_genes_by_symbol_or_id():
    known = sorted(HUMAN_MITOCHONDRIAL_IDS)
    assert len(known) == 37
    counts = sparse.csr_matrix(np.ones((1, 5), int))
    ids = [known[0], known[1] + ".2", "ENSG00000000001", "MT-CO1", "MTOR"]
    source = AnnDataSource(anndata.AnnData(counts, var=pd.DataFrame(index=ids)))
    assert mitochondrial_columns(source).tolist() == [True, True, False, True, False]


@pytest.mark.reference_data
def test_mitochondrial_genes_of_real_cells_agree_with_their_symbols(data_dir):
    source = open_counts(data_dir / "cells" / "combat_covid.h5ad")
    by_symbol = np.array([name.startswith("MT-") for name in source.symbols])
    by_id = np.array([name in HUMAN_MITOCHONDRIAL_IDS for name in source.gene_ids])
    assert by_symbol.sum() >= 13
    np.testing.assert_array_equal(by_symbol, by_id)
    np.testing.assert_array_equal(mitochondrial_columns(source), by_symbol)


def measures_of(totals, mitochondrial, detected):
    fractions = None if mitochondrial is None else np.array(mitochondrial, float)
    return QualityMeasures(np.array(totals, float), fractions, np.array(detected, np.int32))


def test_each_rule_drops_its_own_and_a_cell_counts_once():
    rng = np.random.default_rng(5)
    totals = rng.normal(1000, 10, 100)
    fractions = rng.normal(0.05, 0.001, 100)
    detected = np.full(100, 500)
    totals[3] = 3000
    fractions[[3, 7]] = 0.9
    detected[11], detected[12] = 6, 7
    obs = pd.DataFrame(index=[f"c{n}" for n in range(100)])
    verdict = judge(QualityRules(), obs, measures_of(totals, fractions, detected))
    assert np.flatnonzero(~verdict.keep).tolist() == [3, 7, 11]
    assert list(verdict.dropped.values()) == [1, 1, 1]
    assert verdict.skipped == ()
    for off, kept in [("total_sd", []), ("mitochondrial_sd", [7]), ("min_genes", [11])]:
        rules = QualityRules(**{off: None})
        verdict = judge(rules, obs, measures_of(totals, fractions, detected))
        assert sorted({3, 7, 11} - set(np.flatnonzero(~verdict.keep))) == kept
        assert len(verdict.dropped) == 2


def test_three_standard_deviations_are_those_of_the_cells():
    totals = np.array([0.0] * 99 + [1.0])
    center, spread = totals.mean(), totals.std()
    for largest in (1.0, 9.9, 10.0):
        rules = QualityRules(**{**OFF, "total_sd": largest})
        verdict = judge(rules, pd.DataFrame(index=range(100)), measures_of(totals, None, [9] * 100))
        expected = [abs(total - center) <= largest * spread for total in totals]
        assert verdict.keep.tolist() == expected


def test_excluded_cells_do_not_count_for_the_mean():
    totals = np.array([100.0] * 50 + [110.0] * 50 + [1e6] * 30 + [200.0])
    obs = pd.DataFrame({"origin": ["normal"] * 100 + ["tumour"] * 30 + ["normal"]})
    rules = QualityRules(**{**OFF, "total_sd": 3.0, "exclude": {"origin": ["tumour", "line"]}})
    verdict = judge(rules, obs, measures_of(totals, None, [9] * 131))
    assert verdict.dropped == {
        "origin is tumour or line": 30,
        "total is beyond 3 s.d. of the mean": 1,
    }
    assert not verdict.keep[130]


@pytest.mark.parametrize(
    "values",
    [[1, 0, 1, 2], [1.0, 0.0, 1.0, np.nan], [True, False, True, False], ["1", "0", "1", ""],
     ["True", "False", "TRUE", ""]],
)  # fmt: skip
def test_filter_column_keeps_ones(values):
    column = pd.Series(values)
    if column.dtype.kind not in "ifb":
        column = column.replace("", None)
    rules = QualityRules(**OFF, filter_column="filter_pass")
    verdict = judge(rules, pd.DataFrame({"filter_pass": column}))
    assert verdict.keep.tolist() == [True, False, True, False]
    assert verdict.dropped == {"filter_pass is not 1": 2}


def test_a_filter_column_of_text_is_refused():
    rules = QualityRules(**OFF, filter_column="state")
    with pytest.raises(InputError, match='"state" has the value "good"'):
        judge(rules, pd.DataFrame({"state": ["good", "bad"]}))


def test_exclusions_of_categories_and_numbers():
    obs = pd.DataFrame({"kind": pd.Categorical(["a", "b", None]), "batch": [1, 2, 3]})
    verdict = judge(QualityRules(**OFF, exclude={"kind": ["b"], "batch": ["3"]}), obs)
    assert verdict.keep.tolist() == [True, False, False]
    assert verdict.dropped == {"kind is b": 1, "batch is 3": 1}


def test_without_mitochondrial_genes_the_rule_is_skipped_and_said():
    verdict = judge(
        QualityRules(), pd.DataFrame(index=range(3)), measures_of([9] * 3, None, [9] * 3)
    )
    assert verdict.keep.all()
    assert "mitochondrial" in verdict.skipped[0]


def test_rules_say_what_they_need():
    assert not QualityRules(**OFF).need_counts
    assert QualityRules().need_counts
    rules = QualityRules(filter_column="a", exclude={"b": ["x"], "a": ["0"]})
    assert rules.obs_columns == ["a", "b"]
    with pytest.raises(InputError, match="min_genes"):
        QualityRules(min_genes=0)


def test_all_cells_dropped_before_the_means():
    rules = QualityRules(exclude={"kind": ["a"]})
    verdict = judge(rules, pd.DataFrame({"kind": ["a", "a"]}), measures_of([1, 2], [0, 0], [9, 9]))
    assert not verdict.keep.any()
    assert list(verdict.dropped.values()) == [2, 0, 0, 0]
