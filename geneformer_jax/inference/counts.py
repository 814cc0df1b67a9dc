"""Raw counts of the cells of an analysis, found by their ids and scaled to one total."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import sparse

from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.tokenization.rank_encoding import TARGET_SUM
from geneformer_jax.common.errors import InputError


def rows_of(source: CountSource, cell_ids: pd.Index) -> np.ndarray:
    """Returns int64 [cells] the rows of the named cells in a source of counts.

    Raises:
      InputError: the source lacks a cell, or has two of one id.
    """
    known = pd.Index(source.cell_ids)
    if not known.is_unique:
        repeated = known[known.duplicated()][0]
        raise InputError(f'{source.path} has several cells "{repeated}"; make the ids unique')
    rows = known.get_indexer(cell_ids)
    if (rows < 0).any():
        missing = cell_ids[rows < 0][0]
        raise InputError(
            f'{source.path} has no cell "{missing}"; name the file that the cells came from'
        )
    return rows


def counts_of(source: CountSource, cell_ids: pd.Index) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Returns (raw counts [cells, genes], totals [cells]) of the named cells, in their order.

    Raises:
      InputError: the source lacks a cell, or has two of one id.
    """
    positions, counts, totals = zip(*read_counts(source, rows_of(source, cell_ids)), strict=True)
    order = np.argsort(np.concatenate(positions))
    return sparse.vstack(counts, format="csr")[order], np.concatenate(totals)[order]


def read_counts(
    source: CountSource, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, sparse.csr_matrix, np.ndarray]]:
    """Yields the raw counts of some cells, a batch of the source at a time.

    Args:
      source: of counts.
      rows: int [n] the row of each wanted cell in the source; -1 for a cell that it lacks.

    Yields:
      (positions in `rows`, raw counts [cells, genes], totals [cells]) of the cells in a batch.
    """
    order = np.argsort(rows, kind="stable")
    for batch in source.batches():
        bounds = batch.start, batch.start + len(batch.totals)
        positions = order[slice(*np.searchsorted(rows[order], bounds))]
        here = rows[positions] - batch.start
        yield positions, batch.counts[here], batch.totals[here]


def counts_per_10k(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """Returns float64 [cells, genes]: counts scaled to a total of 10,000 in each cell."""
    scale = sparse.diags_array(TARGET_SUM / np.maximum(totals, 1))
    return sparse.csr_matrix(scale @ counts.astype(np.float64))
