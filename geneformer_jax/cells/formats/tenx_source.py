"""Raw counts as 10x Genomics Cell Ranger writes them: .h5 files and matrix.mtx folders."""

import contextlib
import csv
import gzip
import io
import itertools
import threading
from collections.abc import Iterator
from operator import index
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.matrix import CompressedRows, Piece, Pieces, Rows, checked_indices
from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.source import MatrixSource
from geneformer_jax.cells.counts.texts import as_fixed_text, as_packed_text
from geneformer_jax.cells.formats.paths import mtx_files
from geneformer_jax.common.errors import InputError, did_you_mean

_MAIN = "X"
_GENES = "Gene Expression"
_ID, _NAME, _TYPE = "gene_ids", "gene_name", "feature_types"
_OTHER_FEATURES = (
    "Antibody Capture",
    "Antigen Capture",
    "CRISPR Guide Capture",
    "Custom",
    "Multiplexing Capture",
    "Peaks",
)
_LINES_PER_PIECE = 1 << 21


class _TenxSource(MatrixSource):
    """What both 10x formats share: features of which only genes count, and cells without obs."""

    remedy = "give a file with raw counts"
    _gene_table_name = "features"
    _has_gene_index = False

    def _set_features(self, features: dict[str, np.ndarray], shape: tuple[int, int]) -> None:
        """Takes ids; leaves out features that are not genes (antibodies, guides), as they are
        no part of a cell's total over all genes.
        """
        self._feature_table = features
        self._set_genes(list(features))
        self._finish(shape)
        types = features.get(_TYPE)
        # A third column of other words is not Cell Ranger's type of feature.
        if types is None or not np.isin(types, (_GENES, *_OTHER_FEATURES)).any():
            return
        unknown = types[~np.isin(types, (_GENES, *_OTHER_FEATURES))]
        if unknown.size:
            raise InputError(
                f'{self.path}: feature type "{unknown[0]}" is not known; give each feature one of '
                f"{', '.join((_GENES, *_OTHER_FEATURES))}"
            )
        if not np.all(types == _GENES):
            self._keep_features(np.flatnonzero(types == _GENES))

    def _read_genes(self, column: str | None) -> object:
        return self._feature_table[column or _ID]

    def _obs_columns(self) -> list[str]:
        return []

    def _obs_shape(self, column: str) -> tuple[int, ...]:
        raise KeyError(column)

    def _read_obs(self, columns: list[str], rows: slice) -> dict[str, object]:
        return {}


class TenxH5Source(_TenxSource):
    """A Cell Ranger .h5 matrix of version 3 (/matrix) or 2 (one group per genome)."""

    kind = "10x h5"

    def __init__(self, path: Path, options: CountOptions):
        """Reads ids.

        Args:
          path: an .h5 file.
          options: as the layer the genome, where a version 2 file holds several; the gene column
            is "gene_ids" (as for None) or "gene_name".

        Raises:
          InputError: not a 10x matrix, or the genome or column is not there.
        """
        super().__init__(path, options)
        with explain_damage(path, self.kind), h5py.File(path, "r") as root:
            self.matrix_name = _pick_genome(root, path, options.counts_layer)
            group = root[self.matrix_name]
            self._ids_in_blocks(self._read_ids, group["barcodes"].shape[0])
            shape = tuple(index(length) for length in group["shape"][:][::-1])
            self._set_features(_h5_features(group), shape)

    def _read_ids(self, start: int, stop: int) -> np.ndarray:
        with h5py.File(self.path, "r") as root:
            return as_packed_text(root[self.matrix_name]["barcodes"][start:stop])

    @contextlib.contextmanager
    def _matrix(self) -> Iterator[Rows | Pieces]:
        with h5py.File(self.path, "r") as root:
            group = root[self.matrix_name]
            shape = tuple(index(length) for length in group["shape"][:][::-1])
            # Stored as CSC of [genes, cells], which is CSR of [cells, genes].
            arrays = (group["data"], group["indices"], group["indptr"])
            yield CompressedRows(*arrays, shape, str(self.path), self.limits)


class TenxMtxSource(_TenxSource):
    """A 10x folder: matrix.mtx, barcodes.tsv and features.tsv (or genes.tsv), gzipped or not."""

    kind = "10x mtx"
    matrix_name = "matrix.mtx"

    def __init__(self, path: Path, options: CountOptions):
        """Reads ids.

        Args:
          path: the folder, or the matrix.mtx file, which may have a prefix that its sisters share.
          options: no layer; the gene column is "gene_ids" (as for None) or "gene_name".

        Raises:
          InputError: a file is missing, or the three do not fit together.
        """
        super().__init__(path, options)
        if options.counts_layer not in (None, _MAIN):
            raise InputError(
                f'{path} has no layer "{options.counts_layer}": 10x folders have one matrix; leave '
                "`counts_layer` out"
            )
        with explain_damage(path, self.kind):
            self._file = _the_matrix(path)
            prefix = self._file.name.partition("matrix.mtx")[0]
            cells = _sister(self._file.parent, [f"{prefix}barcodes.tsv"])
            genes = _sister(self._file.parent, [f"{prefix}features.tsv", f"{prefix}genes.tsv"])
            barcodes = _Barcodes(cells)
            self._ids_in_blocks(barcodes.read, barcodes.count)
            with _open(self._file) as file:
                n_genes, n_cells, _, _ = _mtx_header(file, self._file)
            self._set_features(_tsv_features(genes), (n_cells, n_genes))

    @contextlib.contextmanager
    def _matrix(self) -> Iterator[Rows | Pieces]:
        with _open(self._file) as file:
            yield _MtxPieces(file, self._file)


