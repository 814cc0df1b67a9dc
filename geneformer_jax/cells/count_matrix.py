"""Matrices in h5py, zarr or numpy arrays, read as rows of cells in bounded memory.

`Rows` can be read cell by cell. `Pieces` (compressed by gene, or chunked across all cells) cannot:
they are read once, piece by piece, and turned over in a scratch file (row_scratch).
"""

import abc
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import sparse

from geneformer_jax.common.errors import InputError

# Most stored values in one batch or piece: with indices about 130 MB, however large the file.
MOST_ENTRIES = 1 << 24
_PIECE_ENTRIES = 1 << 22
# Dense blocks hold mostly zeros and are turned sparse at once.
_DENSE_BLOCK = 1 << 22
_LARGEST_DENSE_BLOCK = 1 << 25


class Piece(NamedTuple):
    """Some stored entries of a matrix, in any order.

    Attributes:
      cells: [entries] int32 rows.
      genes: [entries] int32 columns.
      values: [entries] of the matrix's own type.
    """

    cells: np.ndarray
    genes: np.ndarray
    values: np.ndarray


class Rows(abc.ABC):
    """A matrix [cells, genes] that can be read from the first cell to the last."""

    shape: tuple[int, int]

    @abc.abstractmethod
    def rows(self, cells_per_batch: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) in order, with values as stored."""


class Pieces(abc.ABC):
    """A matrix [cells, genes] that can only be read in pieces that run across the cells."""

    shape: tuple[int, int]
    entries: int
    dtype: np.dtype

    @abc.abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """Yields every stored entry once, a bounded number at a time."""


class CompressedRows(Rows):
    """A CSR matrix in three one-dimensional arrays (each only needs slicing)."""

    def __init__(self, data, indices, indptr, shape: tuple[int, int], name: str):
        """Checks the pointers.

        Raises:
          InputError: the three arrays do not describe a matrix of this shape.
        """
        self.shape = shape
        self._data, self._indices, self._name = data, indices, name
        self._indptr = _checked_pointers(data, indices, indptr, shape[0], name)

    def rows(self, cells_per_batch: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) in order, with values as stored."""
        for start, stop in _spans(self._indptr, cells_per_batch):
            first, last = int(self._indptr[start]), int(self._indptr[stop])
            indices = _checked_indices(self._indices[first:last], self.shape[1], self._name)
            pointers = (self._indptr[start : stop + 1] - first).astype(np.int32)
            shape = (stop - start, self.shape[1])
            yield start, sparse.csr_matrix((self._data[first:last], indices, pointers), shape=shape)


class CompressedColumns(Pieces):
    """A CSC matrix in three one-dimensional arrays: compressed by gene."""

    def __init__(self, data, indices, indptr, shape: tuple[int, int], name: str):
        """Checks the pointers.

        Raises:
          InputError: the three arrays do not describe a matrix of this shape.
        """
        self.shape = shape
        self.entries, self.dtype = data.shape[0], data.dtype
        self._data, self._indices, self._name = data, indices, name
        self._indptr = _checked_pointers(data, indices, indptr, shape[1], name)

    def pieces(self) -> Iterator[Piece]:
        """Yields every stored entry once, gene after gene."""
        every_gene = np.arange(self.shape[1], dtype=np.int32)
        for first in range(0, self.entries, _PIECE_ENTRIES):
            last = min(first + _PIECE_ENTRIES, self.entries)
            cells = _checked_indices(self._indices[first:last], self.shape[0], self._name)
            per_gene = np.diff(np.clip(self._indptr, first, last))
            yield Piece(cells, np.repeat(every_gene, per_gene), self._data[first:last])


class Dense(Rows):
    """A dense matrix, [cells, genes] or (genes_first) [genes, cells], stored whole or in chunks."""

    def __init__(self, array, *, genes_first: bool = False):
        """Takes any array with shape, dtype and slicing."""
        self._array, self._genes_first = array, genes_first
        cells, genes = reversed(array.shape) if genes_first else array.shape
        self.shape = (cells, genes)

    def rows(self, cells_per_batch: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) in order, with values as stored."""
        step = min(self._cells_per_block(), cells_per_batch)
        for start in range(0, self.shape[0], step):
            yield start, sparse.csr_matrix(self._block(start, min(start + step, self.shape[0])))

    def _block(self, start: int, stop: int) -> np.ndarray:
        return self._array[:, start:stop].T if self._genes_first else self._array[start:stop]

    def _cells_per_block(self) -> int:
        """Cells that fit into a block, as whole chunks so that none is unpacked twice."""
        fitting = max(_DENSE_BLOCK // self.shape[1], 1)
        chunks = getattr(self._array, "chunks", None)
        if chunks is None:
            return fitting
        cells_per_chunk = chunks[1] if self._genes_first else chunks[0]
        whole = max(fitting // cells_per_chunk, 1) * cells_per_chunk
        return whole if whole * self.shape[1] <= _LARGEST_DENSE_BLOCK else fitting


def _spans(indptr: np.ndarray, most_rows: int) -> Iterator[tuple[int, int]]:
    """Yields row spans of at most `most_rows` rows and MOST_ENTRIES entries (or one row)."""
    start, n_rows = 0, len(indptr) - 1
    while start < n_rows:
        fitting = np.searchsorted(indptr, indptr[start] + MOST_ENTRIES, side="right") - 1
        stop = min(max(int(fitting), start + 1), start + most_rows, n_rows)
        yield start, stop
        start = stop


def _checked_pointers(data, indices, indptr, rows: int, name: str) -> np.ndarray:
    """All row pointers as int64, so that no slice of them can leave the arrays."""
    if any(array.ndim != 1 for array in (data, indices, indptr)):
        raise InputError(f"{name}: data, indices and indptr must have one dimension each")
    if indptr.shape[0] != rows + 1:
        raise InputError(
            f"{name}: indptr has {indptr.shape[0]} values, but {rows + 1} are needed; "
            "the matrix is damaged: write the file again"
        )
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        raise InputError(f"{name}: indptr and indices must be whole numbers; write the file again")
    pointers = np.asarray(indptr[:]).astype(np.int64)
    stored = data.shape[0]
    ends_right = pointers[0] == 0 and pointers[-1] == stored == indices.shape[0]
    if not ends_right or np.any(np.diff(pointers) < 0):
        raise InputError(
            f"{name}: indptr does not run upwards from 0 to the {stored} values and "
            f"{indices.shape[0]} indices stored; the matrix is damaged: write the file again"
        )
    return pointers


def _checked_indices(indices: np.ndarray, below: int, name: str) -> np.ndarray:
    if indices.size and (indices.min() < 0 or indices.max() >= below):
        wrong = indices[(indices < 0) | (indices >= below)][0]
        raise InputError(
            f"{name}: index {wrong} is not within 0 to {below - 1}; the matrix is damaged: "
            "write the file again"
        )
    return indices.astype(np.int32, copy=False)
