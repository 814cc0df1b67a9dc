"""Cutting the cells of a source into pieces of about equal numbers of values.

Where the cuts are depends on the source alone, so that however many processes share the pieces,
each of them knows the same.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from geneformer_jax.cells.counts.options import DEFAULT_LIMITS

# Some 8,000 cells of 2,000 genes: 12,000 pieces of 100 million cells, 6 for each of 2,000 workers.
PIECE_VALUES = 1 << 24


class RowPieces(NamedTuple):
    """Pieces of consecutive cells.

    Attributes:
      bounds: int64 [pieces + 1] ascending; piece i are the rows from bounds[i] to bounds[i + 1].
      sizes: int64 [pieces] about how many values of the matrix each holds.
    """

    bounds: np.ndarray
    sizes: np.ndarray


def cut_rows(
    sizes: Callable[[int, int], np.ndarray],
    rows: int,
    values: int,
    together: int = 1,
    rows_at_once: int = DEFAULT_LIMITS.rows,
) -> RowPieces:
    """Cuts rows behind those that reach a multiple of `values`; less than half a piece is none.

    Args:
      sizes: (first row, end) -> [end - first] number of values of each row.
      rows: number of rows.
      values: of a piece.
      together: rows that are stored as one, between which is no cut.
      rows_at_once: whose sizes are asked for together.
    """
    step, total = -(-rows_at_once // together) * together, 0
    bounds, ends = [np.zeros(1, np.int64)], [np.zeros(1)]
    for first in range(0, rows, step):
        reached = total + np.cumsum(sizes(first, min(first + step, rows)))
        wanted = np.arange(total // values + 1, reached[-1] // values + 1) * values
        behind = -(-(reached.searchsorted(wanted) + 1) // together) * together
        behind = np.unique(behind.clip(max=len(reached)))
        bounds.append(first + behind)
        ends.append(reached[behind - 1])
        total = reached[-1]
    return _with_last([*bounds, [rows]], [*ends, [total]], values)


def _with_last(bounds: list, ends: list, values: int) -> RowPieces:
    bounds, first = np.unique(np.concatenate(bounds).astype(np.int64), return_index=True)
    ends = np.concatenate(ends)[first]
    if len(bounds) > 2 and ends[-1] - ends[-2] < values / 2:
        bounds, ends = np.delete(bounds, -2), np.delete(ends, -2)
    return RowPieces(bounds, np.diff(ends).astype(np.int64))
