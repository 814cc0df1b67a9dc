"""Scores beside what they must beat and what they can reach, as tables.

The tables have the names and columns of cell-eval 0.8.2 (`results`, `agg_results`) and of
scPertEval 0.2.0 (`drf`). The dynamic range fraction is (prediction - negative) / (positive -
negative): 0 where a prediction is no better than the negative control, 1 where it is as good as a
second half of the measured cells.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from geneformer_jax.perturbation.validation.scoring.compare import (
    LIKE_RANK,
    MEAN,
    PREDICTION,
    SOURCES,
    SPLIT_HALF,
)

NEGATIVES = (LIKE_RANK, MEAN)
LEVEL = 0.95
_MIN_PERTURBATIONS = 2
# Differences that are equal are so to rounding; their spread of nearly 0 would prove anything, and
# fractions of it would be noise.
_ROUNDING, _DECIMALS = 1e-9, 9


def results(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns the predictions' scores: a row for each perturbation, a column for each metric."""
    own = scores[scores["source"] == PREDICTION]
    table = own.pivot(index="perturbation", columns="protocol", values="value")
    return table[own["protocol"].unique()].rename_axis(columns=None).reset_index()


def agg_results(results: pd.DataFrame) -> pd.DataFrame:
    """Returns statistics of each metric over perturbations, in rows as cell-eval has them."""
    values = results.drop(columns="perturbation")
    described = values.describe()
    missing = values.isna().sum().rename("null_count").to_frame().T
    table = pd.concat([described.iloc[:1], missing, described.iloc[1:]])
    return table.rename_axis("statistic").reset_index()


def drf(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns each score beside its controls, in rows as scPertEval has them.

    Columns `protocol`, `perturbation`, `prediction`, `positive` and `negative` (what stands for
    each), their values `raw_prediction`, `raw_positive` and `raw_negative`, and `drf`, clipped to
    -1..1, NaN (undefined) where the positive control is not above the negative one by more than
    rounding. A row for each negative control.
    """
    wide = _wide(scores).reset_index()
    tables = [_drf_against(wide, negative) for negative in NEGATIVES]
    return pd.concat(tables).sort_index(kind="stable").reset_index(drop=True)


def _drf_against(wide: pd.DataFrame, negative: str) -> pd.DataFrame:
    known = wide[wide[[PREDICTION, SPLIT_HALF, negative]].notna().all(axis=1)]
    value, positive, zero = (known[name] for name in (PREDICTION, SPLIT_HALF, negative))
    room = positive - zero
    return pd.DataFrame(
        {
            "protocol": known["protocol"],
            "perturbation": known["perturbation"],
            "prediction": PREDICTION,
            "positive": SPLIT_HALF,
            "negative": negative,
            "raw_prediction": value,
            "raw_positive": positive,
            "raw_negative": zero,
            "drf": _fraction(value - zero, room.where(room > _ROUNDING)).clip(-1, 1),
        }
    )


def _fraction(gain, room):
    """Divides numbers or series without the noise of rounding, and without a minus before 0."""
    return np.round(np.round(gain, _DECIMALS) / room, _DECIMALS) + 0.0


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns one row for each metric, means over perturbations.

    Columns `protocol` and `perturbations` (number that have it), the mean of each source
    (`prediction`, `like_rank`, `all_perturbed_mean`, `tech_dup`), and for each negative control
    `minus_NAME`, the mean difference, its interval of 95 % (`_low`, `_high`) and p-value (`_pval`)
    over perturbations, and `drf_NAME`, of the means; NaN where the positive control is not
    significantly above the negative one.
    """
    wide = _wide(scores)
    rows = []
    for protocol in scores["protocol"].unique():
        own = wide.loc[protocol]
        row = {"protocol": protocol, "perturbations": int(own[PREDICTION].notna().sum())}
        row |= {source: own[source].mean() for source in SOURCES}
        for negative in NEGATIVES:
            row |= _against(own, negative)
        rows.append(row)
    return pd.DataFrame(rows)


def _wide(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each protocol and perturbation, a column for each source."""
    table = scores.pivot(
        index=["protocol", "perturbation"], columns="source", values="value"
    ).reindex(columns=SOURCES)
    order = scores[["protocol", "perturbation"]].drop_duplicates()
    return table.loc[pd.MultiIndex.from_frame(order)]


def _against(own: pd.DataFrame, negative: str) -> dict[str, float]:
    gain, room = (mean_difference(own[name], own[negative]) for name in (PREDICTION, SPLIT_HALF))
    columns = dict(zip(("", "_low", "_high", "_pval"), gain, strict=True))
    columns = {f"minus_{negative}{ending}": value for ending, value in columns.items()}
    is_above = room.mean > _ROUNDING and room.pval < 1 - LEVEL
    fraction = _fraction(gain.mean, room.mean) if is_above else np.nan
    return columns | {f"drf_{negative}": fraction}


class Difference(NamedTuple):
    """A mean paired difference, its interval of 95 %, and the p-value of its being 0.

    Where all differences are equal there is no interval (NaN), and the p-value is of a sign test.
    """

    mean: float
    low: float
    high: float
    pval: float


def mean_difference(values: pd.Series, others: pd.Series) -> Difference:
    """Compares scores of the same perturbations by Student's paired t-test.

    NaN for fewer than two pairs.
    """
    apart = (values - others).dropna().to_numpy()
    if len(apart) < _MIN_PERTURBATIONS:
        return Difference(*[np.nan] * 4)
    mean, error = apart.mean(), apart.std(ddof=1) / np.sqrt(len(apart))
    if np.ptp(apart) < _ROUNDING:
        is_zero = abs(mean) < _ROUNDING
        return Difference(mean, np.nan, np.nan, 1.0 if is_zero else 0.5 ** (len(apart) - 1))
    student = t(len(apart) - 1)
    away = student.ppf((1 + LEVEL) / 2) * error
    return Difference(mean, mean - away, mean + away, 2 * student.sf(abs(mean) / error))
