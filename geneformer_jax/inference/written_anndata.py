"""AnnData files of results, with obs columns of any name."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anndata as ad
import zarr

from geneformer_jax.common.log import logger


def write_anndata(adata: ad.AnnData, path: Path) -> dict[str, str]:
    """Writes an .h5ad or .zarr; a slash in the name of an obs column becomes an underscore.

    HDF5 and Zarr take a slash for the border of a group: AnnData before 0.13 warns of it, later
    ones write no such file.

    Returns:
      Each such column -> its name in the file.
    """
    names = free_names(adata.obs.columns)
    for name, written in names.items():
        logger.info('obs column "%s" is written as "%s": files take no slash', name, written)
    if names:
        adata = adata.copy()
        adata.obs = adata.obs.rename(columns=names)
    if path.suffix == ".zarr":
        _write_zarr(adata, path)
    else:
        adata.write_h5ad(path)
    return names


def _write_zarr(adata: ad.AnnData, path: Path) -> None:
    """Writes Zarr of format 3, without the consolidated metadata that it does not define."""
    with without_shards():
        ad.io.write_elem(zarr.open_group(path, mode="w", zarr_format=3), "/", adata)


def without_shards(**settings: Any) -> AbstractContextManager:
    """Returns a context in which AnnData packs no chunks of Zarr arrays into shards.

    Args:
      settings: others of AnnData that hold there.
    """
    # Not every AnnData has the setting; those that have it warn until it is given.
    sharding = {"auto_shard_zarr_v3": False} if hasattr(ad.settings, "auto_shard_zarr_v3") else {}
    return ad.settings.override(**sharding, **settings)


def free_names(names: Iterable[str]) -> dict[str, str]:
    """Returns other names, all distinct, for those with a slash, which files do not take."""
    taken, found = set(names), {}
    for name in names:
        if "/" in name:
            free = name.replace("/", "_")
            while free in taken:
                free += "_"
            taken.add(free)
            found[name] = free
    return found
