"""Small real cells for compare_commits.py: a few of each type or donor, and their commonest genes.

They come from ../shared/data, or from the folder named by GENEFORMER_JAX_DATA.
"""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

DATA = Path(
    os.environ.get("GENEFORMER_JAX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
# Cells of the files that are made, and genes: the commonest, and the commonest of a task's.
_OF_EACH_TYPE, _NEW, _OF_EACH_DONOR = 30, 40, 25
_GENES, _LABELLED = 350, 120


def make_cells(folder: Path) -> None:
    """Writes what the commands read, in place of what was there."""
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    pbmc = _first_of_each(_read("pbmc_facs_zheng"), "subpop", _OF_EACH_TYPE)
    pbmc = pbmc[:, _chosen_genes(pbmc)].copy()
    pbmc.write_h5ad(folder / "pbmc.h5ad")
    new = _read("pbmc_facs_zheng_holdout")
    known = new.var_names.isin(pbmc.var_names)
    new[:_NEW, known].copy().write_h5ad(folder / "new.h5ad")
    covid = _first_of_each(_read("combat_covid"), "donor", _OF_EACH_DONOR)
    covid = covid[:, _chosen_genes(covid)].copy()
    for name, first in (("a", 0), ("b", 1)):
        covid[first::2].copy().write_h5ad(folder / "corpus" / f"{name}.h5ad")
    table = pd.DataFrame({"gene_id": pbmc.var["ensembl_id"], "symbol": pbmc.var["gene_symbol"]})
    table.assign(biotype="protein_coding").to_csv(folder / "genes.tsv", sep="\t", index=False)
    (folder / "combinations.txt").write_text("B2M,ACTB\nTMSB4X,FTL,ACTB\n")


def _read(name: str) -> ad.AnnData:
    return ad.read_h5ad(DATA / "cells" / f"{name}.h5ad")


def _first_of_each(adata: ad.AnnData, column: str, count: int) -> ad.AnnData:
    return adata[(adata.obs.groupby(column, observed=True).cumcount() < count).to_numpy()]


def _chosen_genes(adata: ad.AnnData) -> np.ndarray:
    """The commonest genes, and the commonest that a task of the paper tells apart; in file order.

    Mitochondrial genes are among the first, so that quality control has something to look at.
    """
    with_cells = np.asarray((adata.X > 0).sum(axis=0)).ravel()
    common = np.argsort(-with_cells, kind="stable")
    common = common[(adata.var["ensembl_id"].astype(str) != "").to_numpy()[common]]
    labelled = pd.read_csv(DATA / "genes" / "dosage_sensitivity_TFs.tsv", sep="\t")["ensembl_id"]
    of_task = common[adata.var["ensembl_id"].isin(labelled).to_numpy()[common]]
    return np.unique(np.concatenate([common[:_GENES], of_task[:_LABELLED]]))
