"""Raw counts from files, a bounded number of cells at a time."""

from pathlib import Path

from geneformer_jax.cells.anndata_counts import AnnDataFileSource, AnnDataSource
from geneformer_jax.cells.count_paths import expand_paths
from geneformer_jax.cells.count_source import CountBatch, CountSource
from geneformer_jax.common.errors import InputError

__all__ = ["AnnDataSource", "CountBatch", "CountSource", "expand_paths", "open_counts"]


def open_counts(
    path: Path | str, *, layer: str | None = None, gene_column: str | None = None
) -> CountSource:
    """Opens a file or folder of raw counts; reads its ids and totals, not its matrix.

    Args:
      path: an .h5ad file or a zarr store of AnnData.
      layer: the matrix with the raw counts: None for the main one (X), "raw" for AnnData's raw,
        or the name of a layer.
      gene_column: column with the gene ids; None for `ensembl_id` where there is one, or else the
        index.

    Raises:
      InputError: nothing is there, or it cannot be read as counts.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    return AnnDataFileSource(path, layer=layer, gene_column=gene_column)
