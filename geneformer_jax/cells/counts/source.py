"""What every source of raw counts has in common: batches, totals and per-cell columns."""

import abc
import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy import sparse

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.gene_table import GeneTable, no_column
from geneformer_jax.cells.counts.lazy_columns import RowBlocks, iter_blocks, rows_of
from geneformer_jax.cells.counts.matrix import Pieces, Rows
from geneformer_jax.cells.counts.matrix_choice import OpenMatrix, choose_matrices, remedy_of
from geneformer_jax.cells.counts.options import ROUND, SOMA_OPTIONS, CountOptions, ReadLimits
from geneformer_jax.cells.counts.raw_counts import MatrixLocation, as_raw_counts
from geneformer_jax.cells.counts.row_pieces import RowPieces, cut_rows
from geneformer_jax.cells.counts.transpose import RowScratch
from geneformer_jax.common.errors import InputError

TOTAL_COLUMN = "n_counts"
CELL_ID = "cell_id"
# A total kept as float32 differs from the exact sum by less than this fraction.
_TOTAL_TOLERANCE = 1e-4
_TOTALS_REMEDY = (
    f"have the totals computed by `compute_totals`, or correct or remove obs column {TOTAL_COLUMN} "
    "(they change no rank)"
)


class CountBatch(NamedTuple):
    """Some consecutive cells of a source.

    Attributes:
      counts: [cells, columns] int32 raw counts (float64 where fractions are kept); columns are
        those of the source, in its order. Indices are sorted and distinct within a cell, and no
        zero is stored.
      totals: [cells] float64, all counts of each cell over all genes of its source; 0 only for a
        cell without any count.
      start: row of the first cell in the source.
    """

    counts: sparse.csr_matrix
    totals: np.ndarray
    start: int


