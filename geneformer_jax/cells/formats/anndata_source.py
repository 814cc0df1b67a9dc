"""Raw counts from AnnData: .h5ad files, zarr stores (formats 2 and 3), and objects in memory."""

import contextlib
from collections.abc import Iterator, Mapping
from operator import index
from pathlib import Path

import anndata
import h5py
import numpy as np
import zarr
from scipy import sparse

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.lazy_columns import ReadLimits
from geneformer_jax.cells.counts.matrix import (
    CompressedColumns,
    CompressedRows,
    Pieces,
    Rows,
    dense_matrix,
)
from geneformer_jax.cells.counts.options import DEFAULT_OPTIONS, CountOptions
from geneformer_jax.cells.counts.source import MatrixSource, as_packed_text
from geneformer_jax.cells.formats.dataframes import (
    check_no_pickle,
    column_shape,
    index_name,
    read_column,
    read_texts,
    require_chunks,
    rows_per_chunk,
    table_columns,
)
from geneformer_jax.common.errors import InputError, did_you_mean

_MAIN, _RAW = "X", "raw"


class AnnDataFileSource(MatrixSource):
    """An AnnData on disk; nothing but the asked elements is read."""

    def __init__(self, path: Path, options: CountOptions):
        """Reads ids and totals.

        Args:
          path: an .h5ad file or a zarr folder.
          options: which matrix and gene ids; by default X, and
            column `ensembl_id` or else the index.

        Raises:
          InputError: not an AnnData, or the layer or column is not there.
        """
        self.path, self.limits = path, options.limits
        self.kind = "zarr AnnData" if path.is_dir() else "h5ad"
        self._layer = options.counts_layer
        with explain_damage(self.path, self.kind), self._root() as root:
            self.matrix_name = self._matrix_path(root)
            self._set_cells(root["obs"])
            self._set_genes(table_columns(root[self._genes_path()]), options.gene_column)
            self._finish(_open_matrix(root[self.matrix_name], self._name(), self.limits).shape)

    def _set_cells(self, obs: h5py.Group | zarr.Group) -> None:
        name = index_name(obs)
        # HDF5 keeps the last chunks itself.
        self._obs_chunk = rows_per_chunk(obs, name) if self.path.is_dir() else 1
        self._ids_in_blocks(self._read_ids, column_shape(obs, name)[0])

    def _read_ids(self, start: int, stop: int) -> np.ndarray:
        with self._root() as root:
            obs = root["obs"]
            return as_packed_text(read_texts(obs, index_name(obs), slice(start, stop)))

    @contextlib.contextmanager
    def _root(self) -> Iterator[h5py.Group | zarr.Group]:
        if self.path.is_dir():
            # The copy of all metadata at the root may be older than the arrays: then values of a
            # matrix that was written anew are read as another type, without an error.
            yield zarr.open_group(self.path, mode="r", use_consolidated=False)
            return
        with h5py.File(self.path, "r") as root:
            yield root

    def _genes_path(self) -> str:
        return "raw/var" if self.matrix_name == "raw/X" else "var"

    def _read_genes(self, column: str | None) -> object:
        with self._root() as root:
            genes = root[self._genes_path()]
            return read_texts(genes, column or index_name(genes))

    def _name(self) -> str:
        return f"{self.path} ({self.matrix_name})"

    def _matrix_path(self, root: h5py.Group | zarr.Group) -> str:
        for name in ("obs", "var"):
            if name not in root:
                raise InputError(
                    f'{self.path} has no "{name}": it is not an AnnData; give a file or '
                    "store that AnnData wrote"
                )
        places = _matrix_places(root)
        wanted = self._layer or _MAIN
        others = [name for name in places if name != wanted]
        self.remedy = _layer_remedy(others)
        if wanted not in places:
            what = f'no layer "{wanted}"' if self._layer else "no X"
            raise InputError(f"{self.path} has {what}{did_you_mean(wanted, others)}; {self.remedy}")
        return places[wanted]

    @contextlib.contextmanager
    def _matrix(self) -> Iterator[Rows | Pieces]:
        with self._root() as root:
            yield _open_matrix(root[self.matrix_name], self._name(), self.limits)

    def _obs_columns(self) -> list[str]:
        with self._root() as root:
            return table_columns(root["obs"])

    def _obs_shape(self, column: str) -> tuple[int, ...]:
        with self._root() as root:
            return column_shape(root["obs"], column)

    def _read_obs(self, columns: list[str], rows: slice) -> dict[str, object]:
        with self._root() as root:
            return {column: read_column(root["obs"], column, rows) for column in columns}


