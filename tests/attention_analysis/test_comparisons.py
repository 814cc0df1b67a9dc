"""Are some genes attended more than others: on planted structure and against slow versions."""

import numpy as np
import pytest
from scipy import stats

from geneformer_jax.attention_analysis.comparisons import (
    MAX_DISTANCE,
    compare_genes,
    has_own_matching,
    match_by_rank,
)
from geneformer_jax.attention_analysis.gene_lists import compare_lists
from geneformer_jax.common.errors import InputError
from tests.helpers.attention_means import means_of
from tests.helpers.toy import toy_vocabulary

GENES, LAYERS, HEADS = 400, 2, 3


@pytest.fixture
def planted():
    """Attention falls with rank in every head; listed genes stand high; one head prefers them."""
    rng = np.random.default_rng(0)
    rank = np.sort(rng.uniform(1, 500, GENES))
    listed = np.sort(rng.choice(150, 60, replace=False))
    others = np.setdiff1d(np.arange(GENES), listed)
    noise = rng.normal(0, 0.1, (GENES, LAYERS, HEADS))
    received = (3 - np.log10(rank))[:, None, None] + noise
    received[listed, 1, 2] += 0.3
    return means_of(received, rank), listed, others


def test_rank_alone_is_distinguished_from_preference(planted):
    table = compare_genes(*planted).set_index(["layer", "head"])
    assert table["prefers"].all(), "high ranks are attended in every head"
    assert table.index[table["prefers_matched"]].tolist() == [(2, 3)]
    assert table.loc[(2, 3), "effect_matched"] > 0.35
    assert table.drop(index=(2, 3))["effect_matched"].abs().max() < 0.25
    assert table["n_matched"].between(50, 60).all()


def test_tests_are_those_of_each_head_alone(planted):
    means, first, second = planted
    table = compare_genes(means, first, second)
    for row in table.itertuples():
        a, b = (means.received[side, row.layer - 1, row.head - 1] for side in (first, second))
        wanted = stats.mannwhitneyu(a, b)
        assert row.p == pytest.approx(wanted.pvalue, rel=1e-12)
        larger = (a[:, None] > b).mean() - (a[:, None] < b).mean()
        assert row.effect == pytest.approx(larger, abs=1e-12)
    adjusted = table["p"].sort_values() * len(table) / np.arange(1, len(table) + 1)
    stepped = adjusted[::-1].cummin()[::-1].clip(upper=1)
    np.testing.assert_allclose(table["fdr"], stepped.sort_index(), rtol=1e-12)


def slow_partners(few: np.ndarray, many: np.ndarray, seed: int) -> dict[int, int]:
    """Partners by going through all that are free; both sides in log rank."""
    furthest = MAX_DISTANCE * np.sqrt((np.var(few) + np.var(many)) / 2)
    free, chosen = set(range(len(many))), {}
    for index in np.random.default_rng(seed).permutation(len(few)):
        nearest = min(free, key=lambda each: abs(many[each] - few[index]))
        if abs(many[nearest] - few[index]) <= furthest:
            chosen[index] = nearest
            free.remove(nearest)
    return chosen


def test_partners_are_the_nearest_free_ones_within_reach():
    rng = np.random.default_rng(1)
    few, many = rng.uniform(1, 400, 20), rng.uniform(1, 100, 70)
    wanted = slow_partners(np.log(few), np.log(many), seed=3)
    assert 3 < len(wanted) < 15, "some are too far from all"
    assert dict(match_by_rank(few, many, seed=3).tolist()) == wanted
    swapped = match_by_rank(many, few, seed=3)
    assert {b: a for a, b in swapped.tolist()} == wanted


def test_lists_of_other_ranks_have_no_partners_and_no_second_answer():
    rank = np.concatenate([np.linspace(1, 5, 40), np.linspace(200, 900, 40)])
    received = np.random.default_rng(0).normal(1, 0.1, (80, LAYERS, HEADS))
    table = compare_genes(means_of(received, rank), np.arange(40), np.arange(40, 80))
    assert table["n_matched"].eq(0).all() and table["p"].notna().all()
    assert table[["effect_matched", "p_matched", "fdr_matched"]].isna().all(axis=None)
    assert not table["prefers_matched"].any()
    assert not has_own_matching(table)


def test_as_few_pairs_as_can_show_nothing_are_not_tested():
    rank = np.concatenate([np.arange(1, 41), np.arange(500, 540)]).astype(float)
    received = np.random.default_rng(0).normal(1, 0.1, (80, LAYERS, HEADS))
    listed = np.array([5, 15, 25, *range(60, 80)])
    others = np.array([4, 14, 24])
    table = compare_genes(means_of(received, rank), listed, others)
    assert table["n_matched"].eq(3).all() and table["p_matched"].isna().all()
    assert stats.mannwhitneyu([1, 2, 3], [4, 5, 6]).pvalue > 0.05, "the clearest three of three"


def test_lists_of_the_same_ranks_are_told_from_those_that_lose_genes():
    rank = np.tile(np.geomspace(1, 500, 30), 2)
    received = np.random.default_rng(0).normal(1, 0.1, (60, LAYERS, HEADS))
    same = compare_genes(means_of(received, rank), np.arange(30), np.arange(30, 60))
    assert same["n_matched"].eq(30).all()
    np.testing.assert_array_equal(same["effect"], same["effect_matched"])
    assert not has_own_matching(same)
    fewer = compare_genes(means_of(received, rank), np.arange(20), np.arange(30, 60))
    assert has_own_matching(fewer)


def test_examples_of_genes_in_enough_cells_are_such_genes():
    vocabulary = toy_vocabulary(genes=9)
    first = vocabulary.first_gene_token
    cells_of = np.zeros(first + 9, int)
    cells_of[:first] = 50
    lists = {"few": ["ENSG00000000001"]}
    with pytest.raises(InputError, match="needs 3; no gene is: give"):
        compare_lists(lists, vocabulary, cells_of, min_cells=10)
    cells_of[first + 4] = 10
    with pytest.raises(InputError, match="needs 3; genes such as ENSG00000000004 are: give"):
        compare_lists(lists, vocabulary, cells_of, min_cells=10)
