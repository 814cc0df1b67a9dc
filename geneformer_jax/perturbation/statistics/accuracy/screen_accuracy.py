"""How well a screen estimates: its random sample of exact shifts beside their estimates."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from geneformer_jax.perturbation.statistics.shifts import SEED
from geneformer_jax.perturbation.statistics.tables import STATE_SHIFT

# Below it the order of the estimates is not to be relied on.
MIN_SPEARMAN = 0.8
STRONGEST, SEARCHED = 0.05, 0.15
_DRAWS, _INTERVAL = 1_000, (2.5, 97.5)


def spearman(exact_N: np.ndarray, estimate_N: np.ndarray) -> float:
    """Returns Spearman's rank correlation; NaN where one side is constant."""
    ranks = [rankdata(each) - (len(each) + 1) / 2 for each in (exact_N, estimate_N)]
    norm = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float(ranks[0] @ ranks[1] / norm) if norm > 0 else float("nan")


def slope(exact_N: np.ndarray, estimate_N: np.ndarray) -> float:
    """Returns the slope of the exact shifts over their estimates; 1 means that sizes agree."""
    centred = estimate_N - estimate_N.mean()
    square = centred @ centred
    return float(centred @ exact_N / square) if square > 0 else float("nan")


def recall(exact_N: np.ndarray, estimate_N: np.ndarray) -> float:
    """Returns the part of the exactly strongest 5 % that is in the strongest 15 % by estimate."""
    wanted, searched = (max(round(part * len(exact_N)), 1) for part in (STRONGEST, SEARCHED))
    strongest = np.argsort(-np.abs(exact_N), kind="stable")[:wanted]
    found = np.argsort(-np.abs(estimate_N), kind="stable")[:searched]
    return float(np.isin(strongest, found).mean())


MEASURES = {"spearman": spearman, "slope": slope, "recall": recall}


def screen_accuracy(rows: pd.DataFrame, seed: int = SEED) -> pd.DataFrame:
    """Measures a screen on its random sample.

    Args:
      rows: sampled edits, one row for each edit, measure and state: `measure`, `state`, `value`
        (exact), `estimate`.
      seed: of the bootstrap over edits.

    Returns:
      One row for each measure and state: measure, state, edits, and of each of MEASURES its value
      and a 95 % interval in columns with `_low` and `_high`.
    """
    table = []
    for (shift, state), own in rows.groupby(["measure", "state"], sort=False, observed=True):
        pairs = own["value"].to_numpy(np.float64), own["estimate"].to_numpy(np.float64)
        row = {"measure": shift, "state": state, "edits": len(own)}
        for name, measure in MEASURES.items():
            low, high = _interval(measure, *pairs, seed)
            row |= {name: measure(*pairs), f"{name}_low": low, f"{name}_high": high}
        table.append(row)
    return pd.DataFrame(table)


def _interval(measure, exact_N: np.ndarray, estimate_N: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(exact_N), (_DRAWS, len(exact_N)))
    found = [measure(exact_N[draw], estimate_N[draw]) for draw in draws]
    return np.nanpercentile(found, _INTERVAL) if np.isfinite(found).any() else np.full(2, np.nan)


def _named(row: Any) -> str:
    towards = row.measure == STATE_SHIFT
    return f"shift towards {row.state}" if towards else f"change in probability of {row.state}"


def describe_poor(table: pd.DataFrame) -> list[str]:
    """Returns a line for each state whose estimates are not to be relied on."""
    return [
        f"the screen is poor: its estimates of the {_named(row)} correlate at "
        f"{row.spearman:.2f} (Spearman) with the exact shifts of {row.edits:,} edits; use more "
        "`split_points`, or leave `screen` out"
        for row in table.itertuples()
        if not row.spearman >= MIN_SPEARMAN
    ]


def describe_accuracy(table: pd.DataFrame) -> list[str]:
    """Returns a line for each state: what was measured on the sample."""
    return [
        f"estimates of the {_named(row)} against {row.edits:,} exact ones drawn at random: "
        f"Spearman {row.spearman:.3f} ({row.spearman_low:.3f} to {row.spearman_high:.3f}), "
        f"slope {row.slope:.2f} ({row.slope_low:.2f} to {row.slope_high:.2f}), recall of the "
        f"strongest 5 % in the estimates' strongest 15 % {row.recall:.2f} ({row.recall_low:.2f} to "
        f"{row.recall_high:.2f}; by chance {SEARCHED:.2f})"
        for row in table.itertuples()
    ]
