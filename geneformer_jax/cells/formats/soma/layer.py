"""A layer of an experiment, read by blocks of cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from geneformer_jax.cells.counts.matrix import Rows
from geneformer_jax.cells.formats.soma.cells import as_coordinates
from geneformer_jax.cells.formats.soma.experiment import ExperimentPlace
from geneformer_jax.common.errors import InputError

if TYPE_CHECKING:
    import tiledbsoma

# Some 6 million values of droplet data, whose coordinates take 16 bytes each.
_MOST_CELLS = 2048


class LayerRows(Rows):
    """A sparse matrix of an experiment, of which some cells and all genes are read.

    What the library reads is in no order: every value is put into the row and the column of its
    join ids.
    """

    def __init__(
        self,
        place: ExperimentPlace,
        measurement: str,
        layer: str,
        cells: np.ndarray,
        genes: np.ndarray,
    ):
        """Takes where it is, and int64 [cells] and [genes] ascending join ids of what is read."""
        self._place, self._measurement, self._layer = place, measurement, layer
        self._cells, self._genes = cells, genes
        self.shape = len(cells), len(genes)

    def rows(self, cells_per_batch: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) in order, with values as stored.

        Raises:
          InputError: the layer is not sparse.
          ValueError: it has a value of a gene that the table of genes lacks.
        """
        step = min(cells_per_batch, _MOST_CELLS)
        with self._place.open() as experiment:
            layer = experiment.ms[self._measurement].X[self._layer]
            if layer.soma_type != "SOMASparseNDArray":
                raise InputError(
                    f"{self._place.path} ({self._layer}) is a {layer.soma_type}, but sparse layers "
                    "are read; write it as a SparseNDArray, as tiledbsoma.io.from_anndata does"
                )
            for start in range(0, len(self._cells), step):
                yield start, self._block(layer, self._cells[start : start + step])

    def _block(self, layer: tiledbsoma.SparseNDArray, cells: np.ndarray) -> sparse.csr_matrix:
        table = layer.read(coords=(as_coordinates(cells),)).tables().concat()
        rows, columns = (table[f"soma_dim_{axis}"].to_numpy() for axis in (0, 1))
        places = np.searchsorted(cells, rows), np.searchsorted(self._genes, columns)
        if not np.array_equal(self._genes.take(places[1], mode="clip"), columns):
            raise ValueError("it has values of genes that var lacks")
        shape = len(cells), len(self._genes)
        return sparse.csr_matrix((table["soma_data"].to_numpy(), places), shape=shape)
