"""Classifiers without a network, on rank features and on count features, as in the paper.

They see the same folds as the network. A gene's features are the cells: its rank in each of them
(most tokens of a cell minus its position, 0 where it is absent), or its counts per 10,000. A cell's
features are 50 components of the same numbers, with the logarithm of the counts. Of more than
10,000 cells components and classifiers are learned from as many, drawn at random: time and memory
of support vector machines grow faster than cells.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import expit, softmax
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions, match_genes
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification.config import GENE
from geneformer_jax.finetuning.classification.predictions import make_predictions
from geneformer_jax.finetuning.classification.task import ClassificationTask
from geneformer_jax.inference.counts import counts_per_10k, read_counts, token_columns

RANKS, COUNTS = "ranks", "counts"
SVM, FOREST, REGRESSION = "SVM", "random forest", "logistic regression"
ESTIMATORS = (SVM, FOREST, REGRESSION)
COMMONEST = "commonest class"
MAX_LEARNED_CELLS = 10_000
_CELLS_AT_A_TIME = 4_096
# Components of a cell's features.
_COMPONENTS = 50


def rank_matrix(cells: EncodedCells, wanted: np.ndarray | None = None) -> sparse.csr_matrix:
    """Returns float32 [cells, V]: most tokens of a cell minus the position of each gene in it.

    Positions count genes only, so that the first has position 0 in V2 cells too.

    Args:
      cells: tokenised.
      wanted: their rows; None for all.
    """
    vocabulary = cells.vocabulary
    longest = int(np.max(cells.lengths)) - vocabulary.special_per_cell
    wanted = np.arange(len(cells.lengths)) if wanted is None else wanted
    parts = []
    for rows in _chunks(wanted):
        genes = [each[each >= vocabulary.first_gene_token] for each in cells.read(rows)]
        lengths = np.array([len(each) for each in genes])
        pointers = np.concatenate([[0], np.cumsum(lengths)])
        position = np.arange(pointers[-1]) - np.repeat(pointers[:-1], lengths)
        parts.append(
            sparse.csr_matrix(
                ((longest - position).astype(np.float32), np.concatenate(genes), pointers),
                shape=(len(rows), vocabulary.size),
            )
        )
    return sparse.vstack(parts, format="csr")


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _CELLS_AT_A_TIME):
        yield rows[start : start + _CELLS_AT_A_TIME]


def count_matrix(cells: EncodedCells, sources: Iterable[CountSource]) -> sparse.csr_matrix:
    """Returns float64 [cells, V]: counts per 10,000 of each gene in each cell.

    Raises:
      InputError: a cell is in none of the sources, or in several.
    """
    ids, sources = cells.obs.index.astype(str), list(sources)
    rows = [_rows_of(source, ids) for source in sources]
    found = np.sum([each for _, each in rows], axis=0)
    wrong = np.flatnonzero(found != 1)
    if wrong.size:
        where = "several of the files" if found[wrong[0]] else "none of the files"
        raise InputError(
            f'{wrong.size:,} cells are in {where} of counts, first "{ids[wrong[0]]}"; name the '
            "files that the cells came from, each once"
        )
    positions, parts = [], []
    for source, (row, _) in zip(sources, rows, strict=True):
        to_token = _gene_to_token(source, cells.vocabulary)
        for position, counts, totals in read_counts(source, row):
            positions.append(position)
            parts.append(counts_per_10k(counts @ to_token, totals))
    order = np.argsort(np.concatenate(positions))
    return sparse.vstack(parts, format="csr")[order]


def _rows_of(source: CountSource, ids: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row of each cell in a source, -1 where it has none; how many it has) [ids]."""
    known = pd.Index(np.asarray(source.cell_ids).astype(str))
    wanted = np.flatnonzero(known.isin(ids))
    rows = pd.Series(wanted, known[wanted])
    found = rows.index.value_counts().reindex(ids, fill_value=0)
    rows = rows[~rows.index.duplicated()].reindex(ids, fill_value=-1)
    return rows.to_numpy(), found.to_numpy()


def _gene_to_token(source: CountSource, vocabulary: GeneVocabulary) -> sparse.csr_matrix:
    """Returns float64 [genes of the source, V]: 1 at the token of each gene that has one."""
    tokens = match_genes(source, vocabulary, TokenizerOptions(max_length=1)).tokens
    return token_columns(tokens, vocabulary.size)


def rank_features(task: ClassificationTask) -> sparse.csr_matrix | np.ndarray:
    """Returns features [ids, F] of the ranks, in the ids' order; see `features_of`.

    Ranks of more than 10,000 cells are never in memory at once.
    """
    if task.unit == GENE:
        return features_of(task, RANKS, rank_matrix(task.cells))
    rows = _rows_of_labels(task)
    return _components(lambda part: rank_matrix(task.cells, rows[part]), len(rows))


def features_of(
    task: ClassificationTask, name: str, matrix: sparse.csr_matrix
) -> sparse.csr_matrix | np.ndarray:
    """Turns a matrix [cells, V] of ranks or counts into features [ids, F], in the ids' order.

    A gene is described by all cells, as in the paper; a cell by 50 components of the cells' ranks
    or of their logarithm of counts, which are found without labels.
    """
    if task.unit == GENE:
        return matrix.tocsc()[:, task.tokens.to_numpy()].T.tocsr()
    chosen = matrix[_rows_of_labels(task)]
    chosen = chosen.log1p() if name == COUNTS else chosen
    return _components(lambda part: chosen[part], chosen.shape[0])


