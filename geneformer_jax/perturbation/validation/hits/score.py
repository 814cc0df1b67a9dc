"""How well a statistic of perturbations finds hits, and genes of like rank in their place."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

SAMPLES = 200
LEVEL = 0.95
# Genes among which hits are dealt out anew: those that stand together by rank.
_BLOCK = 20


def score_hits(genes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Scores calls and scores against hits.

    The control deals the hits out anew among genes of like mean rank (of like number of cells,
    where the statistic has no ranks), 200 times: what genes of like rank would score.

    Args:
      genes: with bool `called` and `hit`, `score`, `cells`, `mean_rank` and `measured`.
      seed: of the draws.

    Returns:
      One row for each metric: `protocol` (`ppv`, `npv`, `sensitivity`, `specificity`, `roc_auc`,
      `pr_auc`, and `spearman` where the screen gives scores), `prediction`, `like_rank` (mean of
      the control), `like_rank_low`, `like_rank_high` (95 % of it), `pval` (one-sided, (1 + draws
      at least as good) / (1 + draws)), `drf` ((prediction - like_rank) / (1 - like_rank)), and
      `cells` (areas with the number of cells as the score, without any model).
    """
    genes = genes.iloc[np.argsort(_places(genes), kind="stable")]
    hits, called, scores = (genes[name].to_numpy() for name in ("hit", "called", "score"))
    hits, called = hits.astype(bool), called.astype(bool)
    own = _metrics(hits, called, scores)
    order = list(_draws(len(genes), seed))
    drawn = pd.DataFrame([_metrics(hits[each], called, scores) for each in order])
    measured = genes["measured"].to_numpy(np.float64)
    if np.isfinite(measured).any():
        own["spearman"] = float(spearmanr(scores, measured).statistic)
        drawn["spearman"] = [spearmanr(scores, measured[each]).statistic for each in order]
    by_cells = _areas(hits, genes["cells"].to_numpy(np.float64))
    rows = [_row(name, value, drawn[name], by_cells.get(name)) for name, value in own.items()]
    return pd.DataFrame(rows)


def _places(genes: pd.DataFrame) -> np.ndarray:
    """Returns where genes stand: by mean rank, or by cells where ranks are not known."""
    ranks = genes["mean_rank"].to_numpy(np.float64)
    return ranks if np.isfinite(ranks).all() else genes["cells"].to_numpy(np.float64)


def _draws(number: int, seed: int) -> Iterator[np.ndarray]:
    """Yields orders in which genes change places within their blocks."""
    rng, blocks = np.random.default_rng(seed), np.arange(number) // _BLOCK
    # A last block of few genes is one with that before it.
    blocks = np.minimum(blocks, max(number // _BLOCK - 1, 0))
    for _ in range(SAMPLES):
        yield np.lexsort((rng.random(number), blocks))


def _metrics(hits: np.ndarray, called: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    table = confusion_matrix(hits, called, labels=[False, True])
    (true_negative, false_positive), (false_negative, true_positive) = table
    return {
        "ppv": _fraction(true_positive, true_positive + false_positive),
        "npv": _fraction(true_negative, true_negative + false_negative),
        "sensitivity": _fraction(true_positive, true_positive + false_negative),
        "specificity": _fraction(true_negative, true_negative + false_positive),
        **_areas(hits, scores),
    }


def _areas(hits: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return {
        "roc_auc": float(roc_auc_score(hits, scores)),
        "pr_auc": float(average_precision_score(hits, scores)),
    }


def _fraction(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")


def _row(name: str, value: float, drawn: pd.Series, by_cells: float | None) -> dict[str, object]:
    tail = (1 - LEVEL) / 2
    low, high = drawn.quantile([tail, 1 - tail])
    chance = drawn.mean()
    p_value = (1 + (drawn >= value).sum()) / (1 + len(drawn))
    return {
        "protocol": name,
        "prediction": value,
        "like_rank": chance,
        "like_rank_low": low,
        "like_rank_high": high,
        "pval": p_value if np.isfinite(value) else np.nan,
        "drf": (value - chance) / (1 - chance) if chance < 1 else np.nan,
        "cells": by_cells,
    }
