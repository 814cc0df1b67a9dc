"""Raw counts as 10x Genomics Cell Ranger, Xenium Ranger and CellBender write them: .h5 files."""

import contextlib
from collections.abc import Iterator
from operator import index
from pathlib import Path

import h5py
import numpy as np

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.matrix import CompressedRows, Pieces, Rows
from geneformer_jax.cells.counts.matrix_choice import MAIN
from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.texts import as_fixed_text, as_packed_text
from geneformer_jax.cells.formats.features import ID, SYMBOL, TYPE, FeatureSource
from geneformer_jax.cells.formats.hdf5_filters import require_filters
from geneformer_jax.common.errors import InputError, did_you_mean


class TenxH5Source(FeatureSource):
    """A Cell Ranger .h5 matrix of version 3 (/matrix) or 2 (one group per genome)."""

    kind = "10x h5"
    remedy = "give a file with raw counts"

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
            require_filters([group, group.get("features")], path)
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


def _pick_genome(root: h5py.File, path: Path, layer: str | None) -> str:
    genomes = [name for name in root if isinstance(root[name], h5py.Group)]
    genomes = [name for name in genomes if "barcodes" in root[name] and "indptr" in root[name]]
    if not genomes:
        raise InputError(f"{path} has no 10x count matrix; give a Cell Ranger feature-barcode .h5")
    layer = None if layer == MAIN else layer
    if layer is not None and layer not in genomes:
        near = did_you_mean(layer, genomes)
        raise InputError(f'{path} has no genome "{layer}"{near}; it has: {", ".join(genomes)}')
    if layer is None and len(genomes) > 1:
        listed = ", ".join(genomes)
        raise InputError(f"{path} has several genomes: name one by `counts_layer`: {listed}")
    return layer or genomes[0]


def _h5_features(group: h5py.Group) -> dict[str, np.ndarray]:
    if "features" not in group:
        return {ID: as_fixed_text(group["genes"][:]), SYMBOL: as_fixed_text(group["gene_names"][:])}
    features = group["features"]
    # CellBender writes no type of what had none.
    names = {ID: "id", SYMBOL: "name", TYPE: "feature_type"}
    return {
        ours: as_fixed_text(features[theirs][:])
        for ours, theirs in names.items()
        if theirs in features
    }
