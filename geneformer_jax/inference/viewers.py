"""What viewers of cells want beside embeddings: counts by gene, and a folder for Vitessce."""

import json
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique
from scipy import sparse

from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, remove
from geneformer_jax.inference.counts import counts_of
from geneformer_jax.inference.written_anndata import write_anndata
from geneformer_jax.reporting.vitessce import view_config

CELLS, CONFIG = "cells.zarr", "config.json"
_SYMBOLS = "gene_symbol"


def with_counts(adata: ad.AnnData, source: CountSource) -> ad.AnnData:
    """Returns the same cells with their raw counts as X.

    X is float32 and compressed by gene (CSC): viewers read one gene of all cells at a time. `.var`
    is indexed by gene id, made unique, with the symbols beside where the source has them.

    Raises:
      InputError: the source lacks a cell, or has two of one id.
    """
    counts, _ = counts_of(source, adata.obs_names)
    index = make_index_unique(pd.Index(np.asarray(source.gene_ids, object)))
    symbols = source.symbols
    var = pd.DataFrame({} if symbols is None else {_SYMBOLS: symbols}, index=index)
    matrix = sparse.csc_matrix(counts, dtype=np.float32)
    return ad.AnnData(matrix, obs=adata.obs, var=var, obsm=adata.obsm, uns=adata.uns)


def _as_texts(column: pd.Series) -> pd.Series:
    """Returns labels: whatever a column holds, a viewer shows it as text."""
    # Not every AnnData writes categories of the type "string".
    return column.astype("string").astype(object).astype("category")


def check_vitessce(folder: Path) -> None:
    """Raises InputError if something of someone else is in the place of a folder for Vitessce."""
    if folder.exists() and not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is there and is not of this command; remove or rename it")


def write_vitessce(
    folder: Path, adata: ad.AnnData, url: str, labels: Sequence[str], embeddings: dict[str, str]
) -> None:
    """Writes a folder to be served: the cells as Zarr, and a view config that names them.

    Args:
      folder: to write, whole; one of an earlier run is replaced.
      adata: cells, with counts as X or none.
      url: under which browsers will find the folder.
      labels: obs columns to colour by.
      embeddings: name to be shown -> key in `.obsm`.
    """
    check_vitessce(folder)
    texts = {name: _as_texts(adata.obs[name]) for name in labels}
    shown = ad.AnnData(adata.X, obs=adata.obs.assign(**texts), var=adata.var, obsm=adata.obsm)
    remove(folder)
    with atomic_write(folder) as aside:
        aside.mkdir()
        renamed = write_anndata(shown, aside / CELLS)
        config = view_config(
            folder.stem,
            f"{url.rstrip('/')}/{CELLS}",
            embeddings,
            {name: renamed.get(name, name) for name in labels},
            has_counts=adata.X is not None,
            symbols=_SYMBOLS if _SYMBOLS in adata.var else "",
        )
        (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
