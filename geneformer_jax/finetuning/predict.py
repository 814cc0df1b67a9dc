"""A fine-tuned model applied to new cells: what it says of each cell, or of each gene in them."""

from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.batches.buckets import BatchShape
from geneformer_jax.batches.labelled import (
    UNLABELLED,
    LabelledBatches,
    LabelledCells,
    Learning,
    unlabelled,
)
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.progress import Progress
from geneformer_jax.finetuning.classification.predictions import PROBABILITY, Outputs, per_task
from geneformer_jax.finetuning.evaluation import compute_outputs
from geneformer_jax.finetuning.step import CompiledSteps, StepSpec, compile_steps
from geneformer_jax.finetuning.trainable import TuningConfig
from geneformer_jax.inference.batches import lay_out
from geneformer_jax.inference.cells import check_columns, open_cells
from geneformer_jax.model.heads import CELLS, GENES, HeadTask
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import RuntimeConfig
from geneformer_jax.model.sharding import MeshConfig
from geneformer_jax.training.optimizer import OptimizerConfig

PREDICTED = "predicted"
# Keys of .obsm and .uns, before the name of a target.
PROBABILITIES, CLASSES = "probabilities_", "classes_"
_CELLS_AT_A_TIME = 4_096


class Predictor(NamedTuple):
    """A fine-tuned model ready for some cells.

    Attributes:
      model: with its head.
      cells: tokenised with its vocabulary.
      compiled: compiled for the devices.
      shape: of batches.
    """

    model: PretrainedModel
    cells: EncodedCells
    compiled: CompiledSteps
    shape: BatchShape

    def outputs(self, labelled: LabelledCells) -> Outputs:
        """Returns what the model says of some cells, or of the labelled genes in them."""
        batches = LabelledBatches(
            self.cells, labelled, Learning(self.shape, seed=0), self.model.head.kind == GENES
        )
        return compute_outputs(self.compiled, self.model.params, {}, batches, workers=0)


def open_predictor(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    runtime: RuntimeConfig | None = None,
) -> Predictor:
    """Opens cells and checks that they fit the model; compiles nothing yet.

    Args:
      model: fine-tuned, see training.finetuning.
      cells: a cell store, tokenised cells, or counts, which are tokenised with its vocabulary.
      runtime: how to compute; float32 by default.

    Raises:
      InputError: the model has no head, or the cells do not fit it.
    """
    if model.head is None:
        raise InputError(
            f"the model of {model.source} has no classification head; predict takes one that "
            "finetune made"
        )
    encoded = open_cells(cells, model)
    if not len(encoded.lengths):
        raise InputError("there is no cell to predict")
    spec = StepSpec(
        model.config,
        model.head,
        TuningConfig(),
        OptimizerConfig(),
        runtime or RuntimeConfig(),
        MeshConfig(),
    )
    compiled = compile_steps(spec, int(np.max(encoded.lengths)))
    layout = lay_out(np.asarray(encoded.lengths), model.config, compiled.mesh)
    return Predictor(model, encoded, compiled, layout.shape)


