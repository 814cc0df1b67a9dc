"""Matrices in h5py, zarr or numpy arrays, read as rows of cells in bounded memory.

Beside anndata's `sparse_dataset` this takes 0.44 of the time for gzipped CSR, checks indices
and pointers, and reads a matrix stored by gene once, not once for each block of cells
(benchmarks/LOG.md).

`Rows` can be read cell by cell. `Pieces` (compressed by gene, or chunked across all cells) cannot:
they are read once, piece by piece, and turned over in a scratch file (`transpose`).
"""

import abc
import math
from collections.abc import Iterator
from typing import NamedTuple

import h5py
import numpy as np
from scipy import sparse

from geneformer_jax.cells.counts.lazy_columns import RowBlocks, iter_blocks
from geneformer_jax.cells.counts.options import DEFAULT_LIMITS, ReadLimits
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.threads import for_each, spans

# Fraction of values above zero in droplet data, to size the scratch of a dense matrix.
_USUAL_DENSITY = 0.1

_SHUFFLE, _GZIP = h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE
# With room left behind the content the stream's end is met before the buffer must grow.
_SPARE_BYTES = 64


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
    """A matrix [cells, genes] that can be read cell by cell, from any cell on.

    Attributes:
      shape: (cells, genes).
      together: cells that are stored as one: reading a part of them unpacks all.
    """

    shape: tuple[int, int]
    together: int = 1

    @abc.abstractmethod
    def rows(
        self, cells_per_batch: int, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) of the rows from `first` to `stop`, with values as stored."""

    @abc.abstractmethod
    def sizes(self, first: int, stop: int) -> np.ndarray:
        """Returns [stop - first] about how many values each of these rows holds; reads none."""


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

    def __init__(
        self,
        data,
        indices,
        indptr,
        shape: tuple[int, int],
        name: str,
        limits: ReadLimits = DEFAULT_LIMITS,
    ):
        """Checks the pointers.

        Raises:
          InputError: the three arrays do not describe a matrix of this shape.
        """
        self.shape, self._name, self._limits = shape, name, limits
        self._data, self._indices = _unpacking(data), _unpacking(indices)
        self._indptr = _checked_pointers(data, indices, indptr, shape[0], name, limits)

    def rows(
        self, cells_per_batch: int, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) of the rows from `first` to `stop`, with values as stored."""
        stop = self.shape[0] if stop is None else stop
        most = self._limits.entries
        for start, pointers in _spans(self._indptr, cells_per_batch, most, first, stop):
            low, high = int(pointers[0]), int(pointers[-1])
            indices = checked_indices(self._indices[low:high], self.shape[1], self._name)
            pointers = (pointers - low).astype(np.int32)
            shape = (len(pointers) - 1, self.shape[1])
            data = _native(self._data[low:high])
            yield start, sparse.csr_matrix((data, indices, pointers), shape=shape)

    def sizes(self, first: int, stop: int) -> np.ndarray:
        """Returns [stop - first] how many values each of these rows holds; reads none."""
        return np.diff(self._indptr[first : stop + 1])


class CompressedColumns(Pieces):
    """A CSC matrix in three one-dimensional arrays: compressed by gene."""

    def __init__(
        self,
        data,
        indices,
        indptr,
        shape: tuple[int, int],
        name: str,
        limits: ReadLimits = DEFAULT_LIMITS,
    ):
        """Checks the pointers.

        Raises:
          InputError: the three arrays do not describe a matrix of this shape.
        """
        self.shape, self._name, self._step = shape, name, limits.piece_entries
        self.entries, self.dtype = data.shape[0], _native_type(data.dtype)
        self._data, self._indices = _unpacking(data), _unpacking(indices)
        self._indptr = _checked_pointers(data, indices, indptr, shape[1], name, limits)[:]

    def pieces(self) -> Iterator[Piece]:
        """Yields every stored entry once, gene after gene."""
        every_gene = np.arange(self.shape[1], dtype=np.int32)
        for first in range(0, self.entries, self._step):
            last = min(first + self._step, self.entries)
            cells = checked_indices(self._indices[first:last], self.shape[0], self._name)
            per_gene = np.diff(np.clip(self._indptr, first, last))
            genes = np.repeat(every_gene, per_gene)
            yield Piece(cells, genes, _native(self._data[first:last]))


