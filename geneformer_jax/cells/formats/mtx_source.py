"""Raw counts from folders of Matrix Market files, as Cell Ranger and other pipelines write them."""

import contextlib
import io
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.matrix import Pieces, Rows
from geneformer_jax.cells.counts.matrix_choice import (
    MAIN,
    SAMPLE_LIMITS,
    choose_matrices,
    remedy_of,
    sum_of,
)
from geneformer_jax.cells.counts.options import CountOptions, ReadLimits
from geneformer_jax.cells.counts.texts import as_fixed_text, as_packed_text
from geneformer_jax.cells.formats.features import ID, SYMBOL, TYPE, FeatureSource
from geneformer_jax.cells.formats.matrix_market import LONGEST_LINE, MatrixMarketPieces, open_text
from geneformer_jax.cells.formats.mtx_layouts import layout_of
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.tables import require_no_nul

_CELL_IDS = ("bc_wells", "cell_barcode", "barcode")
_NAMELESS = "Unnamed: 0"
_TABLE = ".csv"
# Peaks of the largest atlases are a few million.
_MOST_FEATURES = 10_000_000


class MtxSource(FeatureSource):
    """A folder of a matrix, names of its cells and names of its genes, gzipped or not."""

    def __init__(self, path: Path, options: CountOptions):
        """Reads ids.

        Args:
          path: the folder, or one of its matrices; files may have a prefix that all share.
          options: as the layer one of several matrices by its name (of alevin-fry "spliced",
            "unspliced" or "ambiguous"), or a sum of some.

        Raises:
          InputError: a file is missing, or the files do not fit together.
        """
        super().__init__(path, options)
        self.kind = "Matrix Market"
        with explain_damage(path, self.kind):
            self._layout = layout_of(path)
            self.kind = f"Matrix Market of {self._layout.kind.software}"
            self._sizes_remedy = (
                f"look in {self._layout.cells.name} and {self._layout.genes.name} for a heading or "
                "a missing line, or copy all files of one run again"
            )
            self._set_cells(self._layout.cells)
            features = _features(self._layout.genes, self._layout.symbols)
            self._n_blocks = self._count_blocks(features)
            n_genes = len(features[next(iter(features))]) // self._n_blocks
            features = {name: values[:n_genes] for name, values in features.items()}
            self._choose(n_genes)
            with self._matrix() as matrix:
                shape = matrix.shape
            self._set_features(features, shape)

    def _count_blocks(self, features: dict[str, np.ndarray]) -> int:
        """How many times the genes are there, once for each block."""
        blocks = self._layout.kind.blocks
        if not blocks:
            return 1
        ids = features[ID]
        n_genes = len(ids) // len(blocks)
        marks = [f"-{name[0].upper()}" for name in blocks[1:]]
        expected = np.concatenate([ids[:n_genes], *(np.char.add(ids[:n_genes], m) for m in marks)])
        return len(blocks) if np.array_equal(ids, expected) else 1

    def _choose(self, n_genes: int) -> None:
        """Chooses matrices or blocks, and finds out whether a row is a gene."""
        kind, options = self._layout.kind, self.options
        self._genes_first = self._are_genes_first(n_genes)
        names = list(kind.blocks) if self._n_blocks > 1 else list(self._layout.matrices)
        if self._n_blocks > 1 and options.counts_layer in (None, MAIN):
            self._chosen = list(kind.usual)
        else:
            self._chosen = choose_matrices(names, options, self._sample, str(self.path))
        self.remedy = remedy_of(names, self._chosen)
        files = self._layout.matrices
        file = next(iter(files.values())).name
        self.matrix_name = (
            f"{file}: {'+'.join(self._chosen)}"
            if self._n_blocks > 1
            else "+".join(files[name].name for name in self._chosen)
        )

    def _are_genes_first(self, n_genes: int) -> bool:
        """Whether a row of the matrix is a gene: as the kind has it, or else as the sizes tell.

        Many write a matrix again without turning it over.
        """
        usual = self._layout.kind.genes_first
        file = next(iter(self._layout.matrices.values()))
        named = (len(self.packed_ids), n_genes)
        for genes_first in (usual, not usual):
            pieces = MatrixMarketPieces(file, genes_first=genes_first, n_blocks=self._n_blocks)
            if pieces.shape == named:
                return genes_first
        return usual

    def _sample(self, name: str) -> Pieces:
        return self._open(name, SAMPLE_LIMITS)

    def _open(self, name: str, limits: ReadLimits) -> Pieces:
        return MatrixMarketPieces(
            self._layout.matrices[name], genes_first=self._genes_first, limits=limits
        )

    @contextlib.contextmanager
    def _matrix(self) -> Iterator[Rows | Pieces]:
        if self._n_blocks == 1:
            parts = [self._open(name, self.limits) for name in self._chosen]
            yield sum_of(parts, f"{self.path} ({self.matrix_name})")
            return
        (file,) = self._layout.matrices.values()
        blocks = [self._layout.kind.blocks.index(name) for name in self._chosen]
        yield MatrixMarketPieces(
            file,
            genes_first=self._genes_first,
            n_blocks=self._n_blocks,
            blocks=blocks,
            limits=self.limits,
        )

    def _set_cells(self, file: Path) -> None:
        if _TABLE in file.suffixes:
            named = list(pd.read_csv(file, nrows=0).columns)
            usual = [name for name in (*_CELL_IDS, *named) if name in named]
            column = next((name for name in usual if name != _NAMELESS), named[0])
            # As text: ids may begin with zeros.
            table = _read_csv(file, dtype={column: str})
            self.packed_ids = as_packed_text(table[column])
            self._obs_table = table.drop(columns=column)
            return
        barcodes = _Barcodes(file)
        self._ids_in_blocks(barcodes.read, barcodes.count)


