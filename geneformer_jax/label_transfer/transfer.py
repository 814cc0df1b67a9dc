"""Labels carried over, and what they are worth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from geneformer_jax.label_transfer.classifiers import CLASSIFIERS, Distances, measure_distances
from geneformer_jax.label_transfer.features import EMBEDDING, Features
from geneformer_jax.label_transfer.scores import (
    HELD_OUT,
    QUERY,
    Predicted,
    best_classifier,
    describe,
    describe_better,
    predict_held_out,
    predict_query,
    score,
    score_by_label,
)

LABEL, DISTANCE, TRUSTED = "transferred_label", "distance_to_reference", "trusted"


@dataclass(frozen=True, eq=False)
class Transferred:
    """Labels of a query.

    Attributes:
      table: a row for each cell of the query: `transferred_label`, by the classifier of embeddings
        that did best on the held-out reference; `distance_to_reference`; `trusted`, whether it is
        as near to the reference as 99 % of its own cells; and `FEATURES CLASSIFIER` of each.
      scores: accuracy and macro F1 on the held-out reference and, where the query has labels, on
        these.
      by_label: precision, recall and F1 of each label.
      limit: the distance beyond which a cell is not trusted.
      verdict: sentences, the answer first.
    """

    table: pd.DataFrame
    scores: pd.DataFrame
    by_label: pd.DataFrame
    limit: float
    verdict: list[str]


def transfer(
    features: Mapping[str, Features],
    labels: np.ndarray,
    known: np.ndarray,
    groups: np.ndarray | None = None,
) -> Transferred:
    """Carries the labels of a reference over to a query.

    Args:
      features: name -> representation; the first is of embeddings, whose labels are taken.
      labels: [cells] text, of the reference.
      known: [cells] labels of the query to compare with, None where there is none.
      groups: [cells] of the reference, such as donors, which no two folds share; None for any.
    """
    held_out = {
        (name, classifier): predict_held_out(each.reference_RD, labels, classifier, groups)
        for name, each in features.items()
        for classifier in CLASSIFIERS
    }
    carried = {
        (name, classifier): found
        for name, each in features.items()
        for classifier, found in predict_query(each, labels).items()
    }
    judged = [(HELD_OUT, labels, held_out)]
    rows = np.flatnonzero(known != None)  # noqa: E711
    if len(rows):
        there = {names: found[rows] for names, found in carried.items()}
        judged.append((QUERY, known[rows].astype(str), there))
    scores = pd.concat([score(*each) for each in judged], ignore_index=True)
    by_label = pd.concat([score_by_label(*each) for each in judged], ignore_index=True)
    distances = measure_distances(*features[EMBEDDING])
    table = _table(carried, distances, best_classifier(scores, EMBEDDING))
    verdict = [
        *describe(scores, list(features)),
        *describe_better(scores, EMBEDDING),
        *_describe_trust(table, known),
    ]
    return Transferred(table, scores, by_label, distances.limit, verdict)


def _table(carried: Predicted, distances: Distances, classifier: str) -> pd.DataFrame:
    found = {
        LABEL: pd.Categorical(carried[EMBEDDING, classifier]),
        DISTANCE: distances.query,
        TRUSTED: distances.is_trusted,
    }
    each = {" ".join(names): pd.Categorical(labels) for names, labels in carried.items()}
    return pd.DataFrame(found | each)


def _describe_trust(table: pd.DataFrame, known: np.ndarray) -> list[str]:
    """Says how many cells lie far from the reference, and whether that tells wrong labels."""
    trusted = table[TRUSTED].to_numpy()
    far = (~trusted).sum()
    remedy = ": do not trust their labels" if far else ""
    lines = [
        f"{far:,} of {len(trusted):,} cells of the query lie farther from the reference than 99 % "
        f"of its own cells do{remedy}"
    ]
    has_label = known != None  # noqa: E711
    right = table[LABEL].astype(object).to_numpy() == known
    shares = {
        name: f"{right[has_label & of].mean():.3f} of {(has_label & of).sum():,}"
        for name, of in (("trusted", trusted), ("not trusted", ~trusted))
        if (has_label & of).any()
    }
    if shares:
        lines.append(f"labels that are right: {', '.join(f'{k} {v}' for k, v in shares.items())}")
    return lines
