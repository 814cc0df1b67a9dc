"""What is stored of cells beside their tokens, read a bounded number of cells at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from geneformer_jax.cells.carried_columns import common_kind, kind_of
from geneformer_jax.cells.counts.lazy_columns import blocks_of
from geneformer_jax.cells.counts.source import CountSource


class CellColumns:
    """The ids and the carried per-cell columns of one source."""

    def __init__(self, source: CountSource, columns: Sequence[str], prefix: str = ""):
        """Reads nothing yet.

        Args:
          source: of counts.
          columns: to carry.
          prefix: put in front of each cell id.
        """
        self._columns, self._prefix = list(columns), prefix
        self._ids, self._table = source.packed_ids, source.table(self._columns)

    def ids(self) -> Iterator[np.ndarray]:
        """Yields all cell ids as they are stored, packed, in parts."""
        return map(self._as_stored, blocks_of(self._ids))

    def kinds(self) -> dict[str, str]:
        """How each column is kept; see `kind_of`."""
        if not self._columns:
            return {}
        kinds = [{name: kind_of(part[name]) for name in part} for part in blocks_of(self._table)]
        return {name: common_kind(part[name] for part in kinds) for name in self._columns}

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
        """Returns ids and columns of some cells near each other, by their ascending rows."""
        if not len(rows):
            return self._as_stored(self._ids[0:0]), self._table[0:0]
        first = int(rows[0])
        part = slice(first, int(rows[-1]) + 1)
        return self._as_stored(self._ids[part][rows - first]), self._table[part].iloc[rows - first]

    def _as_stored(self, ids: np.ndarray) -> np.ndarray:
        return np.strings.add(self._prefix, ids) if self._prefix else ids
