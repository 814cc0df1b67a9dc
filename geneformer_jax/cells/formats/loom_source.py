"""Raw counts from .loom files, read with h5py alone."""

import contextlib
import html
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.matrix import Pieces, Rows, dense_matrix
from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.source import MatrixSource, as_packed_text, as_text
from geneformer_jax.common.errors import InputError, did_you_mean

_GENE_INDEX = ("Accession", "var_names", "Gene")
_CELL_INDEX = ("CellID", "obs_names", "cell_id", "barcode")
_ALL = slice(None)


class LoomSource(MatrixSource):
    """A loom file: one dense matrix [genes, cells] with attributes of rows (genes) and columns.

    Gene ids are the row attribute `ensembl_id`, as in the original, or else Accession, var_names
    or Gene. Cell ids are the column attribute CellID, obs_names, cell_id or barcode, or else the
    cell's number.
    """

    kind = "loom"

    def __init__(self, path: Path, options: CountOptions):
        """Reads ids and totals.

        Args:
          path: a .loom file.
          options: the layer, None for the main matrix; the row attribute with the gene ids, None
            for the usual ones.

        Raises:
          InputError: not a loom file, or the layer or attribute is not there.
        """
        self.path, self.limits = path, options.limits
        with explain_damage(path, self.kind), h5py.File(path, "r") as root:
            layers = list(root["layers"]) if "layers" in root else []
            layer = options.counts_layer
            if layer is not None and layer not in layers:
                listed = f"its layers: {', '.join(layers) or 'none'}"
                near = did_you_mean(layer, layers)
                raise InputError(f'{path} has no layer "{layer}"{near}; {listed}')
            self.matrix_name = "matrix" if layer is None else f"layers/{layer}"
            self.remedy = (
                "name the layer with raw counts by `counts_layer`, or give a file that has them"
            )
            genes = root["row_attrs"]
            columns = [name for name in genes if genes[name].ndim == 1]
            self._gene_index = next((name for name in _GENE_INDEX if name in columns), None)
            n_genes, n_cells = (int(length) for length in root[self.matrix_name].shape)
            if self._set_genes(columns, options.gene_column) is None and self._gene_index is None:
                raise self._no_column("row_attrs", "ensembl_id", columns)
            self._set_cells(root["col_attrs"], n_cells)
            self._finish((n_cells, n_genes))

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
            yield dense_matrix(root[self.matrix_name], genes_first=True, limits=self.limits)

    def _read_genes(self, column: str | None) -> object:
        with h5py.File(self.path, "r") as root:
            name = column or self._gene_index
            return _attribute(root["row_attrs"][name]) if name else np.array([], object)

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