def predict_cells(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    runtime: RuntimeConfig | None = None,
) -> ad.AnnData:
    """Tells cells apart, or gives their numbers, with a fine-tuned model.

    Args:
      model: with a cell classifier.
      cells: see `open_predictor`.
      runtime: how to compute.

    Returns:
      AnnData without X: all cells in input order, under their ids, with all their obs columns. For
      each class target `.obs["predicted_NAME"]` (categorical), `.obs["probability_NAME"]` and
      `.obsm["probabilities_NAME"]`, float32 [cells, C], whose columns are the classes in
      `.uns["classes_NAME"]`; for each number `.obs["predicted_NAME"]`. The target of a plain
      classifier is called "label".

    Raises:
      InputError: the model has no cell classifier, or the cells do not fit it.
    """
    predictor = open_predictor(model, cells, runtime)
    _require_kind(model, CELLS, "predict_genes")
    encoded = predictor.cells
    rows = np.arange(len(encoded.lengths))
    parts = []
    with Progress(len(rows), "predict", "cells") as progress:
        for start in range(0, len(rows), _CELLS_AT_A_TIME):
            chosen = rows[start : start + _CELLS_AT_A_TIME]
            parts.append(predictor.outputs(unlabelled(chosen)))
            progress.advance(len(chosen))
    outputs = Outputs(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    predicted = ad.AnnData(obs=encoded.obs.copy())
    for task, _, own in per_task(model.head, outputs):
        _add_target(predicted, task, own)
    return predicted


def _add_target(predicted: ad.AnnData, task: HeadTask, own: np.ndarray) -> None:
    if task.regression:
        predicted.obs[f"{PREDICTED}_{task.name}"] = own[:, 0]
        return
    probabilities = np.exp(own).astype(np.float32)
    best = probabilities.argmax(axis=1)
    names = pd.Categorical.from_codes(best, categories=pd.Index(task.labels, dtype=object))
    predicted.obs[f"{PREDICTED}_{task.name}"] = names
    predicted.obs[f"{PROBABILITY}{task.name}"] = probabilities[np.arange(len(best)), best]
    # Not a table: h5ad cannot keep a column whose name holds "/", as labels of cell types do.
    predicted.obsm[f"{PROBABILITIES}{task.name}"] = probabilities
    predicted.uns[f"{CLASSES}{task.name}"] = np.array(task.labels, dtype=object)


def predict_genes(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    runtime: RuntimeConfig | None = None,
) -> pd.DataFrame:
    """Tells genes apart with a fine-tuned model, by their mean over the cells that have them.

    Args:
      model: with a gene classifier.
      cells: see `open_predictor`.
      runtime: how to compute.

    Returns:
      One row per gene that occurs, by gene id: `symbol`, `n_cells`, `predicted` (the class of the
      highest mean probability) and `probability_<class>`.

    Raises:
      InputError: the model has no gene classifier, or the cells do not fit it.
    """
    predictor = open_predictor(model, cells, runtime)
    _require_kind(model, GENES, "predict_cells")
    vocabulary, (task,) = predictor.cells.vocabulary, model.head.outputs
    labels = np.full(vocabulary.size, UNLABELLED, np.int32)
    labels[vocabulary.first_gene_token :] = 0
    rows = np.arange(len(predictor.cells.lengths))
    counts = np.zeros(vocabulary.size, np.int64)
    sums = np.zeros((vocabulary.size, len(task.labels)))
    with Progress(len(rows), "predict", "cells") as progress:
        for start in range(0, len(rows), _CELLS_AT_A_TIME):
            chosen = rows[start : start + _CELLS_AT_A_TIME]
            outputs = predictor.outputs(LabelledCells(chosen, labels))
            ((_, _, own),) = per_task(model.head, outputs)
            counts += np.bincount(outputs.tokens, minlength=len(counts))
            np.add.at(sums, outputs.tokens, np.exp(own))
            progress.advance(len(chosen))
    found = np.flatnonzero(counts)
    means = (sums[found] / counts[found, None]).astype(np.float32)
    genes = found - vocabulary.first_gene_token
    names = np.array(task.labels, object)
    table = pd.DataFrame(
        {
            "symbol": vocabulary.symbols[genes],
            "n_cells": counts[found],
            PREDICTED: names[means.argmax(axis=1)],
            **{f"{PROBABILITY}{name}": means[:, i] for i, name in enumerate(task.labels)},
        },
        index=pd.Index(vocabulary.gene_ids[genes], name="gene"),
    )
    return table.sort_index()


def _require_kind(model: PretrainedModel, kind: str, other: str) -> None:
    if model.head.kind != kind:
        raise InputError(
            f"the model of {model.source} has a {model.head.kind}, not a {kind}; use {other}"
        )


def check_labels(obs: pd.DataFrame, column: str, task: HeadTask) -> pd.Series:
    """Returns the known labels of cells, as text, to compare predictions with.

    Raises:
      InputError: there is no such column, or none of its values is a class of the model.
    """
    check_columns(obs, [column])
    known = obs[column].astype("object")
    texts = known[known.notna()].astype(str)
    if not texts.isin(task.labels).any():
        first = texts.iloc[0] if len(texts) else "nothing"
        raise InputError(
            f'no value of "{column}" is a class of the model: it holds "{first}"'
            f"{did_you_mean(first, task.labels)}, the model knows {', '.join(task.labels)}"
        )
    return texts


def compare_with_labels(predicted: ad.AnnData, column: str, task: HeadTask) -> list[str]:
    """Returns lines on how predictions agree with labels that are known; see `check_labels`.

    Args:
      predicted: as `predict_cells` returns it.
      column: of `.obs`, with the known labels.
      task: the class target to compare with.
    """
    texts = check_labels(predicted.obs, column, task)
    shared = texts.isin(task.labels)
    lines = []
    strange = sorted(set(texts[~shared]))
    if strange:
        lines.append(
            f"{int((~shared).sum()):,} cells have a label that the model does not know, and are "
            f"not compared: {', '.join(strange)}"
        )
    if missing := predicted.n_obs - len(texts):
        lines.append(f'{missing:,} cells have no "{column}", and are not compared')
    own = predicted.obs.loc[texts.index[shared], f"{PREDICTED}_{task.name}"].astype(str)
    agreement = float((own.to_numpy() == texts[shared].to_numpy()).mean())
    lines.append(f'"{column}": {agreement:.2%} of {int(shared.sum()):,} cells are predicted right')
    return lines
