"""A fine-tuned model applied to new cells: predictions of the cells, or of the genes in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.progress import Progress
from geneformer_jax.finetuning.classification.predictions import Outputs
from geneformer_jax.finetuning.prediction.predictor import Predictor
from geneformer_jax.finetuning.prediction.tables import GeneVotes, cell_table
from geneformer_jax.inference.arguments import check_model
from geneformer_jax.inference.cells import open_cells
from geneformer_jax.model.config import RuntimeConfig
from geneformer_jax.model.heads import CELLS, GENES
from geneformer_jax.model.pretrained import PretrainedModel

_CELLS_AT_A_TIME = 4_096


def open_cells_for(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    kind: str,
    **reading: Unpack[CountArguments],
) -> EncodedCells:
    """Opens cells to predict.

    Args:
      model: fine-tuned.
      cells: a cell store, tokenised cells, or counts, which are tokenised for the model.
      kind: of head that the model must have.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Raises:
      InputError: the model has no such head, or the cells do not fit it.
    """
    check_model(model)
    if model.head is None:
        raise InputError(
            f"the model of {model.source} has no classification head; predict takes one that "
            "finetune made"
        )
    if model.head.kind != kind:
        other = "predict_genes" if kind == CELLS else "predict_cells"
        raise InputError(
            f"the model of {model.source} has a {model.head.kind}, not a {kind}; use {other}"
        )
    encoded = open_cells(cells, model, **reading)
    if not len(encoded.lengths):
        raise InputError("there is no cell to predict")
    return encoded


def predict_cells(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    runtime: RuntimeConfig | None = None,
    *,
    tokens_per_device: int | None = None,
    all_cells: bool = False,
    **reading: Unpack[CountArguments],
) -> ad.AnnData:
    """Predicts the classes of cells, or their numbers, with a fine-tuned model.

    Args:
      model: with a cell classifier.
      cells: a cell store, tokenised cells, or counts, which are tokenised for the model.
      runtime: how to compute; float32 by default.
      tokens_per_device: padded tokens of a batch on each device; by default the device's.
      all_cells: keep a row for the cells without a gene too, where nothing is predicted, so that
        results fit the input by position.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Returns:
      AnnData without X: all cells in input order, under their ids, with all their obs columns. For
      each output of classes `.obs["predicted_NAME"]` (categorical), `.obs["probability_NAME"]` and
      `.obsm["probabilities_NAME"]`, float32 [cells, C], whose columns are the classes in
      `.uns["classes_NAME"]`; for each number `.obs["predicted_NAME"]`. The output of a plain
      classifier is called "label". A slash in NAME is an underscore in `.obsm` and `.uns`.

    Raises:
      InputError: the model has no cell classifier, or the cells do not fit it.
    """
    encoded = open_cells_for(model, cells, CELLS, **reading)
    predictor = Predictor(model, encoded, runtime, tokens_per_device)
    logits = np.concatenate([outputs.logits for outputs in _outputs(predictor)])
    return cell_table(encoded, model.head, logits, all_cells)


def predict_genes(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    runtime: RuntimeConfig | None = None,
    *,
    tokens_per_device: int | None = None,
    **reading: Unpack[CountArguments],
) -> pd.DataFrame:
    """Predicts the classes of genes with a fine-tuned model, by their mean over cells.

    Args:
      model: with a gene classifier.
      cells: a cell store, tokenised cells, or counts, which are tokenised for the model.
      runtime: how to compute; float32 by default.
      tokens_per_device: padded tokens of a batch on each device; by default the device's.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Returns:
      One row per gene that occurs, by gene id: `symbol`, `n_cells`, `predicted` (the class of the
      highest mean probability) and `probability_<class>`.

    Raises:
      InputError: the model has no gene classifier, or the cells do not fit it.
    """
    encoded = open_cells_for(model, cells, GENES, **reading)
    predictor, votes = Predictor(model, encoded, runtime, tokens_per_device), None
    for outputs in _outputs(predictor):
        own = GeneVotes.of(model.head, encoded.vocabulary, outputs)
        votes = own if votes is None else votes.plus(own)
    return votes.table(model.head, encoded.vocabulary)


def _outputs(predictor: Predictor) -> Iterator[Outputs]:
    """Yields the outputs of some thousand cells at a time."""
    cells = len(predictor.cells.lengths)
    with Progress(cells, "predict", "cells") as progress:
        for start in range(0, cells, _CELLS_AT_A_TIME):
            yield predictor.outputs(start, min(start + _CELLS_AT_A_TIME, cells), progress)
