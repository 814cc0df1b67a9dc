"""How well labels are carried over, on cells whose label is known: by classifier, and by label."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from sklearn.model_selection import (
    StratifiedGroupKFold,
    StratifiedKFold,
    cross_val_predict,
)

from geneformer_jax.label_transfer.classifiers import CLASSIFIERS
from geneformer_jax.label_transfer.features import Features

FOLDS = 5
HELD_OUT, QUERY, COMMONEST = "held-out reference", "query", "commonest label"
# (representation, classifier) -> labels of cells.
Predicted = Mapping[tuple[str, str], np.ndarray]
_KEYS = ("cells_of", "features", "classifier")


def predict_held_out(
    features_RD: np.ndarray, labels: np.ndarray, classifier: str, groups: np.ndarray | None
) -> np.ndarray:
    """Returns the labels of a reference's cells, each predicted from the other four fifths of it.

    Args:
      features_RD: of the cells.
      labels: their own.
      classifier: name, of CLASSIFIERS.
      groups: such as donors, which are never on both sides; None for any folds.
    """
    folds = StratifiedKFold if groups is None else StratifiedGroupKFold
    split = folds(FOLDS, shuffle=True, random_state=0)
    made = CLASSIFIERS[classifier](len(labels) * (FOLDS - 1) // FOLDS)
    with _as_far_as_it_gets():
        return cross_val_predict(made, features_RD, labels, groups=groups, cv=split)


def predict_query(features: Features, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the labels that each classifier gives to the cells of the query."""
    with _as_far_as_it_gets():
        return {
            name: make(len(labels)).fit(features.reference_RD, labels).predict(features.query_QD)
            for name, make in CLASSIFIERS.items()
        }


@contextlib.contextmanager
def _as_far_as_it_gets() -> Iterator[None]:
    """Lets a regression stop before it has converged: its scores say what it is worth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Of folds without a cell of a rare label.
        warnings.filterwarnings("ignore", "The least populated class in y", UserWarning)
        yield


def score(cells_of: str, known: np.ndarray, predicted: Predicted) -> pd.DataFrame:
    """Returns accuracy and macro F1 of each representation and classifier, and of no learning.

    Args:
      cells_of: which cells these are.
      known: their labels.
      predicted: what each gives them.
    """
    names = np.unique(known)
    commonest = np.full(len(known), pd.Series(known).mode()[0], dtype=object)
    rows = [
        {
            **dict(zip(_KEYS, (cells_of, *of), strict=True)),
            "cells": len(known),
            "accuracy": accuracy_score(known, labels),
            "macro_f1": f1_score(known, labels, average="macro", labels=names, zero_division=0.0),
        }
        for of, labels in {**predicted, (COMMONEST, ""): commonest}.items()
    ]
    return pd.DataFrame(rows)


def score_by_label(cells_of: str, known: np.ndarray, predicted: Predicted) -> pd.DataFrame:
    """Returns precision, recall and F1 of each label; arguments as of `score`."""
    names, tables = np.unique(known), []
    for of, labels in predicted.items():
        measured = precision_recall_fscore_support(known, labels, labels=names, zero_division=0.0)
        columns = dict(zip(("precision", "recall", "f1", "cells"), measured, strict=True))
        stated = dict(zip(_KEYS, (cells_of, *of), strict=True)) | {"label": names}
        tables.append(pd.DataFrame(stated | columns))
    return pd.concat(tables, ignore_index=True)


def best_classifier(scores: pd.DataFrame, features: str) -> str:
    """Returns the classifier of the highest macro F1 on the held-out reference."""
    own = scores[(scores["cells_of"] == HELD_OUT) & (scores["features"] == features)]
    return str(own.loc[own["macro_f1"].idxmax(), "classifier"])


def describe(scores: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Returns sentences on how the first representation compares with the others, answer first."""
    lines = []
    for cells_of in dict.fromkeys(scores["cells_of"]):
        own = scores[scores["cells_of"] == cells_of]
        best = {name: own[own["features"] == name]["macro_f1"].max() for name in names}
        first, *others = (f"{name} {value:.3f}" for name, value in best.items())
        beside = f" beside {', '.join(others)}" if others else ""
        chance = own[own["features"] == COMMONEST]["macro_f1"].iloc[0]
        lines.append(
            f"{cells_of} ({own['cells'].iloc[0]:,} cells): macro F1 of the best classifier "
            f"{first}{beside}; always the commonest label {chance:.3f}"
        )
    return lines


def describe_better(scores: pd.DataFrame, features: str) -> list[str]:
    """Says so if another representation did better on the held-out reference."""
    own = scores[(scores["cells_of"] == HELD_OUT) & (scores["classifier"] != "")]
    best = own.loc[own["macro_f1"].idxmax()]
    if best["features"] == features:
        return []
    column = f"{best['features']} {best['classifier']}"
    return [f'{best["features"]} did better than embeddings: prefer the column "{column}"']
