"""A layer of an experiment, read by blocks of cells."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
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

Indexer = Callable[[np.ndarray], np.ndarray]


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

    def sizes(self, first: int, stop: int) -> np.ndarray:
        """Returns [stop - first] how many values a row of the whole layer holds on average."""
        return np.full(stop - first, self._values_per_cell)

    @functools.cached_property
    def _values_per_cell(self) -> float:
        with self._place.open() as experiment:
            layer = self._require_sparse(experiment.ms[self._measurement].X[self._layer])
            return layer.nnz / max(experiment.obs.count, 1)

    def rows(
        self, cells_per_batch: int, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) of the rows from `first` to `stop`, with values as stored.

        Raises:
          InputError: the layer is not sparse.
          ValueError: it has a value of a gene that the table of genes lacks.
        """
        step = min(cells_per_batch, _MOST_CELLS)
        stop = len(self._cells) if stop is None else stop
        with self._place.open() as experiment:
            layer = self._require_sparse(experiment.ms[self._measurement].X[self._layer])
            place_of_gene = _indexer(self._genes, layer)
            for start in range(first, stop, step):
                cells = self._cells[start : min(start + step, stop)]
                yield start, self._block(layer, cells, place_of_gene)

    def _require_sparse(self, layer: tiledbsoma.SOMAObject) -> tiledbsoma.SparseNDArray:
        if layer.soma_type == "SOMASparseNDArray":
            return layer
        raise InputError(
            f"{self._place.path} ({self._layer}) is a {layer.soma_type}, but sparse layers are "
            "read; write it as a SparseNDArray, as tiledbsoma.io.from_anndata does"
        )

    def _block(
        self, layer: tiledbsoma.SparseNDArray, cells: np.ndarray, place_of_gene: Indexer
    ) -> sparse.csr_matrix:
        table = layer.read(coords=(as_coordinates(cells),)).tables().concat()
        rows = _indexer(cells, layer)(table["soma_dim_0"].to_numpy())
        columns = place_of_gene(table["soma_dim_1"].to_numpy())
        if columns.min(initial=0) < 0:
            raise ValueError("it has values of genes that var lacks")
        values = table["soma_data"].to_numpy()
        return sparse.csr_matrix((values, (rows, columns)), (len(cells), len(self._genes)))


def _indexer(ids: np.ndarray, layer: tiledbsoma.SparseNDArray) -> Indexer:
    """Returns a function from join ids to their places among `ids`, -1 for others."""
    import tiledbsoma

    # Of an array that came from another process the library does not know the type.
    ids = ids.astype(np.int64)
    return tiledbsoma.IntIndexer(ids, context=layer.context).get_indexer
