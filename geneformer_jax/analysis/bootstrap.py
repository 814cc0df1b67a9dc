"""Bootstrap intervals of measures: whole genes, donors or cells are drawn anew, not their rows.

Occurrences of a gene in many cells, and cells of a donor, resemble each other; drawn one by one
they would make an interval far too narrow.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_jax.analysis.predictions import PROBABILITY, classes_of

SAMPLES = 1_000
LEVEL = 0.95


class Interval(NamedTuple):
    """Lower and upper end of an interval."""

    low: float
    high: float


def bootstrap_intervals(
    predictions: pd.DataFrame,
    groups: pd.Series | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Returns 95 % percentile intervals of `auc_plain`, `accuracy` and `macro_f1`.

    In each sample, every fold draws as many of its units as it has. Units are groups where given,
    genes where the predictions have them, else rows. A sample in which a fold is left with one
    class has no AUC and is passed over.

    Args:
      predictions: see `analysis.predictions`.
      groups: group (donor) of each cell, indexed by cell id, or None.
      samples: how many.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    folds = [
        _Fold(rows, classes_of(predictions), groups) for _, rows in predictions.groupby("fold")
    ]
    values: dict[str, list[float]] = {"auc_plain": [], "accuracy": [], "macro_f1": []}
    for _ in range(samples):
        counted = [fold.draw(rng) for fold in folds]
        values["auc_plain"].append(float(np.mean([auc for auc, _ in counted])))
        matrix = np.sum([matrix for _, matrix in counted], axis=0)
        values["accuracy"].append(float(np.trace(matrix) / matrix.sum()))
        values["macro_f1"].append(_macro_f1(matrix))
    tail = 100 * (1 - LEVEL) / 2
    return {
        name: Interval(*(float(end) for end in np.nanpercentile(each, [tail, 100 - tail])))
        for name, each in values.items()
    }


class _Fold:
    """A fold's predictions as numbers, sorted once for all samples."""

    def __init__(self, rows: pd.DataFrame, classes: tuple[str, ...], groups: pd.Series | None):
        number = {name: i for i, name in enumerate(classes)}
        self._classes = len(classes)
        self._label = rows["label"].astype(str).map(number).to_numpy(int)
        self._predicted = rows["predicted"].astype(str).map(number).to_numpy(int)
        self._unit, units = pd.factorize(_units(rows, groups))
        self._units = len(units)
        scored = range(1, 2) if len(classes) == 2 else np.unique(self._label)
        self._aucs = [
            weighted_auc(self._label == i, rows[PROBABILITY + classes[i]].to_numpy())
            for i in scored
        ]

    def draw(self, rng: np.random.Generator) -> tuple[float, np.ndarray]:
        """Returns (mean AUC, weighted confusion matrix [C, C]) of a sample of units."""
        drawn = np.bincount(rng.integers(0, self._units, self._units), minlength=self._units)
        weights = drawn[self._unit].astype(np.float64)
        cells = self._label * self._classes + self._predicted
        matrix = np.bincount(cells, weights, minlength=self._classes**2)
        aucs = np.array([auc(weights) for auc in self._aucs])
        # A class that was not drawn has no curve; with two classes the sample has none.
        auc = np.nan if np.isnan(aucs).all() else float(np.nanmean(aucs))
        return auc, matrix.reshape(self._classes, self._classes)


def weighted_auc(truth: np.ndarray, score: np.ndarray) -> Callable[[np.ndarray], float]:
    """Returns a function weights [n] -> area under the ROC curve, NaN where a class weighs nothing.

    Scores are sorted once, which is what costs most; equal scores count half.

    Args:
      truth: bool [n].
      score: float [n].
    """
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    truth = truth[order]

    def auc(weights: np.ndarray) -> float:
        weights = weights[order]
        positive = np.add.reduceat(weights * truth, starts)
        negative = np.add.reduceat(weights * ~truth, starts)
        total = positive.sum() * negative.sum()
        if not total:
            return np.nan
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / total)

    return auc


def _units(rows: pd.DataFrame, groups: pd.Series | None) -> np.ndarray:
    if groups is not None:
        return groups.reindex(rows["id"].astype(str)).to_numpy(object)
    if "gene" in rows:
        return rows["gene"].astype(str).to_numpy(object)
    return np.arange(len(rows))


def _macro_f1(matrix: np.ndarray) -> float:
    hits = np.diag(matrix)
    sizes = matrix.sum(axis=1) + matrix.sum(axis=0)
    present = sizes > 0
    return float(np.mean(2 * hits[present] / sizes[present]))