class Dense(Rows):
    """A dense matrix, [cells, genes] or (genes_first) [genes, cells]."""

    def __init__(self, array, block: int, *, genes_first: bool = False, together: int = 1):
        """Takes any array with slicing, how many cells to read at once, and `Rows.together`."""
        self._array, self._block, self._genes_first = array, block, genes_first
        self.shape, self.together = _cells_and_genes(array, genes_first), together

    def rows(
        self, cells_per_batch: int, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) of the rows from `first` to `stop`, with values as stored."""
        end = self.shape[0] if stop is None else stop
        for begin in range(first, end, self._block):
            cells = slice(begin, min(begin + self._block, end))
            dense = self._array[:, cells].T if self._genes_first else self._array[cells]
            rows = sparse.csr_matrix(_native(dense))
            for start in range(0, rows.shape[0], cells_per_batch):
                yield begin + start, rows[start : start + cells_per_batch]

    def sizes(self, first: int, stop: int) -> np.ndarray:
        """Returns [stop - first] how many values each row holds in usual data; reads none."""
        return np.full(stop - first, max(int(self.shape[1] * _USUAL_DENSITY), 1))


class DenseTiles(Pieces):
    """A dense matrix in compressed chunks so long that a block of cells would unpack most of it."""

    def __init__(self, array, tile: tuple[int, int], *, genes_first: bool = False):
        """Takes a chunked array and the size of a tile, (cells, genes), in whole chunks."""
        self._array, self._tile, self._genes_first = array, tile, genes_first
        self.shape = _cells_and_genes(array, genes_first)
        self.entries = int(self.shape[0] * self.shape[1] * _USUAL_DENSITY)
        self.dtype = _native_type(array.dtype)

    def pieces(self) -> Iterator[Piece]:
        """Yields every entry that is not zero once, tile after tile."""
        for cell in range(0, self.shape[0], self._tile[0]):
            for gene in range(0, self.shape[1], self._tile[1]):
                cells, genes = slice(cell, cell + self._tile[0]), slice(gene, gene + self._tile[1])
                tile = (
                    self._array[genes, cells].T
                    if self._genes_first
                    else (self._array[cells, genes])
                )
                at_cell, at_gene = (at.astype(np.int32) for at in np.nonzero(tile))
                values = _native(tile[at_cell, at_gene])
                yield Piece(at_cell + cell, at_gene + gene, values)


def dense_matrix(
    array, *, genes_first: bool = False, limits: ReadLimits = DEFAULT_LIMITS
) -> Rows | Pieces:
    """A dense matrix [cells, genes] or (genes_first) [genes, cells], by how it is chunked.

    Chunks are read whole, since reading a part unpacks all of it.
    """
    _, genes = _cells_and_genes(array, genes_first)
    fitting = max(limits.dense_values // max(genes, 1), 1)
    if getattr(array, "chunks", None) is None:
        return Dense(array, fitting, genes_first=genes_first)
    cells_per_chunk, genes_per_chunk = array.chunks[::-1] if genes_first else array.chunks
    block = max(fitting // cells_per_chunk, 1) * cells_per_chunk
    if block * genes <= limits.max_dense_values:
        return Dense(array, block, genes_first=genes_first, together=cells_per_chunk)
    chunk = cells_per_chunk * genes_per_chunk
    tile = (cells_per_chunk, max(limits.dense_values // chunk, 1) * genes_per_chunk)
    return DenseTiles(array, tile, genes_first=genes_first)


def _cells_and_genes(array, genes_first: bool) -> tuple[int, int]:
    rows, columns = (int(length) for length in array.shape)
    return (columns, rows) if genes_first else (rows, columns)


def _native_type(kind: np.dtype) -> np.dtype:
    """The number type in which SciPy can hold values of another: no half floats, no other bytes."""
    return np.dtype(np.float32) if kind.type is np.float16 else kind.newbyteorder("=")


def _native(values: np.ndarray) -> np.ndarray:
    return values.astype(_native_type(values.dtype), copy=False)


def _unpacking(array):
    """The same array, read by way of `GzipChunks` where that can be done."""
    return GzipChunks(array) if has_gzip_chunks(array) else array


def _spans(
    indptr: RowBlocks[np.ndarray], max_rows: int, max_entries: int, start: int, stop: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the first row and the pointers of at most `max_rows` rows, from `start` to `stop`.

    They have at most `max_entries` entries, or are one row.
    """
    while start < stop:
        pointers = indptr[start : min(start + max_rows, stop) + 1]
        fitting = np.searchsorted(pointers, pointers[0] + max_entries, side="right") - 1
        rows = max(int(fitting), 1)
        yield start, pointers[: rows + 1]
        start += rows


def _checked_pointers(
    data, indices, indptr, rows: int, name: str, limits: ReadLimits
) -> RowBlocks[np.ndarray]:
    """The row pointers as int64, read in blocks; no slice of them can leave the arrays.

    Those of a file that is known to be sound are looked at where they are read.
    """
    if any(array.ndim != 1 for array in (data, indices, indptr)):
        raise InputError(f"{name}: data, indices and indptr must have one dimension each")
    if indptr.shape[0] != rows + 1:
        raise InputError(
            f"{name}: indptr has {indptr.shape[0]} values, but {rows + 1} are needed; "
            "the matrix is damaged: write the file again"
        )
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        raise InputError(f"{name}: indptr and indices must be whole numbers; write the file again")
    if isinstance(indptr, h5py.Dataset) and (missing := unwritten_chunks(indptr)):
        # They would be read as zeros, as many as a shape asks for.
        raise InputError(f"{name}: {missing} chunks of indptr are missing; write the file again")
    stored = data.shape[0]

    def refuse_unless(sound: bool) -> None:
        if not sound:
            raise InputError(
                f"{name}: indptr does not run upwards from 0 to the {stored} values and "
                f"{indices.shape[0]} indices stored; the matrix is damaged: write the file again"
            )

    def read(start: int, stop: int) -> np.ndarray:
        block = np.asarray(indptr[start:stop], np.int64)
        refuse_unless(not np.any(np.diff(block, prepend=0) < 0) and block.max(initial=0) <= stored)
        return block

    pointers, last = RowBlocks(read, rows + 1, rows=limits.rows), 0
    if limits.known_sound:
        return pointers
    refuse_unless(pointers[0] == 0)
    for block in iter_blocks(pointers):
        refuse_unless(block[0] >= last)
        last = int(block[-1])
    refuse_unless(last == stored == indices.shape[0])
    return pointers


