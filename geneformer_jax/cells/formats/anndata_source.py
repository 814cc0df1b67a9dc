"""Raw counts from AnnData: files, stores, inside MuData and SpatialData, and objects in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.matrix import (
    CompressedColumns,
    CompressedRows,
    Pieces,
    Rows,
    dense_matrix,
)
from geneformer_jax.cells.counts.matrix_choice import MAIN, SAMPLE_LIMITS, sum_of
from geneformer_jax.cells.counts.options import DEFAULT_OPTIONS, CountOptions, ReadLimits
from geneformer_jax.cells.counts.texts import as_packed_text, has_texts
from geneformer_jax.cells.formats.containers import (
    open_store,
    place_of_anndata,
    shown_place,
)
from geneformer_jax.cells.formats.dataframes import (
    check_no_pickle,
    column_shape,
    index_name,
    is_text_column,
    read_column,
    read_texts,
    require_chunks,
    require_written,
    rows_per_chunk,
    table_columns,
    table_of,
)
from geneformer_jax.cells.formats.features import TypedFeatures
from geneformer_jax.cells.formats.hdf5_filters import require_filters
from geneformer_jax.cells.formats.paths import is_hdf5
from geneformer_jax.common.errors import InputError

if TYPE_CHECKING:
    import anndata
    import zarr

    from geneformer_jax.cells.formats.dataframes import Table

_RAW = "raw"


class AnnDataFileSource(TypedFeatures):
    """An AnnData on disk; nothing but the asked elements is read."""

    def __init__(self, path: Path, options: CountOptions):
        """Reads ids and totals.

        Args:
          path: an HDF5 file, a zarr folder or a zipped one; of AnnData, MuData or SpatialData.
          options: which matrix and gene ids.

        Raises:
          InputError: not an AnnData, the layer or column is not there, or several matrices may be
            meant.
        """
        super().__init__(path, options)
        self._is_zarr = not is_hdf5(path)
        self.kind = "zarr AnnData" if self._is_zarr else "h5ad"
        with explain_damage(self.path, self.kind):
            self._place = place_of_anndata(path)
        with explain_damage(self.path, self.kind), self._root() as root:
            for name in ("obs", "var"):
                if name not in root:
                    raise InputError(
                        f'{self.path} has no "{name}": it is not an AnnData; give a file or '
                        "store that AnnData wrote"
                    )
            self._places = _matrix_places(root)
            if not self._is_zarr:
                require_filters((root[place] for place in self._places.values()), path)
            inner = shown_place(self._place)
            named = {name: f"{inner}/{place}".strip("/") for name, place in self._places.items()}
            self._choose_matrix(named, lambda name: self._open(root, name, SAMPLE_LIMITS))
            _check_sum(self._chosen, path)
            is_raw = self._chosen == [_RAW]
            self._genes_path = f"{self._places[_RAW][:-1]}var" if is_raw else "var"
            shape = self._sum(root).shape
            self._n_features = shape[1]
            self._set_cells(table_of(root, "obs", self.path))
            self._set_genes(table_columns(table_of(root, self._genes_path, self.path)))
            self._finish(shape)
        self._leave_out_other_features()

    def _set_cells(self, obs: Table) -> None:
        name = index_name(obs)
        # HDF5 keeps the last chunks itself.
        require_written(obs, name, self.path)
        self._obs_chunk = rows_per_chunk(obs, name) if self._is_zarr else 1
        self._ids_in_blocks(self._read_ids, column_shape(obs, name)[0])

    def _read_ids(self, start: int, stop: int) -> np.ndarray:
        with self._root() as root:
            obs = table_of(root, "obs", self.path)
            return as_packed_text(read_texts(obs, index_name(obs), slice(start, stop)))

    def _root(self) -> contextlib.AbstractContextManager[h5py.Group | zarr.Group]:
        return open_store(self.path, self._place)

    def _is_text(self, column: str) -> bool:
        with self._root() as root:
            return is_text_column(table_of(root, self._genes_path, self.path), column)

    def _read_genes(self, column: str | None) -> object:
        with self._root() as root:
            genes = table_of(root, self._genes_path, self.path)
            name = column or index_name(genes)
            # Before so many are read, a shape may be any number.
            if (shape := column_shape(genes, name)) != (self._n_features,):
                raise InputError(
                    f"{self.path}: {self._genes_path}/{name} has shape {shape} for "
                    f"{self._n_features:,} genes; {self._sizes_remedy}"
                )
            return read_texts(genes, name)

    def _open(self, root: h5py.Group | zarr.Group, name: str, limits: ReadLimits) -> Rows | Pieces:
        place = self._places[name]
        return _open_matrix(root[place], f"{self.path} ({place})", limits)

    def _sum(self, root: h5py.Group | zarr.Group) -> Rows | Pieces:
        parts = [self._open(root, name, self.limits) for name in self._chosen]
        return sum_of(parts, f"{self.path} ({self.matrix_name})")

    @contextlib.contextmanager
    def _matrix(self) -> Iterator[Rows | Pieces]:
        with self._root() as root:
            yield self._sum(root)

    def _obs_columns(self) -> list[str]:
        with self._root() as root:
            return table_columns(table_of(root, "obs", self.path))

    def _obs_shape(self, column: str) -> tuple[int, ...]:
        with self._root() as root:
            return column_shape(table_of(root, "obs", self.path), column)

    def _read_obs(self, columns: list[str], rows: slice) -> dict[str, object]:
        with self._root() as root:
            obs = table_of(root, "obs", self.path)
            return {column: read_column(obs, column, rows) for column in columns}


class AnnDataSource(TypedFeatures):
    """An AnnData object, in memory or backed by a file, as a source; it is never changed."""

    kind = "AnnData"

    def __init__(self, adata: anndata.AnnData, options: CountOptions = DEFAULT_OPTIONS):
        """Takes ids and totals.

        Args:
          adata: with raw counts in the chosen matrix.
          options: which matrix and gene ids.

        Raises:
          InputError: the layer or column is not there, several matrices may be meant, or the matrix
            is not in memory.
        """
        super().__init__(Path("AnnData"), options)
        self._adata = adata
        # From anndata 0.13 on, X is also the layer None.
        names = [name for name in adata.layers if name is not None]
        names = [*([] if adata.X is None else [MAIN]), *names]
        if adata.raw is not None:
            names.append(_RAW)
        self._choose_matrix(
            dict(zip(names, names, strict=True)), lambda name: self._open(name, SAMPLE_LIMITS)
        )
        _check_sum(self._chosen, self.path)
        self._genes = (adata.raw if self._chosen == [_RAW] else adata).var
        self.packed_ids = as_packed_text(adata.obs_names)
        self._set_genes([str(column) for column in self._genes.columns])
        self._finish(self._sum().shape)
        self._leave_out_other_features()

    def _is_text(self, column: str) -> bool:
        return has_texts(_column(self._genes, column))

    def _read_genes(self, column: str | None) -> object:
        return self._genes.index if column is None else _column(self._genes, column)

    def _open(self, name: str, limits: ReadLimits) -> Rows | Pieces:
        values = self._values(name)
        if isinstance(values, np.ndarray):
            return dense_matrix(values, limits=limits)
        if sparse.issparse(values) and values.format in ("csr", "csc"):
            layout = CompressedRows if values.format == "csr" else CompressedColumns
            arrays = (values.data, values.indices, values.indptr)
            return layout(*arrays, values.shape, f"AnnData ({name})", limits)
        if isinstance(values, h5py.Dataset):
            return _open_matrix(values, f"AnnData ({name})", limits)
        # A sparse matrix of an AnnData that is backed by a file.
        if isinstance(group := getattr(values, "group", None), h5py.Group):
            return _open_matrix(group, f"AnnData ({name})", limits)
        raise InputError(
            f"AnnData ({name}) is a {type(values).__name__}, but a NumPy array or a CSR or CSC "
            "matrix, in memory or in an .h5ad file, is needed; use adata.to_memory()"
        )

    def _values(self, name: str) -> object:
        if name == MAIN:
            return self._adata.X
        return self._adata.raw.X if name == _RAW else self._adata.layers[name]

    def _sum(self) -> Rows | Pieces:
        parts = [self._open(name, self.limits) for name in self._chosen]
        return sum_of(parts, f"AnnData ({self.matrix_name})")

    @contextlib.contextmanager
    def _matrix(self) -> Iterator[Rows | Pieces]:
        yield self._sum()

    def _obs_columns(self) -> list[str]:
        return [str(column) for column in self._adata.obs.columns]

    def _obs_shape(self, column: str) -> tuple[int, ...]:
        return _column(self._adata.obs, column).shape

    def _read_obs(self, columns: list[str], rows: slice) -> dict[str, object]:
        return {column: _column(self._adata.obs, column).array[rows] for column in columns}


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    """A column by its name as text: names need not be texts."""
    return table.iloc[:, [str(each) for each in table.columns].index(name)]


def _matrix_places(root: h5py.Group | zarr.Group) -> dict[str, str]:
    """Where the matrices are: X, the layers by name, and raw (which hides a layer of that name)."""
    places = {MAIN: MAIN, **{name: f"layers/{name}" for name in root.get("layers", {})}}
    # AnnData before 0.7 wrote raw.X and raw.var.
    for raw in ("raw.X", "raw/X"):
        if raw in root:
            places[_RAW] = raw
    there = {name: place for name, place in places.items() if place in root}
    return {name: place for name, place in there.items() if not _is_null(root[place])}


def _is_null(node: Mapping | h5py.Dataset | zarr.Array) -> bool:
    """Whether AnnData wrote None here."""
    return node.attrs.get("encoding-type") == "null"


def _check_sum(chosen: list[str], path: Path) -> None:
    if _RAW in chosen and len(chosen) > 1:
        raise InputError(
            f"{path}: raw has genes of its own and cannot be added to layers; name layers alone by "
            "`counts_layer`"
        )


def _open_matrix(
    node: Mapping | h5py.Dataset | zarr.Array, name: str, limits: ReadLimits
) -> Rows | Pieces:
    """A matrix element as AnnData writes it: a group for CSR and CSC, an array for dense."""
    check_no_pickle(node, name)
    if not hasattr(node, "keys"):
        if len(node.shape) != 2:
            raise InputError(f"{name}: has {len(node.shape)} dimensions, but a matrix has 2")
        return dense_matrix(node, limits=limits)
    # AnnData before 0.7 wrote h5sparse_format and h5sparse_shape.
    encoding = str(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "")))
    shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
    if shape is None or len(shape) != 2 or encoding[:3] not in ("csr", "csc"):
        raise InputError(
            f'{name}: encoding "{encoding}" is not known; CSR, CSC and dense matrices can be read'
        )
    cells, genes = (index(length) for length in shape)
    by_cell = encoding[:3] == "csr"
    require_chunks(node, name, (cells, genes) if by_cell else (genes, cells))
    layout = CompressedRows if by_cell else CompressedColumns
    return layout(node["data"], node["indices"], node["indptr"], (cells, genes), name, limits)
