"""Measured expression of groups of cells, beside plain versions; genes of like rank."""

import numpy as np
import pytest
from scipy import sparse, stats

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.validation.screen.expression import (
    measure_expression,
    size_factors,
    split_halves,
)
from geneformer_jax.perturbation.validation.screen.like_rank import genes_of_like_rank, visibility

RNG = np.random.default_rng(0)


def test_means_and_tests_are_those_of_the_cells():
    counts = RNG.poisson(3.0, (60, 7))
    groups = np.repeat([0, 1, 2, -1], 15)
    halves = split_halves(groups, seed=1)
    totals = counts.sum(axis=1) + 5.0
    # Column 6 is no gene; columns 2 and 5 are the same gene.
    tokens = np.array([4, 3, 2, 1, 0, 2, -1])
    order = RNG.permutation(60)
    parts = [(rows, sparse.csr_matrix(counts[rows]), totals[rows]) for rows in
             np.array_split(order, 4)]  # fmt: skip
    found = measure_expression(parts, tokens, groups, halves, (3, 6))
    genes = np.stack([counts[:, 4], counts[:, 3], counts[:, 2] + counts[:, 5], counts[:, 1],
                      counts[:, 0], 0 * counts[:, 0]], axis=1)  # fmt: skip
    logged = np.log1p(genes / totals[:, None] * 10_000)
    for half in (0, 1):
        differential = found.differential(half)
        controls = logged[(groups == 2) & (halves == half)]
        for group in (0, 1):
            own = (groups == group) & (halves == half)
            assert found.cells[group, half] == own.sum()
            np.testing.assert_allclose(found.sums[group, half], genes[own].sum(axis=0))
            expected = stats.ttest_ind(logged[own], controls)
            np.testing.assert_allclose(differential.statistics[group][:5], expected.statistic[:5])
            rates = stats.false_discovery_control(expected.pvalue[:5])
            np.testing.assert_allclose(differential.rates[group][:5], rates)
            assert np.isnan(differential.rates[group][5])


def test_random_groups_of_a_few_cells_differ_in_no_gene():
    """Most genes are rare, as in real cells: none of 5 cells has them, and a variance of 0."""
    rng = np.random.default_rng(2)
    counts = rng.poisson(rng.lognormal(-2, 1.5, 2_000), (410, 2_000))
    groups = np.append(np.repeat([0], 10), np.repeat([1], 400))
    parts = [(np.arange(410), sparse.csr_matrix(counts), counts.sum(axis=1))]
    found = measure_expression(parts, np.arange(2_000), groups, split_halves(groups, 0), (2, 2_000))
    for half in (0, 1):
        rates = found.differential(half).rates[0]
        is_tested = np.isfinite(rates)
        assert 20 < is_tested.sum() < 1_000
        assert (rates[is_tested] < 0.05).sum() <= 1


def test_halves_are_even_in_each_group_and_drawn():
    groups = RNG.permutation(np.repeat([-1, 0, 1, 2], [4, 7, 20, 31]))
    halves = split_halves(groups, seed=0)
    for group in range(3):
        sizes = np.bincount(halves[groups == group])
        assert abs(sizes[0] - sizes[1]) <= 1
    assert (halves != split_halves(groups, seed=1)).any()
    assert (halves == split_halves(groups, seed=0)).all()


def test_size_factors_follow_depth_and_not_a_few_strong_genes():
    controls = RNG.uniform(50, 500, 200)
    sums = np.stack([controls * 0.3, controls * 2])
    sums[0, :20] *= 50
    np.testing.assert_allclose(size_factors(sums, controls), [0.3, 2])
    # With hardly any counts only totals are left.
    few = np.zeros((1, 200))
    few[0, :3] = 1
    np.testing.assert_allclose(size_factors(few, controls), [3 / controls.sum()])


def test_genes_of_like_rank_are_the_nearest_that_are_not_perturbed():
    cells = [np.arange(20)] * 30 + [np.arange(10)] * 10
    seen = visibility(cells, 25)
    assert seen.cells[[0, 15, 24]].tolist() == [40, 30, 0] and seen.total == 40
    expected = (30 * 6 / 20 + 10 * 6 / 10) / 40
    assert seen.ranks[5] == pytest.approx(expected)
    found = genes_of_like_rank(seen, np.array([5, 15]), 10, 2)
    assert sorted(found[0]) == [4, 6] and sorted(found[1]) == [14, 16]
    assert genes_of_like_rank(seen, np.arange(19), 10, 3).shape == (19, 1)
    with pytest.raises(InputError, match="none of like rank"):
        genes_of_like_rank(seen, np.arange(20), 10, 3)