def unwritten_chunks(dataset: h5py.Dataset) -> int:
    """How many chunks of an HDF5 dataset were never written: it may be of any shape, and read so.

    One that is not in chunks is one.
    """
    if not dataset.size:
        return 0
    if dataset.chunks is None:
        return int(dataset.id.get_storage_size() == 0)
    grid = (-(-length // part) for length, part in zip(dataset.shape, dataset.chunks, strict=True))
    return math.prod(grid) - dataset.id.get_num_chunks()


def checked_indices(indices: np.ndarray, below: int, name: str) -> np.ndarray:
    """Returns int32 indices; raises InputError if one is not within 0 to `below` - 1."""
    indices = _native(indices)
    # Seen as unsigned, a negative index is a huge one.
    if indices.size and indices.view(f"u{indices.itemsize}").max() >= below:
        wrong = indices[(indices < 0) | (indices >= below)][0]
        raise InputError(
            f"{name}: index {wrong} is not within 0 to {below - 1}; the matrix is damaged: "
            "write the file again"
        )
    return indices.astype(np.int32, copy=False)


try:
    from isal import isal_zlib as zlib
except ImportError:  # ISA-L has no build for this processor
    import zlib


class GzipChunks:
    """A one-dimensional dataset of numbers in gzip chunks; gives what h5py would give.

    ISA-L unpacks 10 million counts and indices in chunks of 39 kB in 190 ms, h5py in 460 ms.

    Each chunk's checksum is verified. Whatever is not as expected (a chunk that is missing, damaged
    or stored unpacked) is left to h5py, which reads it or names the damage; a chunk of the wrong
    size is an error.
    """

    def __init__(self, dataset: h5py.Dataset):
        """Takes a dataset for which `has_gzip_chunks` holds."""
        self._dataset = dataset
        self.shape, self.ndim, self.dtype = dataset.shape, dataset.ndim, dataset.dtype
        self._length = dataset.chunks[0]
        self._shuffled = dataset.shuffle
        self._last: tuple[int, np.ndarray | None] = (-1, None)

    def __getitem__(self, part: slice) -> np.ndarray:
        """Returns the values of a slice without step."""
        first, last, _ = part.indices(self.shape[0])
        values = np.empty(max(last - first, 0), self.dtype)
        before, kept = self._last

        def fill(start: int) -> None:
            low, high = max(start, first), min(start + self._length, last)
            chunk = kept if start == before else self._unpacked(start)
            if high == last:
                # The next slice begins within this chunk.
                self._last = start, chunk
            within = self._dataset[low:high] if chunk is None else chunk[low - start : high - start]
            values[low - first : high - first] = within

        starts = range(first - first % self._length, last, self._length)

        def fill_span(a: int, b: int) -> None:
            for start in starts[a:b]:
                fill(start)

        for_each(fill_span, spans(len(starts)))
        return values

    def _unpacked(self, start: int) -> np.ndarray | None:
        """All values of the chunk that begins at `start`; None if it is not as expected."""
        size = self._length * self.dtype.itemsize
        try:
            skipped_filters, packed = self._dataset.id.read_direct_chunk((start,))
            if skipped_filters:
                return None
            content = zlib.decompress(packed, bufsize=size + _SPARE_BYTES)
        except (OSError, RuntimeError, zlib.error):
            return None
        if len(content) != size:
            # HDF5 would fill the rest with whatever its memory held.
            raise OSError(f"a chunk unpacks to {len(content)} bytes, but {size} are needed")
        if not self._shuffled:
            return np.frombuffer(content, self.dtype)
        by_byte = np.frombuffer(content, np.uint8).reshape(self.dtype.itemsize, self._length)
        return np.ascontiguousarray(by_byte.T).view(self.dtype)[:, 0]


def has_gzip_chunks(dataset: object) -> bool:
    """Whether an array is an HDF5 dataset that `GzipChunks` can read."""
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.chunks is None:
        return False
    if dataset.dtype.kind not in "iuf" or not dataset.size:
        return False
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(n)[0] for n in range(creation.get_nfilters())]
    stored_as_in_memory = h5py.h5t.py_create(dataset.dtype).equal(dataset.id.get_type())
    return filters in ([_GZIP], [_SHUFFLE, _GZIP]) and stored_as_in_memory