class CountSource(Protocol):
    """An open file or folder of raw counts.

    Attributes:
      path: where it is.
      options: how it is read.
      settled: the options that open it again without looking for its matrix.
      matrix_name: which of its matrices is read.
      origin: what else a provenance says of where the counts are from.
      remark: the same for a line of the log; '' where there is nothing to say.
      n_cells: its number of cells.
      gene_ids: [columns] str, without the name of a genome in front; '' where it has none.
      gene_column: where they are from; "index" is the index of the table of genes.
      gene_genomes: [columns] str, species of the genome in front; None if nowhere.
      symbols: [columns] str, or None where the source has none.
      cell_ids: [n_cells] str (dtype object), made anew at each use.
      packed_ids: the same in numpy's StringDType, of which slices can be taken; large files are
        read for each.
    """

    path: Path
    options: CountOptions
    matrix_name: str
    origin: Mapping[str, object]
    remark: str
    n_cells: int
    gene_ids: np.ndarray
    gene_column: str
    gene_genomes: np.ndarray | None
    symbols: np.ndarray | None
    cell_ids: np.ndarray
    packed_ids: np.ndarray | RowBlocks[np.ndarray]

    def candidate_gene_columns(self) -> Iterator[str]:
        """Yields the columns that may hold gene ids, the likeliest first; the asked one alone."""

    def use_gene_column(self, column: str, kept: np.ndarray | None = None) -> None:
        """Takes gene ids from a column, and leaves out genes that are not to be kept."""

    def table(self, columns: list[str]) -> RowBlocks[pd.DataFrame]:
        """Returns the asked per-cell columns without the ids; rows are read when they are asked."""

    def obs_columns(self) -> list[str]:
        """Names of the per-cell columns."""

    def obs(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Returns the asked (or all) per-cell columns, indexed by cell id."""

    def batches(self, cells_per_batch: int = 4096) -> Iterator[CountBatch]:
        """Yields all cells in order; raises InputError on counts that are not raw counts."""

    def cut(self, values: int) -> RowPieces:
        """Cuts the cells into pieces of about so many values; reads no counts."""

    def part(self, first: int, stop: int) -> "CountSource":
        """Returns a source of the cells of one of these pieces, which reads no others."""


class MatrixSource(GeneTable):
    """A CountSource over one matrix; each format locates its matrix and its columns.

    A format sets the attributes of CountSource and calls `_finish`. It opens its file anew for
    each use, so that a source holds no file handle and can be sent to another process.
    """

    n_cells: int
    packed_ids: np.ndarray | RowBlocks[np.ndarray]
    matrix_name: str = "X"
    origin: Mapping[str, object] = MappingProxyType({})
    remark: str = ""
    takes_soma_options: bool = False
    remedy: str = "give a file with raw counts"
    _sizes_remedy: str = "the file is damaged or not in the expected layout"
    _chosen: Sequence[str] = ()
    _totals: RowBlocks[np.ndarray] | None = None
    # Rows that are stored together; see `RowBlocks`.
    _obs_chunk: int = 1
    _scratch: RowScratch | None = None
    # Of a source of some cells of another, where they begin in it.
    _first_row: int = 0

    def __init__(self, path: Path, options: CountOptions):
        """Takes what is to be read, and how.

        Raises:
          InputError: an option is not for this kind of source.
        """
        self.path, self.options = path, options
        given = [name for name in options.changed() if name in SOMA_OPTIONS]
        if given and not self.takes_soma_options:
            raise InputError(
                f"{path} is no TileDB-SOMA experiment, for which `{given[0]}` is; leave it out"
            )

    @abc.abstractmethod
    def _matrix(self) -> contextlib.AbstractContextManager[Rows | Pieces]:
        """Opens the matrix for reading."""

    @abc.abstractmethod
    def _obs_columns(self) -> list[str]:
        """Names of the per-cell columns."""

    @abc.abstractmethod
    def _obs_shape(self, column: str) -> tuple[int, ...]:
        """The shape of a per-cell column as it is stored."""

    @abc.abstractmethod
    def _read_obs(self, columns: list[str], rows: slice) -> dict[str, object]:
        """Reads some rows of per-cell columns."""

    def _choose_matrix(self, places: Mapping[str, str], open_sample: OpenMatrix) -> None:
        """Chooses what is read of the matrices, which are at these places.

        Raises:
          InputError: see `choose_matrices`.
        """
        names = list(places)
        self._chosen = choose_matrices(names, self.options, open_sample, str(self.path))
        self.remedy = remedy_of(names, self._chosen)
        self.matrix_name = "+".join(places[name] for name in self._chosen)

    @property
    def settled(self) -> CountOptions:
        """The options that open this source again without looking for its matrix."""
        if len(self._chosen) != 1:
            return self.options
        return dataclasses.replace(self.options, counts_layer=self._chosen[0])

    @property
    def limits(self) -> ReadLimits:
        """Of memory and time."""
        return self.options.limits

    def __getstate__(self) -> dict[str, object]:
        """A copy in another process makes its own scratch file."""
        return {**self.__dict__, "_scratch": None}

    @property
    def _blocks(self) -> dict[str, int]:
        return {"chunk": self._obs_chunk, "rows": self.limits.rows}

    @property
    def cell_ids(self) -> np.ndarray:
        """[n_cells] str (dtype object), made anew at each use."""
        return self.packed_ids[:].astype(object)

    def obs_columns(self) -> list[str]:
        """Names of the per-cell columns.

        Raises:
          InputError: the file is damaged.
        """
        with explain_damage(self.path, self.kind):
            return self._obs_columns()

    def obs(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Returns the asked (or all) per-cell columns, indexed by cell id.

        Raises:
          InputError: a column is not there (near matches are named) or cannot be read.
        """
        if columns is None:
            columns = self.obs_columns()
        return self.table(columns)[:].set_axis(cell_index(self.cell_ids, columns))

    def table(self, columns: list[str]) -> RowBlocks[pd.DataFrame]:
        """Returns the asked per-cell columns without the ids; rows are read when they are asked.

        Raises:
          InputError: as from `obs`.
        """
        if columns:
            with explain_damage(self.path, self.kind):
                self._require_columns(columns)
        read = functools.partial(self._read_table, columns)
        return RowBlocks(read, self.n_cells, join=pd.concat, **self._blocks)

    def _require_columns(self, columns: list[str]) -> None:
        known = self._obs_columns()
        for column in columns:
            if column not in known:
                raise no_column(self.path, "obs", column, known)
            shape = self._obs_shape(column)
            if shape != (self._rows_in_all,):
                raise InputError(
                    f'{self.path}: obs column "{column}" has shape {shape} for '
                    f"{self._rows_in_all} cells; write the file again"
                )

    def _read_table(self, columns: list[str], start: int, stop: int) -> pd.DataFrame:
        values = {}
        if columns:
            with explain_damage(self.path, self.kind):
                rows = slice(self._first_row + start, self._first_row + stop)
                values = self._read_obs(columns, rows)
        values = {name: _native(each) for name, each in values.items()}
        return pd.DataFrame(values, index=pd.RangeIndex(start, stop), columns=columns)

    def batches(self, cells_per_batch: int = 4096) -> Iterator[CountBatch]:
        """Yields all cells in order, at most `cells_per_batch` at a time, fewer if cells are deep.

        Raises:
          InputError: the matrix cannot be read, is not made of raw counts, or has no count at all.
        """
        if cells_per_batch < 1:
            raise InputError(f"`cells_per_batch` is {cells_per_batch}, but must be at least 1")
        found = False
        with explain_damage(self.path, self.kind):
            for start, rows in self._rows(cells_per_batch):
                if self._kept_columns is not None:
                    rows = rows[:, self._kept_columns]
                matrix = f"{self.path} ({self.matrix_name})"
                location = MatrixLocation(
                    matrix, start, self.packed_ids, self.gene_ids, self.remedy
                )
                counts, sums = as_raw_counts(rows, location, self.options.fractional)
                found = found or counts.nnz > 0
                yield CountBatch(counts, self._batch_totals(counts, sums, start), start)
        if not found and self.n_cells == self._rows_in_all:
            raise InputError(
                f"{self.path} ({self.matrix_name}): no cell has a count above 0; {self.remedy}"
            )

    def _rows(self, cells_per_batch: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        if self._scratch is None:
            with self._matrix() as matrix:
                if isinstance(matrix, Rows):
                    first = self._first_row
                    found = matrix.rows(cells_per_batch, first, first + self.n_cells)
                    yield from ((start - first, rows) for start, rows in found)
                    return
                self._scratch = RowScratch.filled(matrix, self.limits)
        yield from self._scratch.rows(cells_per_batch)

    def cut(self, values: int) -> RowPieces:
        """Cuts the cells into pieces; reads no counts.

        A matrix that cannot be read from any cell on is one piece.

        Args:
          values: of the matrix, about as many as are in a piece.
        """
        with explain_damage(self.path, self.kind), self._matrix() as matrix:
            if isinstance(matrix, Rows):
                sizes = functools.partial(self._sizes, matrix)
                return cut_rows(sizes, self.n_cells, values, matrix.together, self.limits.rows)
            return RowPieces(np.array([0, self.n_cells]), np.array([matrix.entries]))

    def _sizes(self, matrix: Rows, first: int, stop: int) -> np.ndarray:
        """About how many values each of some rows holds."""
        return matrix.sizes(first, stop)

    def part(self, first: int, stop: int) -> "MatrixSource":
        """Returns a source of the cells from `first` to `stop` alone, see `cut`."""
        if (first, stop) == (0, self.n_cells):
            return self
        part = copy.copy(self)
        # The whole has been looked at when it was opened.
        part.options = self.options.of_sound_files()
        part._first_row, part.n_cells = self._first_row + first, stop - first
        part.packed_ids = rows_of(self.packed_ids, first, stop)
        part._totals = None if self._totals is None else self._totals.part(first, stop)
        return part

    def _batch_totals(
        self, counts: sparse.csr_matrix, summed: np.ndarray, start: int
    ) -> np.ndarray:
        if self._totals is None:
            return summed
        given = self._totals[start : start + len(summed)]
        # The file's own total is that of the counts before they were rounded.
        rounded_up = np.diff(counts.indptr) / 2 if self.options.fractional == ROUND else 0
        wrong = np.flatnonzero(given < summed * (1 - _TOTAL_TOLERANCE) - rounded_up)
        if wrong.size:
            row = wrong[0]
            raise InputError(
                f'{self.path}: cell "{self.packed_ids[start + row]}" has {TOTAL_COLUMN} '
                f"{given[row]:g}, less than the {summed[row]:g} counts of its genes; "
                f"{_TOTALS_REMEDY}"
            )
        return given

    def _ids_in_blocks(self, read: Callable[[int, int], np.ndarray], length: int) -> None:
        """Sets `packed_ids` to what reads (first row, end) when it is asked for."""
        read = functools.partial(self._reading_ids, read)
        self.packed_ids = RowBlocks(read, length, **self._blocks)

    def _reading_ids(
        self, read: Callable[[int, int], np.ndarray], start: int, stop: int
    ) -> np.ndarray:
        with explain_damage(self.path, self.kind):
            return read(start, stop)

    def _finish(self, shape: tuple[int, int]) -> None:
        """Checks that matrix, cells and genes agree, and the given totals."""
        if 0 in shape:
            raise InputError(
                f"{self.path} ({self.matrix_name}): the matrix is empty "
                f"({shape[0]} cells x {shape[1]} genes); give a file with cells and genes"
            )
        if shape != (len(self.packed_ids), len(self.gene_ids)):
            raise InputError(
                f"{self.path} ({self.matrix_name}): the matrix has {shape[0]} cells x {shape[1]} "
                f"genes, but {len(self.packed_ids)} cells and {len(self.gene_ids)} genes are "
                f"named; {self._sizes_remedy}"
            )
        self.n_cells = self._rows_in_all = shape[0]
        if not self.options.compute_totals and TOTAL_COLUMN in self._obs_columns():
            self._set_totals()

    def _set_totals(self) -> None:
        length = self._obs_shape(TOTAL_COLUMN)[0]
        if length != self.n_cells:
            raise InputError(
                f"{self.path}: {TOTAL_COLUMN} has {length} values for {self.n_cells} cells; "
                f"{_TOTALS_REMEDY}"
            )
        self._totals = RowBlocks(self._valid_totals, self.n_cells, **self._blocks)
        if not self.limits.known_sound:
            for _ in iter_blocks(self._totals):
                pass

    def _valid_totals(self, start: int, stop: int) -> np.ndarray:
        with explain_damage(self.path, self.kind):
            values = self._read_obs([TOTAL_COLUMN], slice(start, stop))[TOTAL_COLUMN]
        try:
            totals = pd.Series(values).to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.path}: {TOTAL_COLUMN} is not made of numbers; {_TOTALS_REMEDY}"
            ) from error
        wrong = np.flatnonzero(~np.isfinite(totals) | (totals < 0))
        if wrong.size:
            raise InputError(
                f'{self.path}: cell "{self.packed_ids[start + wrong[0]]}" has {TOTAL_COLUMN} '
                f"{totals[wrong[0]]:g}, but a total is a number of at least 0; {_TOTALS_REMEDY}"
            )
        return totals


def cell_index(ids: np.ndarray, columns: Iterable[str]) -> pd.Index:
    """The index of a table of cells: called `cell_id`, nameless where a column is called so.

    An index and a column of one name and different values can be written to no h5ad.
    """
    return pd.Index(ids).rename(None if CELL_ID in columns else CELL_ID)


def _native(column: object) -> object:
    """Numbers in the machine's order of bytes: pandas takes no rows of others."""
    if isinstance(column, np.ndarray) and not column.dtype.isnative:
        return column.astype(column.dtype.newbyteorder("="))
    return column
