"""How much of what edits do follows from the rank of the edited gene alone."""

from collections import defaultdict

import numpy as np
import pandas as pd

from geneformer_jax.perturbation.statistics.moments import moments_of
from geneformer_jax.perturbation.statistics.shifts import Pieces

# Ranges of ranks in each cell, of equal width.
RANGES = 20


def variance_by_rank(pieces: Pieces) -> pd.DataFrame:
    """Measures which part of the variance of shifts within cells lies between ranges of ranks.

    Each cell is cut into 20 ranges of ranks. How shifts vary within a range is compared with how
    they vary within a cell; both are corrected for the number of means that are taken off.

    Args:
      pieces: rows of all measures and states, cell after cell, with the `rank` of the edited gene;
        those without one (0) are left out.

    Returns:
      One row for each measure and state: measure, state, explained (from 0 to 1, NaN where there
      are too few edits or no variance), edits.
    """
    sums: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(5))
    for piece in pieces:
        piece = piece[(piece["rank"] > 0) & piece["value"].notna()]
        for key, rows in piece.groupby(["measure", "state"], sort=False, observed=True):
            sums[key] += _within(rows)
    found = [(*key, _explained(each), int(each[0])) for key, each in sums.items()]
    return pd.DataFrame(found, columns=["measure", "state", "explained", "edits"])


def ranges_of(ranks: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the range, from 0, of each rank (from 1) in a cell of this length."""
    return (ranks - 1) * RANGES // lengths


def _within(rows: pd.DataFrame) -> np.ndarray:
    """Returns edits; sum of squares and number of groups, of cells and of their ranges of ranks."""
    cells, ranks = pd.factorize(rows["cell"])[0], rows["rank"].to_numpy(np.int64)
    lengths = np.zeros(cells.max() + 1, np.int64)
    np.maximum.at(lengths, cells, ranks)
    ranges = ranges_of(ranks, lengths[cells])
    values = rows["value"].to_numpy(np.float64)
    groups = [moments_of(keys, values) for keys in (cells, cells * RANGES + ranges)]
    sizes = [number for each in groups for number in (each.squares.sum(), len(each.keys))]
    return np.array([len(rows), *sizes])


def _explained(sums: np.ndarray) -> float:
    edits, of_cells, cells, of_ranges, ranges = sums
    if edits <= ranges or of_cells <= 0:
        return float("nan")
    return max(1 - (of_ranges / (edits - ranges)) / (of_cells / (edits - cells)), 0.0)
