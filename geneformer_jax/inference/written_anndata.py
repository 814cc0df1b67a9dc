"""AnnData files of results, with obs columns of any name."""

from pathlib import Path

import anndata as ad

from geneformer_jax.common.log import logger


def write_anndata(adata: ad.AnnData, path: Path) -> None:
    """Writes an .h5ad; a slash in the name of an obs column becomes an underscore.

    HDF5 takes a slash for the border of a group: AnnData before 0.13 warns of it, later ones write
    no such file.
    """
    names = {name: _free_name(name, adata.obs.columns) for name in adata.obs if "/" in name}
    for name, written in names.items():
        logger.info('obs column "%s" is written as "%s": HDF5 takes no slash', name, written)
    if names:
        adata = adata.copy()
        adata.obs = adata.obs.rename(columns=names)
    adata.write_h5ad(path)


def _free_name(name: str, taken: object) -> str:
    free = name.replace("/", "_")
    while free in taken:
        free += "_"
    return free
