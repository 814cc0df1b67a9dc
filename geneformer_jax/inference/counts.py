"""Raw counts of the cells of an analysis, found by their ids and scaled to one total."""

from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from geneformer_jax.cells.counts.options import CountArguments, CountOptions
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.tokenization.rank_encoding import TARGET_SUM
from geneformer_jax.cells.tokenization.tokenizer import TokenizedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.cells import ChosenCells


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


def are_alike(values: sparse.csr_matrix) -> bool:
    """Whether all cells [cells, genes] have the same values: PCA's solver raises at these."""
    return not (values.max(axis=0) != values.min(axis=0)).nnz


def token_columns(tokens: np.ndarray, size: int) -> sparse.csr_matrix:
    """Returns float64 [columns, size] that sums the columns of counts of each token.

    Args:
      tokens: int [columns] gene of each column, -1 for none.
      size: of the vocabulary.
    """
    known = np.flatnonzero(tokens >= 0)
    return sparse.csr_matrix(
        (np.ones(len(known)), (known, tokens[known])), shape=(len(tokens), size)
    )


def log_expression(
    source: CountSource, rows: np.ndarray, tokens: np.ndarray, size: int
) -> sparse.csr_matrix:
    """Returns float64 [cells, size]: log(1 + counts per 10,000) of each token in some cells.

    Args:
      source: of counts.
      rows: int64 [cells] their rows there.
      tokens, size: see `token_columns`.
    """
    to_token, positions, parts = token_columns(tokens, size), [], []
    for position, counts, totals in read_counts(source, rows):
        positions.append(position)
        parts.append(counts_per_10k(counts @ to_token, totals).log1p())
    return sparse.vstack(parts, format="csr")[np.argsort(np.concatenate(positions))]


def open_source(cells: ad.AnnData | Path | str, reading: CountArguments) -> CountSource:
    """Opens raw counts, an AnnData or what `open_counts` takes."""
    options = CountOptions.from_arguments(reading)
    if isinstance(cells, ad.AnnData):
        return AnnDataSource(cells, options)
    return open_counts(cells, options)


def expression_reader(
    cells: ChosenCells, given: object, reading: CountArguments
) -> Callable[[np.ndarray], sparse.csr_matrix] | None:
    """Returns what gives the `log_expression` of cells by their numbers; None without counts.

    Args:
      cells: of those that were opened from what was given.
      given, reading: see `open_cells`.
    """
    tokenized = cells.source
    is_source = isinstance(given, ad.AnnData | Path | str)
    if not (is_source and isinstance(tokenized, TokenizedCells) and tokenized.match):
        return None
    source = open_source(given, reading)
    tokenized.match.choice.apply(source)
    named = tokenized.match.tokens, tokenized.vocabulary.size
    return lambda numbers: log_expression(source, tokenized.rows[cells.rows[numbers]], *named)


def counts_per_10k(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """Returns float64 [cells, genes]: counts scaled to a total of 10,000 in each cell."""
    scale = sparse.diags_array(TARGET_SUM / np.maximum(totals, 1))
    return sparse.csr_matrix(scale @ counts.astype(np.float64))