class AnnDataSource(MatrixSource):
    """An AnnData in memory, under the same protocol as a file; it is never changed."""

    kind = "AnnData"

    def __init__(self, adata: anndata.AnnData, options: CountOptions = DEFAULT_OPTIONS):
        """Takes ids and totals.

        Args:
          adata: with raw counts in the chosen matrix.
          options: which matrix and gene ids; by default X, and
            column `ensembl_id` or else the index.

        Raises:
          InputError: the layer or column is not there, or the matrix is not in memory.
        """
        self.path, self.limits = Path("AnnData"), options.limits
        self._adata = adata
        # From anndata 0.13 on, X is also the layer None.
        layers = {name: values for name, values in adata.layers.items() if name is not None}
        tables = {_MAIN: adata, **dict.fromkeys(layers, adata)}
        values = {_MAIN: adata.X, **layers}
        if adata.raw is not None:
            tables[_RAW], values[_RAW] = adata.raw, adata.raw.X
        wanted = options.counts_layer or _MAIN
        others = [name for name in values if name != wanted]
        self.remedy = _layer_remedy(others)
        if wanted not in values:
            near = did_you_mean(wanted, others)
            raise InputError(f'AnnData has no layer "{wanted}"{near}; {self.remedy}')
        self._table, self._values, self.matrix_name = tables[wanted], values[wanted], wanted
        self.packed_ids = as_packed_text(adata.obs_names)
        self._set_genes([str(column) for column in self._table.var.columns], options.gene_column)
        self._finish(self._in_memory().shape)

    def _read_genes(self, column: str | None) -> object:
        return self._table.var_names if column is None else self._table.var[column]

    def _in_memory(self) -> Rows | Pieces:
        values, name = self._values, f"AnnData ({self.matrix_name})"
        if isinstance(values, np.ndarray):
            return dense_matrix(values, limits=self.limits)
        if sparse.issparse(values) and values.format in ("csr", "csc"):
            layout = CompressedRows if values.format == "csr" else CompressedColumns
            arrays = (values.data, values.indices, values.indptr)
            return layout(*arrays, values.shape, name, self.limits)
        raise InputError(
            f"{name} is a {type(values).__name__}, but a NumPy array or a CSR or CSC matrix in "
            "memory is needed; use adata.to_memory()"
        )

    @contextlib.contextmanager
    def _matrix(self) -> Iterator[Rows | Pieces]:
        yield self._in_memory()

    def _obs_columns(self) -> list[str]:
        return [str(column) for column in self._adata.obs.columns]

    def _obs_shape(self, column: str) -> tuple[int, ...]:
        return self._adata.obs[column].shape

    def _read_obs(self, columns: list[str], rows: slice) -> dict[str, object]:
        return {column: self._adata.obs[column].array[rows] for column in columns}


def _matrix_places(root: h5py.Group | zarr.Group) -> dict[str, str]:
    """Where the matrices are: X, the layers by name, and raw (which hides a layer of that name)."""
    places = {_MAIN: _MAIN, **{name: f"layers/{name}" for name in root.get("layers", {})}}
    if "raw/X" in root:
        places[_RAW] = "raw/X"
    return {name: place for name, place in places.items() if place in root}


def _layer_remedy(others: list[str]) -> str:
    if not others:
        return "give a file with raw counts (this one has no other matrix)"
    listed = ", ".join(f'"{name}"' for name in others)
    return f"choose the matrix with raw counts by `counts_layer` (there is also: {listed})"


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
    require_chunks(node, name, genes)
    layout = CompressedRows if encoding[:3] == "csr" else CompressedColumns
    return layout(node["data"], node["indices"], node["indptr"], (cells, genes), name, limits)
