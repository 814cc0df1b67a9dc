"""Outputs of a model as tables: predictions of cells, or of genes as means over cells."""

from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.store.obs_columns import stored_name
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.log import logger
from geneformer_jax.finetuning.classification.predictions import PROBABILITY, Outputs, per_task
from geneformer_jax.inference.cells import fill_rows, places_in_input, select_cells
from geneformer_jax.inference.written_anndata import free_names
from geneformer_jax.model.heads import HeadConfig, HeadTask

PREDICTED = "predicted"
# Keys of .obsm and .uns, before the name of an output.
PROBABILITIES, CLASSES = "probabilities_", "classes_"


def cell_table(
    cells: EncodedCells, head: HeadConfig, logits: np.ndarray, all_cells: bool
) -> ad.AnnData:
    """Returns predictions of cells, see `predict_cells`.

    Args:
      cells: that were predicted.
      head: of the model.
      logits: float32 [cells, C].
      all_cells: keep a row for the cells without a gene too.
    """
    obs, rows = cells.obs, np.arange(len(cells.lengths))
    if all_cells:
        obs, rows = places_in_input(select_cells(cells))
    predicted = ad.AnnData(obs=_beside_predictions(obs, head))
    none = np.zeros((len(logits), 0), np.float32)
    outputs = Outputs(rows, np.zeros(0, np.int32), none, logits)
    in_files = free_names([task.name for task in head.outputs])
    for task, _, own in per_task(head, outputs):
        key = in_files.get(task.name, task.name)
        _add_output(predicted, task, key, fill_rows(own, rows, len(obs)))
    return predicted


def _beside_predictions(obs: pd.DataFrame, head: HeadConfig) -> pd.DataFrame:
    """Returns the columns of the cells, those with names of predictions behind a prefix."""
    own = columns_of(head)
    renamed = {name: stored_name(name, own) for name in obs if stored_name(name, own) != name}
    for name, other in renamed.items():
        logger.warning(f'obs column "{name}" of the cells is kept as "{other}" beside the new one')
    return obs.rename(columns=renamed)


def columns_of(head: HeadConfig) -> list[str]:
    """Returns the names of the obs columns that predictions of cells have."""
    of_classes = [task.name for task in head.outputs if not task.regression]
    return [
        *(f"{PREDICTED}_{task.name}" for task in head.outputs),
        *(f"{PROBABILITY}{name}" for name in of_classes),
    ]


def _add_output(predicted: ad.AnnData, task: HeadTask, key: str, own: np.ndarray) -> None:
    if task.regression:
        predicted.obs[f"{PREDICTED}_{task.name}"] = own[:, 0]
        return
    probabilities = np.exp(own).astype(np.float32)
    best = probabilities.argmax(axis=1)
    codes = np.where(np.isnan(probabilities[:, 0]), -1, best)
    names = pd.Categorical.from_codes(codes, categories=pd.Index(task.labels, dtype=object))
    predicted.obs[f"{PREDICTED}_{task.name}"] = names
    predicted.obs[f"{PROBABILITY}{task.name}"] = probabilities[np.arange(len(best)), best]
    # Not a table: h5ad cannot keep a column whose name holds "/", as labels of cell types do.
    predicted.obsm[PROBABILITIES + key] = probabilities
    predicted.uns[CLASSES + key] = np.array(task.labels, dtype=object)


class GeneVotes(NamedTuple):
    """What cells say of their genes, by token.

    Attributes:
      cells: int64 [V] cells that have it.
      sums: float64 [V, C] sums of its probabilities.
    """

    cells: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, head: HeadConfig, vocabulary: GeneVocabulary, outputs: Outputs) -> "GeneVotes":
        """Returns the votes of some cells."""
        ((task, _, own),) = per_task(head, outputs)
        sums = np.zeros((vocabulary.size, len(task.labels)))
        np.add.at(sums, outputs.tokens, np.exp(own))
        return cls(np.bincount(outputs.tokens, minlength=len(sums)), sums)

    def plus(self, other: "GeneVotes") -> "GeneVotes":
        """Returns the votes of both."""
        return GeneVotes(self.cells + other.cells, self.sums + other.sums)

    def table(self, head: HeadConfig, vocabulary: GeneVocabulary) -> pd.DataFrame:
        """Returns the mean of each gene that occurs, see `predict_genes`."""
        (task,) = head.outputs
        found = np.flatnonzero(self.cells)
        means = (self.sums[found] / self.cells[found, None]).astype(np.float32)
        genes = found - vocabulary.first_gene_token
        names = np.array(task.labels, object)
        columns = {
            "symbol": vocabulary.symbols[genes],
            "n_cells": self.cells[found],
            PREDICTED: names[means.argmax(axis=1)],
            **{f"{PROBABILITY}{name}": means[:, i] for i, name in enumerate(task.labels)},
        }
        index = pd.Index(vocabulary.gene_ids[genes], name="gene")
        return pd.DataFrame(columns, index=index).sort_index()
