"""The baselines against slow, obvious counting."""

import numpy as np
import pytest

from geneformer_jax.training.evaluation import fit_baselines


def test_gene_frequency_is_the_share_of_occurrences(toy_store):
    cells = np.arange(len(toy_store))
    fitted = fit_baselines(toy_store, cells, seed=0)
    V = toy_store.vocabulary.size
    counts = np.full(V, 0.5)
    for tokens in toy_store.read(cells):
        for token in tokens:
            counts[token] += 1
    log_probability = np.log(counts / counts.sum())
    targets = np.array([5, 40, 100])
    score = fitted.gene_frequency.score(targets, np.array([0, 3, 90]))
    assert score.loss == pytest.approx(-log_probability[targets].mean(), abs=1e-5)
    assert fitted.gene_frequency.score(np.array([counts.argmax()]), np.array([7])).accuracy == 1


def test_gene_at_rank_counts_near_the_rank(toy_store):
    cells = np.arange(len(toy_store))
    baseline = fit_baselines(toy_store, cells, seed=0).gene_at_rank
    probability_RV = np.exp(baseline.log_probability_RV.astype(np.float64))
    np.testing.assert_allclose(probability_RV.sum(axis=1), 1, atol=1e-4)
    # With little smoothing the most likely gene of the first band is the one counted most there.
    first = np.concatenate([tokens[: baseline.width] for tokens in toy_store.read(cells)])
    common = np.bincount(first).argsort()[::-1][:3]
    assert probability_RV[0].argmax() in common


def test_rank_helps_where_rank_tells_genes_apart(toy_store):
    training, test = np.arange(0, 200), np.arange(200, 240)
    fitted = fit_baselines(toy_store, training, seed=0)
    tokens = toy_store.read(test)
    targets = np.concatenate(tokens)
    positions = np.concatenate([np.arange(len(cell)) for cell in tokens])
    at_rank = fitted.gene_at_rank.score(targets, positions)
    frequency = fitted.gene_frequency.score(targets, positions)
    assert at_rank.loss < frequency.loss - 0.01
    assert fitted.cells == 200


def test_the_draw_is_seeded(toy_store):
    cells = np.arange(len(toy_store))
    one, other = (fit_baselines(toy_store, cells, seed=4).gene_at_rank for _ in range(2))
    np.testing.assert_array_equal(one.log_probability_RV, other.log_probability_RV)