class _Barcodes:
    """The barcodes of a file of one a line, which may be more than memory holds."""

    def __init__(self, path: Path):
        """Reads the file once, to count them."""
        self._path = path
        self.count = sum(1 for _ in _lines(path))
        self._rest: Iterator[list[str]] = iter(())
        self._next = self.count
        # Errors met while counts are read ahead name cells, too.
        self._reading = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        # In another process the file is begun anew.
        return _Barcodes, (self._path,)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns barcodes [start, stop); others than the next ones cost a new start."""
        with self._reading:
            if start != self._next:
                self._rest = itertools.islice(_lines(self._path), start, None)
            self._next = stop
            rows = itertools.islice(self._rest, stop - start)
            return as_packed_text([row[0] for row in rows])


def _features(file: Path, symbols: Path | None) -> dict[str, np.ndarray]:
    """Columns of a table of genes: with a header (.csv), or else id, name and type.

    A file of symbols has them in the same order.
    """
    if _TABLE in file.suffixes:
        table = _read_csv(file, dtype=str)
        return {name: as_fixed_text(values) for name, values in table.items()}
    rows = list(itertools.islice(_lines(file), _MOST_FEATURES + 1))
    if len(rows) > _MOST_FEATURES:
        raise InputError(
            f"{file} has more than {_MOST_FEATURES:,} lines, but they are genes or other features; "
            "give a matrix of genes"
        )
    width = min((len(row) for row in rows), default=1)
    columns = zip((ID, SYMBOL, TYPE), range(width), strict=False)
    features = {name: as_fixed_text([row[column] for row in rows]) for name, column in columns}
    if symbols is not None:
        features[SYMBOL] = as_fixed_text([row[0] for row in _lines(symbols)])
    return features


def _read_csv(file: Path, **options: object) -> pd.DataFrame:
    """A table with a header, without a nameless first column that only numbers the rows."""
    with explain_damage(file, "comma-separated text"):
        require_no_nul(file)
        table = pd.read_csv(file, **options)
    if _NAMELESS in table and table.shape[1] > 1:
        numbers = table[_NAMELESS].astype(str).str.isdigit()
        table = table.drop(columns=_NAMELESS) if numbers.all() else table
    return table


def _lines(path: Path) -> Iterator[list[str]]:
    """The fields of each line of tab-separated text, without the quotes that R writes."""
    with (
        explain_damage(path, "tab-separated text"),
        io.TextIOWrapper(open_text(path), "utf-8") as file,
    ):
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise ValueError(f"it has a line of more than {LONGEST_LINE:,} letters")
            if "\0" in line:
                raise ValueError("it holds NUL bytes")
            line = line.rstrip("\r\n")
            fields = line.split("\t")
            yield [field.strip('"') for field in fields] if '"' in line else fields
