"""How diverse and how broad the heads of a layer are, and what the paper states of its layers."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from geneformer_jax.attention_analysis.sums import CellMeasures

RESAMPLES = 1_000
# What a statement needs, on the scale from 0 to 1 of all three measures. In blood cells, thirds of
# random weights of up to 12 layers of width 768 differ by at most 0.008, those of a small trained
# model by 0.03 to 0.13. A fraction of the measure would not do: random heads hardly differ, so
# thirds of them differ by a fifth of next to nothing. Nor would any such bound be enough alone:
# 18 random layers of width 1152 differ by 0.07 in diversity, which only the control can tell.
MIN_DIFFERENCE = 0.02
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
TOO_FEW, ONE_HEAD = "needs 3 layers or more", "needs 2 heads or more"


class Statement(NamedTuple):
    """One of the paper's statements about layers, by thirds of the layers: 0 early to 2 last."""

    text: str
    measure: str
    third: int


# Nature 2023, "attention weights of Geneformer" (Fig. 4, Extended Data Fig. 9).
STATEMENTS = (
    Statement("heads of early layers are the most diverse", "diversity", 0),
    Statement("middle layers attend the most broadly", "breadth", 1),
    Statement("last layers attend the highest ranks the most", "top", 2),
)
THIRDS = ("early", "middle", "last")


def layer_table(cells: CellMeasures, seed: int = 0) -> pd.DataFrame:
    """Returns diversity, breadth and weight on top ranks, with 95 % intervals over cells.

    A row per measure and layer, and for breadth and top also per head (head 0: mean of all heads).
    """
    rows = []
    for measure, values in cells._asdict().items():
        values = values[..., None] if values.ndim == 2 else values
        _, L, N = values.shape
        by_head = [values.mean(axis=2)] + [values[..., n] for n in range(N if N > 1 else 0)]
        for head, of_head in enumerate(by_head):
            low, high = bootstrap_interval(of_head, seed)
            for layer in range(L):
                mean = of_head[:, layer].mean()
                rows.append((measure, layer + 1, head, mean, low[layer], high[layer]))
    return pd.DataFrame(rows, columns=["measure", "layer", "head", "mean", "low", "high"])


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % percentile interval of the mean over cells; values [cells, ...].

    All columns are drawn together. A single cell has no interval, nor has what is NaN: NaN.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2 or np.isnan(values).any():
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    batch = max(1, 4_000_000 // values.size)
    drawn = stats.bootstrap(
        (values,),
        np.mean,
        axis=0,
        n_resamples=RESAMPLES,
        batch=batch,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return drawn.confidence_interval.low, drawn.confidence_interval.high


def compare_thirds(cells: CellMeasures, seed: int = 0) -> pd.DataFrame:
    """Returns each statement's third of the layers less each other third, with 95 % intervals.

    Columns: statement, measure, third, compared_with, difference, low, high and min_difference,
    which a statement needs. Empty for a model of fewer than 3 layers.
    """
    rows = []
    columns = ["statement", "measure", "third", "compared_with", "difference", "low", "high"]
    columns = [*columns, "min_difference"]
    L = cells.diversity.shape[1]
    if L < len(THIRDS):
        return pd.DataFrame(rows, columns=columns)
    for statement in STATEMENTS:
        values = getattr(cells, statement.measure)
        by_layer = values.mean(axis=2) if values.ndim == 3 else values
        layers = np.array_split(np.arange(L), len(THIRDS))
        thirds = np.stack([by_layer[:, each].mean(axis=1) for each in layers], axis=1)
        for other in range(len(THIRDS)):
            if other != statement.third:
                apart = (thirds[:, statement.third] - thirds[:, other])[:, None]
                low, high = bootstrap_interval(apart, seed)
                names = THIRDS[statement.third], THIRDS[other]
                head = statement.text, statement.measure, *names
                rows.append((*head, apart.mean(), low[0], high[0], MIN_DIFFERENCE))
    return pd.DataFrame(rows, columns=columns)


def verdicts(differences: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns whether each statement holds: statement, min_difference, a column for each model.

    With many cells any difference is significant, also that of random weights, so a least one is
    asked for as well. A statement holds if both differences are larger than `MIN_DIFFERENCE` with
    their whole interval, does not hold if one is smaller with its whole interval, and is undecided
    otherwise.
    """
    table = pd.DataFrame({"statement": [each.text for each in STATEMENTS]})
    table["min_difference"] = MIN_DIFFERENCE
    for name, of_model in differences.items():
        table[name] = [
            _verdict(of_model[of_model["statement"] == each.text]) for each in STATEMENTS
        ]
    return table


def _verdict(rows: pd.DataFrame) -> str:
    if rows.empty:
        return TOO_FEW
    if rows["difference"].isna().any():
        return ONE_HEAD
    if (rows["low"] > rows["min_difference"]).all():
        return HOLDS
    return FAILS if (rows["high"] < rows["min_difference"]).any() else UNDECIDED


def holding(statements: pd.DataFrame, model: str) -> list[str]:
    """Returns the statements that hold for a model, of a table of `verdicts`."""
    return statements.loc[statements[model] == HOLDS, "statement"].tolist()
