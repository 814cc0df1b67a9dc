"""Cells and tasks for the tests of classification."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.cells.tokenization.tokenizer import TokenizedCells, tokenize_cells
from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS
from geneformer_jax.finetuning.classification.config import SplitRule
from geneformer_jax.finetuning.classification.splits import make_split
from geneformer_jax.finetuning.classification.task import ClassificationTask
from tests.helpers.toy import GENES, toy_cells, toy_vocabulary


def toy_task_cells(
    cells: int = 120, special_tokens: tuple[str, ...] = V1_SPECIAL_TOKENS
) -> tuple[ad.AnnData, TokenizedCells]:
    """Counts and tokens of toy cells of two kinds, each of six donors, three of each kind."""
    adata = toy_cells(cells)
    number = adata.obs.groupby("kind").cumcount() % 3
    adata.obs["donor"] = adata.obs["kind"] + number.astype(str)
    return adata, tokenize_cells(adata, toy_vocabulary(special_tokens))


def toy_gene_labels(genes: int = 60) -> pd.Series:
    """Genes of the first half of the toy cells' program against genes of the second half."""
    chosen = np.random.default_rng(0).permutation(GENES)[:genes]
    names = np.where(chosen < GENES // 2, "first", "second")
    return pd.Series(names, [f"ENSG{i:011d}" for i in chosen], dtype=object)


def gene_file(path: Path, labels: pd.Series) -> str:
    """Writes gene classes as a table."""
    table = pd.DataFrame({"class": labels.to_numpy(), "ensembl_id": labels.index})
    table.to_csv(path, sep="\t", index=False)
    return str(path)


def gene_task(cells: TokenizedCells, labels: pd.Series, **changes) -> ClassificationTask:
    """A task on genes in five folds."""
    rule = SplitRule()
    classes = tuple(dict.fromkeys(labels))
    fields = {"name": "toy", "unit": "gene", "classes": classes, "labels": labels, "cells": cells}
    return ClassificationTask(**fields, split=make_split(labels, rule), rule=rule, **changes)


def cell_task(cells: TokenizedCells, group: str = "", folds: int = 3) -> ClassificationTask:
    """A task on the kind of toy cells."""
    labels = cells.obs["kind"].astype(object)
    groups = cells.obs[group].astype(object) if group else None
    rule = SplitRule(folds)
    split = make_split(labels, rule, groups)
    return ClassificationTask("toy", "cell", ("a", "b"), labels, split, cells, groups, rule=rule)