def _rows_of_labels(task: ClassificationTask) -> np.ndarray:
    obs = task.cells.obs
    return pd.Series(np.arange(len(obs)), obs.index.astype(str))[task.labels.index].to_numpy()


def _components(read: Callable[[np.ndarray], sparse.csr_matrix], cells: int) -> np.ndarray:
    """Returns components [cells, F] of the matrix whose rows `read` returns."""
    drawn = _draw(np.arange(cells))
    matrix = read(drawn)
    components = TruncatedSVD(
        min(_COMPONENTS, *(size - 1 for size in matrix.shape)), random_state=0
    )
    first = components.fit_transform(matrix)
    if len(drawn) == cells:
        return first
    return np.concatenate([components.transform(read(part)) for part in _chunks(np.arange(cells))])


def _draw(rows: np.ndarray) -> np.ndarray:
    """Returns at most MAX_LEARNED_CELLS of some rows, in their order, drawn at random."""
    if len(rows) <= MAX_LEARNED_CELLS:
        return rows
    return rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:MAX_LEARNED_CELLS])]


def make_estimator(kind: str, unit: str) -> Any:
    """Returns an sklearn classifier.

    For genes the estimators of the paper: SVC, a forest of depth 2 and logistic regression, with
    sklearn's other defaults and seed 0. For cells, where the paper has no such baselines, the same
    kinds on standardised features, the forest without a limit of depth.
    """
    cells = unit != GENE
    estimator = {
        SVM: SVC(random_state=0),
        FOREST: RandomForestClassifier(max_depth=None if cells else 2, random_state=0),
        REGRESSION: LogisticRegression(random_state=0, max_iter=1_000 if cells else 100),
    }[kind]
    return make_pipeline(StandardScaler(), estimator) if cells else estimator


def baseline_predictions(
    task: ClassificationTask, features: sparse.csr_matrix | np.ndarray, kind: str
) -> pd.DataFrame:
    """Trains and tests a classifier in every fold.

    Classes of genes are balanced for training, by leaving out genes of the larger class at random,
    as in the paper; of cells at most 10,000 are learned from. The test side is whole, so that every
    method is tested on the same genes or cells.

    Args:
      task: labels and folds.
      features: [ids, F] in the order of `task.labels`.
      kind: one of ESTIMATORS.

    Returns:
      Predictions with one row per gene or cell. An SVM gives no probabilities; its are a function
      of the distance to the boundary that keeps the order.
    """
    position = pd.Series(np.arange(len(task.labels)), index=task.labels.index)
    numbers = task.class_numbers.to_numpy()
    parts = []
    for fold in range(task.split.folds):
        train, test = (
            position[task.split.ids(fold, side)].to_numpy() for side in ("train", "test")
        )
        train = balance(train, numbers) if task.unit == GENE else _draw(train)
        estimator = make_estimator(kind, task.unit)
        with warnings.catch_warnings():
            # The paper's estimators stop after sklearn's default number of rounds, as these do.
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.fit(features[train], numbers[train])
        probabilities = _probabilities(estimator, features[test], len(task.classes))
        ids, labels = task.labels.index[test], task.labels.to_numpy()[test]
        parts.append(make_predictions(ids, task.unit, fold, labels, probabilities, task.classes))
    return pd.concat(parts, ignore_index=True)


def commonest_predictions(task: ClassificationTask) -> pd.DataFrame:
    """Names the commonest class of each fold's train side, with the classes' frequencies there."""
    parts = []
    for fold in range(task.split.folds):
        train, test = (task.split.ids(fold, side) for side in ("train", "test"))
        frequencies = np.bincount(task.class_numbers[train], minlength=len(task.classes))
        probabilities = np.tile(frequencies / frequencies.sum(), (len(test), 1))
        labels = task.labels[test].to_numpy(object)
        parts.append(make_predictions(test, task.unit, fold, labels, probabilities, task.classes))
    return pd.concat(parts, ignore_index=True)


def balance(rows: np.ndarray, numbers: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns rows with equally many of each class, drawn at random, in their order.

    Args:
      rows: [n] rows to choose from.
      numbers: [ids] class of each row.
      seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    classes = numbers[rows]
    smallest = np.bincount(classes)[np.unique(classes)].min()
    drawn = [rng.permutation(rows[classes == number])[:smallest] for number in np.unique(classes)]
    return np.sort(np.concatenate(drawn))


def _probabilities(
    estimator: Any, features: sparse.csr_matrix | np.ndarray, classes: int
) -> np.ndarray:
    """Returns float [n, C]; 0 for a class without training data."""
    if hasattr(estimator, "predict_proba"):
        known = estimator.predict_proba(features)
    else:
        distance = estimator.decision_function(features)
        if distance.ndim == 1:
            known = np.column_stack([expit(-distance), expit(distance)])
        else:
            known = softmax(distance, axis=1)
    probabilities = np.zeros((features.shape[0], classes))
    probabilities[:, estimator.classes_] = known
    return probabilities
