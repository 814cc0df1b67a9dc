"""How good predictions are: by fold, over all, by class, and as probabilities.

All functions take a table of predictions (see `analysis.predictions`). Folds count as the original
weighs them (by the points of their ROC curves) and plainly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    classification_report,
    confusion_matrix,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification.predictions import PROBABILITY, classes_of

# The original reads every fold's curve off at these false positive rates.
FALSE_POSITIVE_RATES = np.linspace(0, 1, 100)
CALIBRATION_BINS = 10

SAMPLES = 1_000
LEVEL = 0.95


class Roc(NamedTuple):
    """ROC curves of the folds, and their mean.

    Attributes:
      folds: [F] numbers of the folds.
      curves: [F, 100] true positive rate of each fold at FALSE_POSITIVE_RATES.
      aucs: [F] area under each fold's own curve.
      weights: [F] weight of each fold; they add up to 1.
      mean_curve: [100] weighted.
      auc: weighted mean of the areas.
      sd: weighted standard deviation (of a population) of the areas; NaN of a single fold.
      plain_auc: mean of the areas.
      plain_sd: standard deviation (of a population) of the areas; NaN of a single fold.
    """

    folds: np.ndarray
    curves: np.ndarray
    aucs: np.ndarray
    weights: np.ndarray
    mean_curve: np.ndarray
    auc: float
    sd: float
    plain_auc: float
    plain_sd: float


def fold_roc(predictions: pd.DataFrame) -> Roc:
    """Draws each fold's ROC curve and weighs them as the original does.

    Two classes: the score is the probability of the second; a fold weighs as much as its curve has
    points; curves are interpolated at 100 points, starting at 0 and ending at 1. More classes,
    which the original does not treat: each class against the others, averaged over the classes
    that the fold tests; folds weigh the same.

    Raises:
      InputError: a fold tests one class only.
    """
    classes = classes_of(predictions)
    folds, curves, aucs, points = [], [], [], []
    for fold, rows in predictions.groupby("fold"):
        present = rows["label"].nunique()
        if present < 2:
            raise InputError(
                f'fold {fold} tests the class "{rows["label"].iloc[0]}" only, so it has no ROC '
                "curve; ask for fewer folds"
            )
        each = [_class_curve(rows, name) for name in _scored(rows, classes)]
        folds.append(fold)
        curves.append(np.mean([curve for curve, _, _ in each], axis=0))
        aucs.append(np.mean([auc for _, auc, _ in each]))
        points.append(each[0][2] if len(classes) == 2 else 1)
    weights = np.array(points) / np.sum(points)
    return _mean_roc(np.array(folds), np.array(curves), np.array(aucs), weights)


def weighted_mean_and_sd(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Returns the mean and the standard deviation (of a population) under weights, as [F].

    A single value has no deviation: NaN.
    """
    mean = float(np.average(values, weights=weights))
    if len(values) == 1:
        return mean, np.nan
    return mean, float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))


def summarise(predictions: pd.DataFrame) -> dict[str, float]:
    """Returns the measures of a table of predictions.

    Keys: `auc`, `auc_sd` (folds as the original weighs them), `auc_plain`, `auc_plain_sd`,
    `average_precision` (mean over folds, and over classes where there are more than two),
    `accuracy`, `macro_f1` (all folds together), `calibration_error`, `rows`.
    """
    roc = fold_roc(predictions)
    label, predicted = _text(predictions)
    by_fold = [average_precision(rows) for _, rows in predictions.groupby("fold")]
    return {
        "auc": roc.auc,
        "auc_sd": roc.sd,
        "auc_plain": roc.plain_auc,
        "auc_plain_sd": roc.plain_sd,
        "average_precision": float(np.mean(by_fold)),
        "accuracy": float(accuracy_score(label, predicted)),
        "macro_f1": _macro_f1(label, predicted),
        "calibration_error": calibration_error(calibration_curve(predictions)),
        "rows": len(predictions),
    }


