"""Label accuracy and the principal components it is compared with."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.label_accuracy import label_accuracy, log_count_components


def two_groups(distance: float) -> tuple[np.ndarray, pd.Series]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 5))
    features[:80] += distance
    return features, pd.Series(["A"] * 80 + ["B"] * 120, name="kind")


def test_separate_groups_are_recognised_and_shuffled_labels_are_not():
    result = label_accuracy(*two_groups(20.0))
    assert result.accuracy == 1.0
    assert result.majority == 0.6
    assert 0.35 < result.shuffled < 0.75
    assert (result.cells, result.classes, result.left_out) == (200, 2, 0)


def test_labels_without_signal_score_about_chance():
    result = label_accuracy(*two_groups(0.0))
    assert abs(result.accuracy - result.shuffled) < 0.15


def test_missing_and_rare_labels_are_left_out_and_counted():
    features, labels = two_groups(20.0)
    labels[:10] = None
    labels[10:13] = "rare"
    result = label_accuracy(features, labels.astype("category"))
    assert (result.cells, result.classes, result.left_out) == (187, 2, 13)
    assert result.majority == 120 / 187


def test_one_label_is_refused():
    features, _ = two_groups(0.0)
    with pytest.raises(InputError, match="column kind has 1 labels"):
        label_accuracy(features, pd.Series(["A"] * 200, name="kind"))


def test_components_are_those_of_a_dense_singular_value_decomposition():
    rng = np.random.default_rng(1)
    counts = rng.poisson(1.0, size=(40, 30))
    totals = counts.sum(1) + 5.0
    logged = np.log1p(counts / totals[:, None] * 10_000)
    u, s, _ = np.linalg.svd(logged - logged.mean(0), full_matrices=False)
    expected = u[:, :10] * s[:10]
    components = log_count_components(sparse.csr_matrix(counts), totals, components=10)
    signs = np.sign((components * expected).sum(0))
    np.testing.assert_allclose(components * signs, expected, atol=1e-6)


def test_few_cells_give_fewer_components():
    counts = sparse.csr_matrix(np.eye(4, 9, dtype=np.int32))
    assert log_count_components(counts, np.ones(4)).shape == (4, 3)


@pytest.mark.parametrize("cell", [[3, 0, 2], [5]])
def test_cells_that_are_all_alike_are_not_told_apart(cell):
    counts = sparse.csr_matrix(np.tile(cell, (6, 1)))
    assert log_count_components(counts, np.full(6, sum(cell))).tolist() == [[0.0]] * 6
