"""Controls: what a classifier reaches when there is nothing to learn, or only how common a gene is.

Labels are permuted among the same ids and everything is run again. Shuffled over all ids, they must
give an AUC of one half: more would mean that the test side leaks into the train side. Shuffled
among genes found in about as many cells, they keep what the frequency of genes reveals about their
class: a classifier that reaches no more with the true labels has learned frequency only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from geneformer_jax.finetuning.classification.metrics import fold_roc
from geneformer_jax.finetuning.classification.task import ClassificationTask

SHUFFLED, MATCHED = "shuffled labels", "labels shuffled among equally frequent genes"
CONTROL_COLUMNS = ("method", "control", "permutations", "auc", "low", "high", "true_auc", "p")
LEVEL = 0.99
# Genes in a stratum of similar frequency.
_STRATUM = 10


def permuted_aucs(
    task: ClassificationTask,
    predict: Callable[[ClassificationTask], pd.DataFrame],
    kind: str,
    permutations: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Classifies with permuted labels.

    Args:
      task: with the true labels.
      predict: task -> predictions.
      kind: SHUFFLED or MATCHED (gene tasks only).
      permutations: how many.
      seed: of the permutations.

    Returns:
      [permutations] column `auc`: each an unweighted mean over the folds.
    """
    rng = np.random.default_rng(seed)
    strata = frequency_strata(task) if kind == MATCHED else None
    aucs = [
        fold_roc(predict(task.with_labels(permuted_labels(task, rng, strata)))).plain_auc
        for _ in range(permutations)
    ]
    return pd.DataFrame({"auc": aucs})


def summarise_control(
    method: str, kind: str, permuted: pd.DataFrame, true_auc: float
) -> dict[str, Any]:
    """Returns a row of CONTROL_COLUMNS: what permuted labels gave.

    `auc` is the mean over permutations, `low` and `high` a 99 % interval of that mean (by Student's
    t; none of a single one), `p` the fraction of permutations, the true labels included, that reach
    at least `true_auc` (none where that is not a number).
    """
    aucs = permuted["auc"].to_numpy(np.float64)
    spread = float(aucs.std(ddof=1) / np.sqrt(len(aucs))) if len(aucs) > 1 else np.nan
    mean = float(aucs.mean())
    margin = float(stats.t.ppf((1 + LEVEL) / 2, len(aucs) - 1)) * spread
    reached = (1 + int((aucs >= true_auc).sum())) / (1 + len(aucs))
    p = np.nan if np.isnan(true_auc) else reached
    values = (method, kind, len(aucs), mean, mean - margin, mean + margin, true_auc, p)
    return dict(zip(CONTROL_COLUMNS, values, strict=True))


def permuted_labels(
    task: ClassificationTask, rng: np.random.Generator, strata: np.ndarray | None = None
) -> pd.Series:
    """Returns the labels, permuted.

    Where groups (donors) are of one class each, whole groups change their class, as cells of a
    donor could still be recognised by their donor otherwise; else groups keep their classes' sizes.

    Args:
      task: whose labels.
      rng: random numbers.
      strata: [ids] labels are permuted within each; None for none.
    """
    labels = task.labels
    if strata is None and task.groups is not None:
        groups = task.groups.reindex(labels.index).to_numpy(object)
        of_group = labels.groupby(groups).agg(["first", "nunique"])
        if (of_group["nunique"] == 1).all():
            permuted = pd.Series(
                rng.permutation(of_group["first"].to_numpy()), index=of_group.index
            )
            return pd.Series(permuted[groups].to_numpy(object), labels.index, name=labels.name)
        strata = groups
    permuted = labels.to_numpy(object).copy()
    for rows in _rows_of(strata, len(labels)):
        permuted[rows] = rng.permutation(permuted[rows])
    return pd.Series(permuted, index=labels.index, name=labels.name)


def frequency_strata(task: ClassificationTask) -> np.ndarray:
    """Returns int [genes]: strata of about ten genes that are found in about as many cells."""
    order = np.argsort(task.gene_frequencies().to_numpy(), kind="stable")
    strata = np.empty(len(order), int)
    strata[order] = np.arange(len(order)) * max(len(order) // _STRATUM, 1) // len(order)
    return strata


def _rows_of(strata: np.ndarray | None, ids: int) -> list[np.ndarray]:
    if strata is None:
        return [np.arange(ids)]
    return [np.flatnonzero(strata == each) for each in pd.unique(strata)]