def fold_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Returns [folds] with fold, rows, auc, weight, accuracy and macro_f1."""
    roc = fold_roc(predictions)
    rows: list[dict[str, Any]] = []
    for (fold, each), auc, weight in zip(
        predictions.groupby("fold"), roc.aucs, roc.weights, strict=True
    ):
        label, predicted = _text(each)
        rows.append(
            {
                "fold": int(fold),
                "rows": len(each),
                "auc": auc,
                "weight": weight,
                "accuracy": accuracy_score(label, predicted),
                "macro_f1": _macro_f1(label, predicted),
            }
        )
    return pd.DataFrame(rows)


def class_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Returns [classes] with class, precision, recall, f1 and members (rows of that class)."""
    classes = list(classes_of(predictions))
    report = classification_report(
        *_text(predictions), labels=classes, output_dict=True, zero_division=0
    )
    names = {"f1-score": "f1", "support": "members"}
    table = pd.DataFrame([{"class": name, **report[name]} for name in classes])
    return table.rename(columns=names).astype({"members": int})


def confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """Returns int [C, C]: rows are true classes, columns predicted ones."""
    classes = list(classes_of(predictions))
    return pd.DataFrame(
        confusion_matrix(*_text(predictions), labels=classes),
        index=pd.Index(classes, name="label"),
        columns=pd.Index(classes, name="predicted"),
    )


def precision_recall(predictions: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (precision, recall) of a class against the others, along falling thresholds."""
    truth = predictions["label"].astype(str) == name
    precision, recall, _ = precision_recall_curve(truth, predictions[PROBABILITY + name])
    return precision, recall


def average_precision(predictions: pd.DataFrame) -> float:
    """Area under the precision-recall curve: of the second class of two, else the mean of all."""
    classes = classes_of(predictions)
    truth = predictions["label"].astype(str)
    scores = [
        average_precision_score(truth == name, predictions[PROBABILITY + name])
        for name in _scored(predictions, classes)
    ]
    return float(np.mean(scores))


def calibration_curve(predictions: pd.DataFrame, bins: int = CALIBRATION_BINS) -> pd.DataFrame:
    """Compares the probability of the predicted class with how often it is right.

    Returns:
      [bins that hold rows] with `confidence` (mean probability), `accuracy` and `rows`; the bins
      cut 0..1 into equal widths, each holding its upper edge.
    """
    columns = [PROBABILITY + name for name in classes_of(predictions)]
    confidence = predictions[columns].max(axis=1).to_numpy(np.float64)
    label, predicted = _text(predictions)
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    table = pd.DataFrame(
        {
            "bin": np.digitize(confidence, edges, right=True),
            "confidence": confidence,
            "accuracy": label == predicted,
        }
    ).groupby("bin")
    curve = table.mean()
    return curve.assign(rows=table.size()).reset_index(drop=True)


def calibration_error(curve: pd.DataFrame) -> float:
    """Expected calibration error: the mean gap of a `calibration_curve`, weighted by rows."""
    gap = (curve["confidence"] - curve["accuracy"]).abs()
    return float(np.average(gap, weights=curve["rows"]))


def _scored(rows: pd.DataFrame, classes: tuple[str, ...]) -> list[str]:
    """The classes whose scores are measured: the second of two, else all that are tested."""
    if len(classes) == 2:
        return [classes[1]]
    present = set(rows["label"].astype(str))
    return [name for name in classes if name in present]


def _class_curve(rows: pd.DataFrame, name: str) -> tuple[np.ndarray, float, int]:
    """Returns (curve [100], area, number of points) of a class against the others."""
    truth = (rows["label"].astype(str) == name).to_numpy()
    score = rows[PROBABILITY + name].to_numpy(np.float64)
    false, true, _ = roc_curve(truth, score)
    curve = np.interp(FALSE_POSITIVE_RATES, false, true)
    curve[0] = 0.0
    return curve, float(roc_auc_score(truth, score)), len(true)


def _mean_roc(folds: np.ndarray, curves: np.ndarray, aucs: np.ndarray, weights: np.ndarray) -> Roc:
    mean_curve = weights @ curves
    mean_curve[-1] = 1.0
    auc, sd = weighted_mean_and_sd(aucs, weights)
    plain = weighted_mean_and_sd(aucs, np.ones(len(aucs)))
    return Roc(folds, curves, aucs, weights, mean_curve, auc, sd, *plain)


def _macro_f1(label: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(label, predicted, average="macro", zero_division=0))


def _text(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return tuple(predictions[name].astype(str).to_numpy(object) for name in ("label", "predicted"))


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
        values["macro_f1"].append(_macro_f1_of_matrix(matrix))
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


def _macro_f1_of_matrix(matrix: np.ndarray) -> float:
    hits = np.diag(matrix)
    sizes = matrix.sum(axis=1) + matrix.sum(axis=0)
    present = sizes > 0
    return float(np.mean(2 * hits[present] / sizes[present]))
