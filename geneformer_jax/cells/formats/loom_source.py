"""Raw counts from .loom files, read with h5py alone."""

import contextlib
import html
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.matrix import Pieces, Rows, dense_matrix
from geneformer_jax.cells.counts.matrix_choice import MAIN, SAMPLE_LIMITS, sum_of
from geneformer_jax.cells.counts.options import CountOptions, ReadLimits
from geneformer_jax.cells.counts.source import MatrixSource
from geneformer_jax.cells.counts.texts import as_packed_text, as_text
from geneformer_jax.cells.formats.hdf5_filters import require_filters

_GENE_INDEX = ("Accession", "var_names", "Gene")
_CELL_INDEX = ("CellID", "obs_names", "cell_id", "barcode")
_ALL = slice(None)


class LoomSource(MatrixSource):
    """A loom file: one dense matrix [genes, cells] with attributes of rows (genes) and columns.

    The index of its genes is the row attribute Accession, var_names or Gene. Cell ids are the
    column attribute CellID, obs_names, cell_id or barcode, or else the cell's number.
    """

    kind = "loom"
    _gene_table_name = "row_attrs"

    def __init__(self, path: Path, options: CountOptions):
        """Reads ids and totals.

        Args:
          path: a .loom file.
          options: which matrix ("X" is the main one) and which row attribute with gene ids.

        Raises:
          InputError: not a loom file, the layer or attribute is not there, or several matrices may
            be meant.
        """
        super().__init__(path, options)
        with explain_damage(path, self.kind), h5py.File(path, "r") as root:
            require_filters([root.get(name) for name in ("matrix", "row_attrs", "layers")], path)
            layers = list(root["layers"]) if "layers" in root else []
            self._places = {MAIN: "matrix", **{name: f"layers/{name}" for name in layers}}
            self._choose_matrix(self._places, lambda name: self._open(root, name, SAMPLE_LIMITS))
            genes = root["row_attrs"]
            columns = [name for name in genes if genes[name].ndim == 1]
            self._gene_index = next((name for name in _GENE_INDEX if name in columns), None)
            self._has_gene_index = self._gene_index is not None
            matrix = self._sum(root)
            self._set_genes(columns)
            self._set_cells(root["col_attrs"], matrix.shape[0])
            self._finish(matrix.shape)

    def _open(self, root: h5py.File, name: str, limits: ReadLimits) -> Rows | Pieces:
        return dense_matrix(root[self._places[name]], genes_first=True, limits=limits)

    def _sum(self, root: h5py.File) -> Rows | Pieces:
        parts = [self._open(root, name, self.limits) for name in self._chosen]
        return sum_of(parts, f"{self.path} ({self.matrix_name})")

    def _set_cells(self, cells: h5py.Group, n_cells: int) -> None:
        self._id_column = next((name for name in _CELL_INDEX if name in cells), None)
        if self._id_column is not None:
            n_cells = cells[self._id_column].shape[0]
        self._ids_in_blocks(self._read_ids, n_cells)

    def _read_ids(self, start: int, stop: int) -> np.ndarray:
        if self._id_column is None:
            return as_packed_text(np.arange(start, stop))
        with h5py.File(self.path, "r") as root:
            return as_packed_text(
                _attribute(root["col_attrs"][self._id_column], slice(start, stop))
            )

    @contextlib.contextmanager
    def _matrix(self) -> Iterator[Rows | Pieces]:
        with h5py.File(self.path, "r") as root:
            yield self._sum(root)

    def _is_text(self, column: str) -> bool:
        with h5py.File(self.path, "r") as root:
            return root["row_attrs"][column].dtype.kind in "SO"

    def _read_genes(self, column: str | None) -> object:
        with h5py.File(self.path, "r") as root:
            return _attribute(root["row_attrs"][column or self._gene_index])

    def _obs_columns(self) -> list[str]:
        with h5py.File(self.path, "r") as root:
            cells = root["col_attrs"]
            return [name for name in cells if cells[name].ndim == 1]

    def _obs_shape(self, column: str) -> tuple[int, ...]:
        with h5py.File(self.path, "r") as root:
            return root["col_attrs"][column].shape

    def _read_obs(self, columns: list[str], rows: slice) -> dict[str, object]:
        with h5py.File(self.path, "r") as root:
            return {name: _attribute(root["col_attrs"][name], rows) for name in columns}


def _attribute(dataset: h5py.Dataset, rows: slice = _ALL) -> np.ndarray:
    """Values of an attribute; texts are unescaped, since loom before 3.0 kept them as ASCII."""
    values = dataset[rows]
    if values.dtype.kind not in "SO":
        return values
    return np.array([html.unescape(text) for text in as_text(values)], dtype=object)
