"""The ids and the obs columns of the cells of one source, as a store keeps them."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.lazy_columns import RowBlocks, iter_blocks
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.store.obs_columns import MISSING, common_kind, kind_of
from geneformer_jax.common.errors import InputError


class CellColumns:
    """The ids and the obs columns of one source.

    Attributes:
      absent: columns that the source lacks and may lack; all their values are missing.
    """

    def __init__(
        self,
        source: CountSource,
        columns: Sequence[str],
        prefix: str = "",
        optional: Collection[str] = (),
    ):
        """Reads nothing yet.

        Args:
          source: of counts.
          columns: obs columns to store.
          prefix: put in front of each cell id.
          optional: columns that the source may lack.
        """
        known = set(source.obs_columns()) if set(columns) & set(optional) else set()
        self.absent = tuple(name for name in columns if name in optional and name not in known)
        self._prefix = prefix
        self._columns = [name for name in columns if name not in self.absent]
        self._ids, self._table = source.packed_ids, _table(source, self._columns)

    def ids(self) -> Iterator[np.ndarray]:
        """Yields all cell ids as they are stored, packed, in parts."""
        return map(self._as_stored, iter_blocks(self._ids))

    def kinds(self) -> dict[str, str]:
        """How each column is kept; see `kind_of`."""
        kinds = dict.fromkeys(self.absent, MISSING)
        if not self._columns:
            return kinds
        parts = [{name: kind_of(part[name]) for name in part} for part in iter_blocks(self._table)]
        return kinds | {name: common_kind(part[name] for part in parts) for name in self._columns}

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
        """Returns ids and columns of some cells near each other, by their ascending rows."""
        first = int(rows[0]) if len(rows) else 0
        part = slice(first, int(rows[-1]) + 1 if len(rows) else 0)
        table = self._table[part].iloc[rows - first]
        # Of object type whatever the store makes of it.
        table = table.assign(**dict.fromkeys(self.absent, pd.Series(None, table.index, object)))
        return self._as_stored(self._ids[part][rows - first]), table

    def _as_stored(self, ids: np.ndarray) -> np.ndarray:
        return np.strings.add(self._prefix, ids) if self._prefix else ids


def _table(source: CountSource, columns: list[str]) -> RowBlocks[pd.DataFrame]:
    """Returns the columns of a source; a column that it lacks may be allowed to be missing."""
    try:
        return source.table(columns)
    except InputError as error:
        absent = [name for name in columns if name not in source.obs_columns()]
        if not absent:
            raise
        remedy = f'if some files may lack it, ask for "{absent[0]}?" in `obs`'
        raise InputError(f"{error}; {remedy}") from error