class _Barcodes:
    """The barcodes of a file of one a line, which may be more than memory holds."""

    def __init__(self, path: Path):
        """Reads the file once, to count them."""
        self._path = path
        self.count = sum(1 for _ in _tsv(path))
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
                self._rest = itertools.islice(_tsv(self._path), start, None)
            self._next = stop
            rows = itertools.islice(self._rest, stop - start)
            return as_packed_text([row[0] for row in rows])


class _MtxPieces(Pieces):
    """The lines `gene cell count` (from 1) of a Matrix Market file, in whatever order."""

    def __init__(self, file: BinaryIO, path: Path):
        genes, cells, self.entries, self.dtype = _mtx_header(file, path)
        self.shape = (cells, genes)
        self._file, self._name = file, str(path)

    def pieces(self) -> Iterator[Piece]:
        """Yields every line once; raises InputError if their number is not the announced one."""
        lines = 0
        for table in self._tables():
            lines += len(table)
            if not isinstance(table.index, pd.RangeIndex):
                # pandas takes the first of four values for the name of the line.
                raise InputError(
                    f"{self._name}: has lines of more than three values; write it again"
                )
            yield Piece(
                checked_indices(table["cell"].to_numpy() - 1, self.shape[0], self._name),
                checked_indices(table["gene"].to_numpy() - 1, self.shape[1], self._name),
                table["value"].to_numpy(),
            )
        if lines != self.entries:
            raise InputError(
                f"{self._name}: its header announces {self.entries} counts, but it has {lines}; "
                "the file is not complete: copy it again"
            )

    def _tables(self) -> Iterator[pd.DataFrame]:
        if self.entries == 0:
            return iter(())
        types = {"gene": np.int64, "cell": np.int64, "value": self.dtype}
        return pd.read_csv(
            self._file,
            sep=r"\s+",
            names=list(types),
            dtype=types,
            header=None,
            na_filter=False,
            quoting=csv.QUOTE_NONE,
            chunksize=_LINES_PER_PIECE,
        )


def _mtx_header(file: BinaryIO, path: Path) -> tuple[int, int, int, np.dtype]:
    """(genes, cells, entries, type) of a Matrix Market file; leaves the file at its first entry."""
    words = file.readline(1 << 10).decode().lower().split()
    if words[:3] != ["%%matrixmarket", "matrix", "coordinate"] or words[4:] != ["general"]:
        raise InputError(
            f"{path}: is not a Matrix Market file of general coordinates; give a 10x matrix.mtx"
        )
    if words[3] not in ("integer", "real"):
        raise InputError(
            f'{path}: holds "{words[3]}" values, but counts are integer or real; give a matrix of '
            "counts"
        )
    line = file.readline()
    while line.startswith(b"%"):
        line = file.readline()
    genes, cells, entries = (int(word) for word in line.split())
    return genes, cells, entries, np.dtype(np.int64 if words[3] == "integer" else np.float64)


def _pick_genome(root: h5py.File, path: Path, layer: str | None) -> str:
    genomes = [name for name in root if isinstance(root[name], h5py.Group)]
    genomes = [name for name in genomes if "barcodes" in root[name] and "indptr" in root[name]]
    if not genomes:
        raise InputError(f"{path} has no 10x count matrix; give a Cell Ranger feature-barcode .h5")
    layer = None if layer == _MAIN else layer
    if layer is not None and layer not in genomes:
        near = did_you_mean(layer, genomes)
        raise InputError(f'{path} has no genome "{layer}"{near}; it has: {", ".join(genomes)}')
    if layer is None and len(genomes) > 1:
        listed = ", ".join(genomes)
        raise InputError(f"{path} has several genomes: name one by `counts_layer`: {listed}")
    return layer or genomes[0]


def _h5_features(group: h5py.Group) -> dict[str, np.ndarray]:
    if "features" not in group:
        return {_ID: as_fixed_text(group["genes"][:]), _NAME: as_fixed_text(group["gene_names"][:])}
    features = group["features"]
    names = {_ID: "id", _NAME: "name", _TYPE: "feature_type"}
    return {ours: as_fixed_text(features[theirs][:]) for ours, theirs in names.items()}


def _tsv_features(file: Path) -> dict[str, np.ndarray]:
    """Columns of features.tsv (id, name, type), genes.tsv (id, name) or a bare list of ids."""
    rows = list(_tsv(file))
    width = min((len(row) for row in rows), default=1)
    named = zip((_ID, _NAME, _TYPE), range(width), strict=False)
    return {name: as_fixed_text([row[column] for row in rows]) for name, column in named}


def _the_matrix(path: Path) -> Path:
    if path.is_file():
        return path
    found = mtx_files(path)
    if not found:
        raise InputError(f"{path} holds no matrix.mtx; give a 10x folder")
    if len(found) > 1:
        listed = ", ".join(file.name for file in found[:3])
        raise InputError(f"{path} holds {len(found)} matrices ({listed}, ...): name one of them")
    return found[0]


def _sister(folder: Path, names: list[str]) -> Path:
    for name in names:
        for file in (folder / name, folder / f"{name}.gz"):
            if file.is_file():
                return file
    raise InputError(
        f"{folder} holds no {' or '.join(names)} (or .gz) beside matrix.mtx; copy it there"
    )


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _tsv(path: Path) -> Iterator[list[str]]:
    with explain_damage(path, "tab-separated text"), io.TextIOWrapper(_open(path), "utf-8") as file:
        for line in file:
            yield line.rstrip("\n").split("\t")
