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
    """Cuts rows into pieces of about as many values each, behind the rows that reach them.

    Args:
      sizes: (first row, end) -> [end - first] number of values of each row; asked for twice.
      rows: number of rows.
      values: of a piece, about.
      together: rows that are stored as one, between which is no cut.
      rows_at_once: whose sizes are asked for together.
    """
    step = -(-rows_at_once // together) * together
    blocks = [(first, min(first + step, rows)) for first in range(0, rows, step)]
    total = sum(sizes(*block).sum() for block in blocks)
    pieces = max(round(total / values), 1)
    marks = np.arange(1, pieces) * (total / pieces)
    bounds, ends, before = [np.zeros(1, np.int64)], [np.zeros(1)], 0
    for first, stop in blocks:
        reached = before + np.cumsum(sizes(first, stop))
        own = marks[slice(*marks.searchsorted([before, reached[-1]], "right"))]
        behind = -(-(reached.searchsorted(own) + 1) // together) * together
        behind = behind.clip(max=len(reached))
        bounds.append(first + behind)
        ends.append(reached[behind - 1])
        before = reached[-1]
    return _joined([*bounds, [rows]], [*ends, [total]])


def _joined(bounds: list, ends: list) -> RowPieces:
    """Pieces from where they end, in rows and in values; several marks may be in one row."""
    bounds, first = np.unique(np.concatenate(bounds).astype(np.int64), return_index=True)
    return RowPieces(bounds, np.diff(np.concatenate(ends)[first]).astype(np.int64))
