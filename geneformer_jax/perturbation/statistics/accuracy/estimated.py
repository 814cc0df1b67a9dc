"""Statistics of a screen: what of them rests on estimates."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from geneformer_jax.perturbation.layout import ESTIMATED, SHIFTS
from geneformer_jax.perturbation.statistics.modes.result import StatisticResult
from geneformer_jax.perturbation.statistics.tables import ShiftRows, read_provenance

COLUMN = "Estimated_fraction"


def mark_estimates(folder: Path, result: StatisticResult) -> StatisticResult:
    """Adds to statistics of a screen what rests on estimates; others stay as they are.

    Tables of edits get a column `Estimated_fraction`, of the cells of each edit in which the shift
    is an estimate.
    """
    screen = read_provenance(folder)["counts"].get("screen")
    if screen is None:
        return result
    fractions = _estimated_fractions(folder)
    tables = {name: _marked(pieces, fractions) for name, pieces in result.tables.items()}
    whole = screen["exact"] + screen["estimated"]
    text = (
        f"{screen['estimated'] / whole:.0%} of these shifts are estimates of a screen, not exact; "
        f"the column {COLUMN} tells of which edits."
    )
    return result._replace(tables=tables, text=f"{result.text} {text}")


def _estimated_fractions(folder: Path) -> pd.Series:
    sums: pd.DataFrame | None = None
    for piece in ShiftRows(folder / SHIFTS, ("perturbed", "method")):
        is_estimate = piece["method"] == ESTIMATED
        own = is_estimate.groupby(piece["perturbed"], observed=True).agg(["sum", "size"])
        sums = own if sums is None else sums.add(own, fill_value=0)
    return sums["sum"] / sums["size"]


def _marked(pieces: Iterable[pd.DataFrame], fractions: pd.Series) -> Iterator[pd.DataFrame]:
    for piece in pieces:
        if "Ensembl_ID" in piece:
            piece = piece.assign(**{COLUMN: piece["Ensembl_ID"].astype(str).map(fractions)})
        yield piece
