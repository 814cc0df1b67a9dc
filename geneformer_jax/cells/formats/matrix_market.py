"""Matrices in Matrix Market files, read a bounded number of lines at a time."""

import csv
import gzip
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.matrix import Piece, Pieces, checked_indices
from geneformer_jax.cells.counts.options import DEFAULT_LIMITS, ReadLimits
from geneformer_jax.common.errors import InputError

# SciPy from 1.12 on writes matrices of unsigned numbers as "unsigned-integer".
_TYPES = {"integer": np.int64, "unsigned-integer": np.int64, "real": np.float64}

# Letters; a packed file may unpack to a thousand times its size, all of it in one line.
LONGEST_LINE = 1 << 16


class _CheckedLines(io.BufferedIOBase):
    """A file that is given up where pandas would take absurd memory, or other numbers for it.

    It holds all of a line that does not end, and takes a NUL byte, as disks leave them where
    writing broke off, for the end of a number.
    """

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path = file, path
        self._without_end = 0

    def readable(self) -> bool:
        """Asked for by Python, which makes text of the bytes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes, or all that are left; newer pandas calls this one."""
        return self.read1(size) if size >= 0 else b"".join(iter(self.read1, b""))

    def read1(self, size: int = -1) -> bytes:
        """Returns the next bytes; raises InputError if they are no text or of too long a line."""
        data = self._file.read1(size)
        if b"\0" in data:
            raise InputError(
                f"{self._path}: holds NUL bytes, where a row, a column and a count should stand; "
                "the file is damaged: copy it again"
            )
        last = max(data.rfind(b"\n"), data.rfind(b"\r"))
        self._without_end = len(data) - last - 1 + (self._without_end if last < 0 else 0)
        if self._without_end > LONGEST_LINE:
            raise InputError(
                f"{self._path}: has a line of more than {LONGEST_LINE:,} letters, where a row, a "
                "column and a count should stand; the file is damaged: copy it again"
            )
        return data


class Header(NamedTuple):
    """What the first lines of a Matrix Market file say: its size and the type of its values."""

    rows: int
    columns: int
    entries: int
    dtype: np.dtype


class MatrixMarketPieces(Pieces):
    """The lines `row column value` (from 1) of a Matrix Market file, in whatever order."""

    def __init__(
        self,
        path: Path,
        *,
        genes_first: bool,
        n_blocks: int = 1,
        blocks: Collection[int] = (0,),
        limits: ReadLimits = DEFAULT_LIMITS,
    ):
        """Reads the header.

        Args:
          path: of the file, gzipped or not.
          genes_first: whether a row is a gene; else it is a cell.
          n_blocks: the genes stand there so many times, one block of all genes after the other.
          blocks: those whose counts are taken; a gene's counts in several of them are added.
          limits: of the entries in a piece.

        Raises:
          InputError: not a Matrix Market file of counts.
        """
        with open_text(path) as file:
            self._header = read_header(file, path)
        header = self._header
        genes, cells = header[:2] if genes_first else header[1::-1]
        self.shape = (cells, genes // n_blocks)
        self.entries, self.dtype = header.entries, header.dtype
        self._path, self._genes_first = path, genes_first
        self._blocks = sorted(blocks) if n_blocks > 1 else None
        self._lines_per_piece = limits.piece_entries // 2

    def pieces(self) -> Iterator[Piece]:
        """Yields every line once; raises InputError if their number is not the announced one."""
        lines = 0
        with open_text(self._path) as file:
            read_header(file, self._path)
            for table in self._tables(file):
                lines += len(table)
                if not isinstance(table.index, pd.RangeIndex):
                    # pandas takes the first of four values for the name of the line.
                    raise InputError(
                        f"{self._path}: has lines of more than three values (STARsolo before 2.7.6 "
                        "put spliced, unspliced and ambiguous counts of a gene into one line); "
                        "write a file for each"
                    )
                yield self._piece(table)
        if lines != self.entries:
            raise InputError(
                f"{self._path}: its header announces {self.entries} counts, but it has {lines}; "
                "the file is not complete: copy it again"
            )

    def _piece(self, table: pd.DataFrame) -> Piece:
        names = ("row", "column") if self._genes_first else ("column", "row")
        sizes = self._header[:2] if self._genes_first else self._header[1::-1]
        genes, cells = (
            checked_indices(table[name].to_numpy() - 1, size, str(self._path))
            for name, size in zip(names, sizes, strict=True)
        )
        values = table["value"].to_numpy()
        if self._blocks is None:
            return Piece(cells, genes, values)
        taken = np.isin(genes // self.shape[1], self._blocks)
        return Piece(cells[taken], genes[taken] % self.shape[1], values[taken])

    def _tables(self, file: BinaryIO) -> Iterator[pd.DataFrame]:
        if self.entries == 0:
            return iter(())
        types = {"row": np.int64, "column": np.int64, "value": self.dtype}
        return pd.read_csv(
            _CheckedLines(file, self._path),
            sep=r"\s+",
            names=list(types),
            dtype=types,
            header=None,
            # NaN is told with its place; no text means it among whole numbers.
            na_filter=self.dtype.kind == "f",
            quoting=csv.QUOTE_NONE,
            chunksize=self._lines_per_piece,
        )


def read_header(file: BinaryIO, path: Path) -> Header:
    """Reads the header; leaves the file at its first entry.

    Raises:
      InputError: it is no Matrix Market file of counts.
    """
    words = file.readline(1 << 10).decode(errors="replace").lower().split()
    if words[:2] != ["%%matrixmarket", "matrix"] or len(words) != 5:
        raise InputError(f"{path}: is not a Matrix Market file; give a matrix of counts")
    layout, values, symmetry = words[2:]
    for is_wrong, what in (
        (layout != "coordinate", f'is a dense matrix ("{layout}"), but a sparse one is needed'),
        (values not in _TYPES, f'holds "{values}" values, but counts are integer or real'),
        (symmetry != "general", f'is "{symmetry}", but a matrix of counts is general'),
    ):
        if is_wrong:
            raise InputError(f"{path}: {what}; write it as coordinates of counts")
    line = file.readline(LONGEST_LINE)
    while line.startswith(b"%"):
        line = file.readline(LONGEST_LINE)
    rows, columns, entries = (int(word) for word in line.split())
    return Header(rows, columns, entries, np.dtype(_TYPES[values]))


def open_text(path: Path) -> BinaryIO:
    """Opens a file of text, gzipped or not."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
