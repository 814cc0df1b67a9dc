"""Raw counts of the cells of an analysis, found by their ids and scaled to one total."""

import numpy as np
import pandas as pd
from scipy import sparse

from geneformer_jax.cells.counts.source import CountSource
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
    rows = rows_of(source, cell_ids)
    counts, totals = [], []
    for batch in source.batches():
        wanted = np.sort(rows[(rows >= batch.start) & (rows < batch.start + len(batch.totals))])
        counts.append(batch.counts[wanted - batch.start])
        totals.append(batch.totals[wanted - batch.start])
    order = np.searchsorted(np.sort(rows), rows)
    return sparse.vstack(counts, format="csr")[order], np.concatenate(totals)[order]
