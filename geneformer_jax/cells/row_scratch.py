"""A scratch file that turns entries in any order into rows of cells, in bounded memory.

Chosen over reading a CSC file once per block of cells, because that reads a large file as many
times as it has blocks; here it is read once, written once and read once more per pass. Small
matrices never leave memory. The file has no name: it is gone when the process is, however it ends.
"""

import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from geneformer_jax.cells.count_matrix import Piece, Pieces
from geneformer_jax.common.errors import InputError

_BUCKET_ENTRIES = 1 << 22
_IN_MEMORY_BYTES = 1 << 26


class RowScratch:
    """Entries of a matrix in buckets of consecutive cells, each bucket small enough to sort."""

    def __init__(self, shape: tuple[int, int], entries: int, dtype: np.dtype):
        """Opens the scratch file.

        Args:
          shape: (cells, genes).
          entries: how many will be added, for sizing the buckets and the file.
          dtype: of the values.

        Raises:
          InputError: the temporary folder has too little room.
        """
        self.shape = shape
        self._record = np.dtype([("cell", "<i4"), ("gene", "<i4"), ("value", dtype)])
        mean_entries = max(entries / shape[0], 1)
        self._cells_per_bucket = int(np.clip(_BUCKET_ENTRIES / mean_entries, 1, shape[0]))
        self._n_buckets = -(-shape[0] // self._cells_per_bucket)
        # One row per piece: where each bucket's part of it begins in the file, and its end.
        self._bounds: list[np.ndarray] = []
        self._written = 0
        _require_room(entries * self._record.itemsize)
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115

    @classmethod
    def filled(cls, matrix: Pieces) -> "RowScratch":
        """Returns the scratch file of a whole matrix."""
        scratch = cls(matrix.shape, matrix.entries, matrix.dtype)
        for piece in matrix.pieces():
            scratch.add(piece)
        return scratch

    def add(self, piece: Piece) -> None:
        """Appends entries.

        Raises:
          InputError: the disk is full.
        """
        buckets = piece.cells // self._cells_per_bucket
        if self._n_buckets < 1 << 16:
            # NumPy sorts 16-bit numbers by radix, several times faster than wider ones.
            buckets = buckets.astype(np.uint16)
        order = np.argsort(buckets, kind="stable")
        records = np.empty(len(order), self._record)
        records["cell"] = piece.cells[order]
        records["gene"] = piece.genes[order]
        records["value"] = piece.values[order]
        per_bucket = np.bincount(buckets, minlength=self._n_buckets)
        bounds = np.concatenate([[0], np.cumsum(per_bucket)]) + self._written
        try:
            self._file.seek(self._written * self._record.itemsize)
            self._file.write(records.view(np.uint8).data)
        except OSError as error:
            raise InputError(_no_room(records.nbytes)) from error
        self._bounds.append(bounds)
        self._written += len(order)

    def rows(self, cells_per_batch: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) in order; entries of a cell in the order they were added."""
        for bucket in range(self._n_buckets):
            first = bucket * self._cells_per_bucket
            rows = self._bucket(bucket)
            for start in range(0, rows.shape[0], cells_per_batch):
                yield first + start, rows[start : start + cells_per_batch]

    def _bucket(self, bucket: int) -> sparse.csr_matrix:
        first = bucket * self._cells_per_bucket
        n_cells = min(self._cells_per_bucket, self.shape[0] - first)
        records = np.concatenate(
            [np.empty(0, self._record)]
            + [self._read(int(bounds[bucket]), int(bounds[bucket + 1])) for bounds in self._bounds]
        )
        cells = records["cell"] - first
        order = np.argsort(cells, kind="stable")
        pointers = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=n_cells))])
        return sparse.csr_matrix(
            (records["value"][order], records["gene"][order], pointers.astype(np.int32)),
            shape=(n_cells, self.shape[1]),
        )

    def _read(self, first: int, last: int) -> np.ndarray:
        self._file.seek(first * self._record.itemsize)
        return np.frombuffer(self._file.read((last - first) * self._record.itemsize), self._record)


def _require_room(n_bytes: int) -> None:
    if n_bytes > _IN_MEMORY_BYTES and n_bytes > shutil.disk_usage(tempfile.gettempdir()).free:
        raise InputError(_no_room(n_bytes))


def _no_room(n_bytes: int) -> str:
    return (
        f"no room in {tempfile.gettempdir()} for a scratch file of {n_bytes / 1e9:.1f} GB, needed "
        "to read a matrix that is not stored by cell; free some space or name another folder in "
        "the environment variable TMPDIR"
    )
