"""Shifts compared within cells: with the cell's own mean, and with genes of like rank beside them.

Cells differ in how far any edit moves them, and within a cell a shift follows the rank of the
edited gene. Both are taken off here, before genes are compared.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import t as student

from geneformer_jax.perturbation.statistics.moments import (
    GeneIndex,
    Moments,
    RunningMoments,
    fraction_between,
)
from geneformer_jax.perturbation.statistics.rank_effect import RANGES, ranges_of
from geneformer_jax.perturbation.statistics.shifts import Pieces


@dataclasses.dataclass(frozen=True)
class WithinCells:
    """Shifts of each edit towards one state, seen within its cells.

    Attributes:
      edits: of all arrays [edits].
      cells: number of cells with any edit.
      seen: int64 [edits], cells in which the edited gene is within the model's sight.
      ranks: moments [edits] of the gene's rank, as a fraction of the last edited rank of its cell.
      centred: moments [edits] of shifts, each minus the mean of all edits of its cell.
      like_rank: the same minus the mean of the cell's other edits in its twentieth of the ranks.
      between: fraction of the variance of shifts that lies between cells.
    """

    edits: GeneIndex
    cells: int
    seen: np.ndarray
    ranks: Moments
    centred: Moments
    like_rank: Moments
    between: float


def within_cells(pieces: Pieces) -> WithinCells:
    """Compares the shifts of each edit with others of the same cells.

    Args:
      pieces: rows of one measure and state, with the `rank` of the edited gene.
    """
    cells, lengths = _survey_cells(pieces)
    edits, groups, by_cell = GeneIndex(), RunningMoments(), RunningMoments()
    for cell, place, rows in _placed(pieces, cells, lengths):
        by_cell.add(cell, rows["value"])
        groups.add(place, rows["value"])
        edits.add(rows["perturbed"], rows["perturbed_symbol"])
    levels = by_cell.result().dense(len(cells))
    ranges = groups.result().dense(len(cells) * RANGES)
    ranks, centred, like_rank = RunningMoments(), RunningMoments(), RunningMoments()
    for cell, place, rows in _placed(pieces, cells, lengths):
        values, rank = rows["value"].to_numpy(np.float64), rows["rank"].to_numpy()
        edit = edits.find(rows["perturbed"])
        centred.add(edit, values - levels.means[cell])
        ranks.add(edit[rank > 0], (rank / lengths[cell])[rank > 0])
        usable = (rank > 0) & (ranges.counts[place] > 1)
        like_rank.add(edit[usable], _minus_others(values, ranges, place)[usable])
    found = (each.result().dense(len(edits)) for each in (ranks, centred, like_rank))
    ranks, centred, like_rank = found
    return WithinCells(
        edits, len(cells), ranks.counts, ranks, centred, like_rank, fraction_between(levels)
    )


def paired_p_values(moments: Moments) -> np.ndarray:
    """Two-sided p-values [edits] that differences have mean 0, by paired t-tests over cells.

    NaN for edits of one cell, and where all differences are the same.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(moments.counts > 1, moments.counts - 1.0, np.nan)
        errors = np.sqrt(moments.squares / freedom / moments.counts)
        t = np.where(errors > 0, moments.means / errors, np.nan)
    return 2 * student.sf(np.abs(t), freedom)


def _survey_cells(pieces: Pieces) -> tuple[GeneIndex, np.ndarray]:
    """Returns the cells, and int64 [cells] the last edited rank of each, at least 1."""
    cells, lengths = GeneIndex(), np.zeros(0, np.int64)
    for piece in pieces:
        cell = cells.add(piece["cell"], piece["cell"])
        lengths = np.pad(lengths, (0, len(cells) - len(lengths)), constant_values=1)
        np.maximum.at(lengths, cell, piece["rank"].to_numpy(np.int64))
    return cells, lengths


def _placed(
    pieces: Pieces, cells: GeneIndex, lengths: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, pd.DataFrame]]:
    """Yields (cell of each row, its range of ranks among those of all cells, rows)."""
    for piece in pieces:
        rows = piece[piece["value"].notna()]
        cell = cells.find(rows["cell"])
        places = ranges_of(np.maximum(rows["rank"].to_numpy(np.int64), 1), lengths[cell])
        yield cell, cell * RANGES + places, rows


def _minus_others(values: np.ndarray, ranges: Moments, place: np.ndarray) -> np.ndarray:
    """Each value minus the mean of the others of its range; NaN for one that is alone."""
    counts = ranges.counts[place]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (values - ranges.means[place]) * counts / (counts - 1)
