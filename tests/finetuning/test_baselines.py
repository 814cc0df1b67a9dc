"""Classical baselines of classification tasks: their features, and estimators against sklearn's."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS
from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification.baselines import (
    COUNTS,
    ESTIMATORS,
    FOREST,
    RANKS,
    REGRESSION,
    SVM,
    balance,
    baseline_predictions,
    count_matrix,
    features_of,
    rank_matrix,
)
from geneformer_jax.finetuning.classification.metrics import fold_roc
from tests.helpers.task_cells import cell_task, toy_task_cells


@pytest.mark.parametrize("special_tokens", [V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS])
def test_rank_features_fall_from_the_top_gene(special_tokens):
    _, cells = toy_task_cells(15, special_tokens)
    first = len(special_tokens)
    read = [[t for t in tokens.tolist() if t >= first] for tokens in cells.read(range(15))]
    longest = max(map(len, read))
    expected = np.zeros((15, cells.vocabulary.size))
    for row, genes in enumerate(read):
        for position, token in enumerate(genes):
            expected[row, token] = longest - position
    np.testing.assert_array_equal(rank_matrix(cells).toarray(), expected)


def test_count_features_are_counts_per_ten_thousand(toy):
    adata, cells = toy
    dense = adata.X.toarray()
    expected = np.zeros((len(cells), cells.vocabulary.size))
    expected[:, 2:] = dense / dense.sum(axis=1, keepdims=True) * 10_000
    # Cells of two files, the second in another order.
    sources = [AnnDataSource(adata[:50].copy()), AnnDataSource(adata[50:][::-1].copy())]
    np.testing.assert_allclose(count_matrix(cells, sources).toarray(), expected, rtol=1e-12)
    with pytest.raises(
        InputError, match='70 cells are in none of the files of counts, first "c50"'
    ):
        count_matrix(cells, sources[:1])
    with pytest.raises(InputError, match="in several of the files"):
        count_matrix(cells, [*sources, sources[0]])


def test_features_stand_in_the_order_of_the_labels(toy, task):
    ranks = rank_matrix(toy[1])
    of_genes = features_of(task, RANKS, ranks).toarray()
    for row, gene in enumerate(task.labels.index):
        token = toy[1].vocabulary.tokens_of([gene])[0]
        np.testing.assert_array_equal(of_genes[row], ranks[:, token].toarray().ravel())
    shuffled = cell_task(toy[1])
    shuffled = shuffled.with_labels(shuffled.labels.sample(frac=1, random_state=0))
    of_cells = features_of(shuffled, COUNTS, ranks)
    row_of = {cell: row for row, cell in enumerate(toy[1].obs.index)}
    logged = np.log1p(ranks.toarray()[[row_of[cell] for cell in shuffled.labels.index]])
    # Components keep the distances that their singular values make up.
    left, values, _ = np.linalg.svd(logged, full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(of_cells, axis=0)[:5], values[:5], rtol=1e-2)
    first = left[:, 0] * values[0]
    assert abs(np.corrcoef(of_cells[:, 0], first)[0, 1]) > 0.999


def test_the_larger_class_is_thinned_for_learning():
    numbers = np.array([0] * 10 + [1] * 30 + [0] * 5)
    rows = np.arange(2, 45)
    kept = balance(rows, numbers)
    assert list(np.bincount(numbers[kept])) == [13, 13]
    assert set(kept) <= set(rows) and list(kept) == sorted(kept)
    assert set(rows[numbers[rows] == 0]) <= set(kept)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_baselines_are_the_papers_estimators(task, kind):
    features = features_of(task, RANKS, rank_matrix(task.cells))
    predictions = baseline_predictions(task, features, kind)
    estimator = {
        SVM: SVC(random_state=0),
        FOREST: RandomForestClassifier(max_depth=2, random_state=0),
        REGRESSION: LogisticRegression(random_state=0),
    }[kind]
    dense, truth = features.toarray(), (task.labels == task.classes[1]).to_numpy().astype(int)
    row_of = {gene: row for row, gene in enumerate(task.labels.index)}
    for fold in range(5):
        train = np.array([row_of[gene] for gene in task.split.ids(fold, "train")])
        test = np.array([row_of[gene] for gene in task.split.ids(fold, "test")])
        train = balance(np.sort(train), truth)
        estimator.fit(dense[train], truth[train])
        if kind == SVM:
            expected = expit(estimator.decision_function(dense[test]))
        else:
            expected = estimator.predict_proba(dense[test])[:, 1]
        rows = predictions[predictions["fold"] == fold]
        assert list(rows["gene"]) == [task.labels.index[row] for row in test]
        np.testing.assert_allclose(rows["probability_second"], expected, rtol=0, atol=2e-3)
        assert fold_roc(rows).auc == pytest.approx(roc_auc_score(truth[test], expected), abs=1e-3)
    assert fold_roc(predictions).auc > 0.95  # the two programs are plain to see


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_cells_of_new_donors_are_classified(toy, kind):
    task = cell_task(toy[1], "donor")
    features = features_of(task, RANKS, rank_matrix(task.cells))
    predictions = baseline_predictions(task, features, kind)
    assert sorted(predictions["id"]) == sorted(task.labels.index)
    assert fold_roc(predictions).auc > 0.95
