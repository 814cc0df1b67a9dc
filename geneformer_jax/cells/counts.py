"""Raw counts from files, a bounded number of cells at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy import sparse


class CountBatch(NamedTuple):
    """Some consecutive cells of a source.

    Attributes:
      counts: [cells, columns] raw counts; columns are those of the source, in its order.
      totals: [cells] float64, all counts of each cell over all genes of its source.
      start: row of the first cell in the source.
    """

    counts: sparse.csr_matrix
    totals: np.ndarray
    start: int


class CountSource(Protocol):
    """An open file or folder of raw counts.

    Attributes:
      path: where it is.
      n_cells: its number of cells.
      gene_ids: [columns] str, as written in the source.
      symbols: [columns] str, or None where the source has none.
      cell_ids: [n_cells] str.
    """

    path: Path
    n_cells: int
    gene_ids: np.ndarray
    symbols: np.ndarray | None
    cell_ids: np.ndarray

    def obs(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Returns the asked (or all) per-cell columns, indexed by cell id."""

    def batches(self, cells_per_batch: int = 4096) -> Iterator[CountBatch]:
        """Yields all cells in order; raises InputError on counts that are not raw counts."""
