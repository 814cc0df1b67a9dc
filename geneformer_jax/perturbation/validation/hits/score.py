"""How well a statistic of perturbations finds hits, and genes of like rank in their place."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from geneformer_jax.perturbation.validation.areas import areas

SAMPLES = 1_000
LEVEL = 0.95
# Genes among which hits are dealt out anew: those that stand together by rank.
_BLOCK = 20


def score_hits(genes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Scores calls and scores against hits.

    The control deals the hits out anew among genes of like mean rank (of like number of cells,
    where the statistic has no ranks), 1,000 times: what genes of like rank would score.

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
    # The genes as they are, and then those of the draws.
    order_SG = np.stack([np.arange(len(genes)), *_draws(len(genes), seed)])
    hits_SG = genes["hit"].to_numpy(bool)[order_SG]
    called, scores = genes["called"].to_numpy(bool), genes["score"].to_numpy()
    values = _calls(hits_SG, called) | areas(hits_SG, scores)
    if genes["measured"].notna().any():
        values["spearman"] = _correlations(genes["measured"].to_numpy()[order_SG], scores)
    by_cells = areas(hits_SG[:1], genes["cells"].to_numpy(np.float64))
    rows = [_row(name, each, by_cells.get(name, [np.nan])[0]) for name, each in values.items()]
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


def _calls(hits_SG: np.ndarray, called: np.ndarray) -> dict[str, np.ndarray]:
    true = (hits_SG & called).sum(axis=1)
    neither = (~hits_SG & ~called).sum(axis=1)
    hits = hits_SG.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return {
            "ppv": true / called.sum(),
            "npv": neither / (~called).sum(),
            "sensitivity": true / hits,
            "specificity": neither / (len(called) - hits),
        }


def _correlations(measured_SG: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns Spearman's correlation of each row with the scores."""
    rows = rankdata(measured_SG, axis=1)
    return np.corrcoef(rows, rankdata(scores))[-1, :-1]


def _row(name: str, values: np.ndarray, by_cells: float) -> dict[str, object]:
    """Returns the row of a metric from its value and those of the draws."""
    value, drawn = values[0], values[1:]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
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
