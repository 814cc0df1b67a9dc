"""Medians against numpy's, exact and in the bounded sketch."""

import pickle

import numpy as np
import pytest
from scipy import sparse

from geneformer_jax.cells.tokenization.medians import RELATIVE_ERROR, MedianAccumulator


def corpus(seed=0, cells=400, genes=60):
    rng = np.random.default_rng(seed)
    rates = rng.lognormal(0, 2.5, genes)
    dense = rng.poisson(rates * rng.gamma(2.0, 0.5, (cells, 1)))
    dense[:, 3] = 0
    totals = dense.sum(1) + rng.integers(1, 2000, cells).astype(float)
    return dense, totals


def plain_medians(dense, totals):
    values = dense / totals[:, None] * 10_000
    middles = [np.median(column[column > 0]) if column.any() else np.nan for column in values.T]
    return np.array(middles)


def collect(dense, totals, bytes_for_exact=1 << 30, batch=37):
    accumulator = MedianAccumulator(dense.shape[1], bytes_for_exact)
    for start in range(0, len(dense), batch):
        rows = slice(start, start + batch)
        columns = np.arange(dense.shape[1])
        accumulator.add(sparse.csr_matrix(dense[rows]), totals[rows], columns)
    return accumulator


def test_exact_medians_equal_numpy():
    dense, totals = corpus()
    accumulator = collect(dense, totals)
    assert accumulator.exact
    np.testing.assert_allclose(accumulator.medians(), plain_medians(dense, totals), rtol=1e-15)
    assert accumulator.detected.tolist() == (dense > 0).sum(0).tolist()
    assert np.isnan(accumulator.medians()[3])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bytes_for_exact", [0, 50_000])
def test_the_sketch_stays_within_its_bound(seed, bytes_for_exact):
    dense, totals = corpus(seed)
    accumulator = collect(dense, totals, bytes_for_exact)
    assert not accumulator.exact
    expected = plain_medians(dense, totals)
    found = accumulator.medians()
    seen = ~np.isnan(expected)
    error = np.abs(found[seen] / expected[seen] - 1)
    assert error.max() <= RELATIVE_ERROR * (1 + 1e-9)
    # A histogram with far too wide bins would fail here, an exact method would be 0.
    assert error.max() > 0
    assert np.array_equal(np.isnan(found), ~seen)
    assert np.array_equal(accumulator.detected, (dense > 0).sum(0))


@pytest.mark.parametrize("values", [[1e-9, 1e9], [1e-9], [1e9], [3.0, 3.0, 3.0], [1e-3, 5.0, 1e4]])
def test_the_bound_holds_for_any_magnitude(values):
    accumulator = MedianAccumulator(1, bytes_for_exact=0)
    for value in values:
        accumulator.add(sparse.csr_matrix([[value]]), np.array([10_000.0]), np.array([0]))
    expected = np.median(values)
    assert abs(accumulator.medians()[0] / expected - 1) <= RELATIVE_ERROR * (1 + 1e-9)


@pytest.mark.parametrize("limits", [(1 << 30, 1 << 30), (1 << 30, 0), (0, 1 << 30), (0, 0)])
def test_merging_equals_collecting_at_once(limits):
    dense, totals = corpus()
    first = collect(dense[:150], totals[:150], limits[0])
    second = collect(dense[150:], totals[150:], limits[1], batch=11)
    whole = collect(dense, totals, min(limits))
    # As it comes from another process.
    first.merge(pickle.loads(pickle.dumps(second)))
    np.testing.assert_allclose(first.medians(), whole.medians(), rtol=1e-15)
    assert first.exact == whole.exact
    assert np.array_equal(first.detected, whole.detected)


def test_merging_does_not_depend_on_the_order():
    dense, totals = corpus(3)
    parts = [slice(0, 90), slice(90, 250), slice(250, 400)]
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = MedianAccumulator(dense.shape[1], 0)
        for part in order:
            merged.merge(collect(dense[parts[part]], totals[parts[part]], 0))
        results.append(merged.medians())
    np.testing.assert_array_equal(*results)


def test_columns_of_one_gene_are_summed_and_others_left_out():
    dense, totals = corpus(4, genes=6)
    genes = np.array([0, 1, 0, -1, 2, 1])
    merged = np.stack([dense[:, genes == gene].sum(1) for gene in range(3)], axis=1)
    accumulator = MedianAccumulator(3)
    accumulator.add(sparse.csr_matrix(dense), totals, genes)
    np.testing.assert_allclose(accumulator.medians(), plain_medians(merged, totals), rtol=1e-15)


def test_explicit_zeros_are_no_expression():
    counts = sparse.csr_matrix((np.array([0, 4]), np.array([0, 0]), np.array([0, 1, 2])), (2, 1))
    accumulator = MedianAccumulator(1)
    accumulator.add(counts, np.array([8.0, 8.0]), np.array([0]))
    assert accumulator.medians().tolist() == [5000.0] and accumulator.detected.tolist() == [1]


def test_more_cells_than_a_bin_can_count_are_refused():
    accumulator = MedianAccumulator(1)
    accumulator.detected[:] = np.iinfo(np.uint32).max - 1
    one_cell = (sparse.csr_matrix(np.ones((1, 1), np.int32)), np.ones(1), np.array([0]))
    accumulator.add(*one_cell)
    with pytest.raises(OverflowError, match="more than 4,294,967,295 cells"):
        accumulator.add(*one_cell)
