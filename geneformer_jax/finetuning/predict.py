"""A fine-tuned model applied to new cells: predictions of the cells, or of the genes in them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.batches.labelled import (
    UNLABELLED,
    LabelledBatches,
    LabelledCells,
    Learning,
    unlabelled,
)
from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.store.obs_columns import stored_name
from geneformer_jax.common.arguments import require_type
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import provenance_beside
from geneformer_jax.finetuning.classification.predictions import PROBABILITY, Outputs, per_task
from geneformer_jax.finetuning.config import TuningConfig
from geneformer_jax.finetuning.evaluation import compute_outputs
from geneformer_jax.finetuning.step import StepSpec, compile_steps
from geneformer_jax.inference.arguments import check_model
from geneformer_jax.inference.batches import lay_out
from geneformer_jax.inference.cells import fill_rows, open_cells, places_in_input, select_cells
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.inference.pipeline import Throughput
from geneformer_jax.inference.written_anndata import write_anndata
from geneformer_jax.model.config import MeshConfig, RuntimeConfig
from geneformer_jax.model.heads import CELLS, GENES, HeadConfig, HeadTask
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.training.config import OptimizerConfig

PREDICTED = "predicted"
# Keys of .obsm and .uns, before the name of an output.
PROBABILITIES, CLASSES = "probabilities_", "classes_"
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


def _compute(
    model: PretrainedModel,
    cells: EncodedCells,
    runtime: RuntimeConfig | None,
    tokens_per_device: int | None,
    gene_labels: np.ndarray | None = None,
) -> Iterator[Outputs]:
    """Yields the outputs of some thousand cells at a time, or of the labelled genes in them."""
    tuning, optimizer = TuningConfig(), OptimizerConfig()
    if runtime is not None:
        kinds = 'give a RuntimeConfig(precision="bfloat16"), or leave it out'
        require_type("runtime", runtime, RuntimeConfig, kinds)
    runtime = runtime or RuntimeConfig()
    spec = StepSpec(model.config, model.head, tuning, optimizer, runtime, MeshConfig())
    lengths = np.asarray(cells.lengths)
    compiled = compile_steps(spec, int(np.max(lengths)))
    sampling = Learning(
        lay_out(lengths, model.config, compiled.mesh, tokens_per_device).shape, seed=0
    )
    per_gene, throughput = gene_labels is not None, Throughput()
    with Progress(len(lengths), "predict", "cells") as progress:
        for start in range(0, len(lengths), _CELLS_AT_A_TIME):
            rows = np.arange(start, min(start + _CELLS_AT_A_TIME, len(lengths)))
            labelled = LabelledCells(rows, gene_labels) if per_gene else unlabelled(rows)
            batches = LabelledBatches(cells, labelled, sampling, per_gene)
            yield compute_outputs(
                compiled, model.params, {}, batches, 0, throughput=throughput, progress=progress
            )


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
      classifier is called "label".

    Raises:
      InputError: the model has no cell classifier, or the cells do not fit it.
    """
    encoded = open_cells_for(model, cells, CELLS, **reading)
    parts = zip(*_compute(model, encoded, runtime, tokens_per_device), strict=True)
    outputs = Outputs(*(np.concatenate(each) for each in parts))
    obs, rows = encoded.obs, np.arange(len(encoded.lengths))
    if all_cells:
        obs, rows = places_in_input(select_cells(encoded))
    predicted = ad.AnnData(obs=_beside_predictions(obs, model.head))
    for task, _, own in per_task(model.head, outputs):
        _add_output(predicted, task, fill_rows(own, rows, len(obs)))
    return predicted


def _beside_predictions(obs: pd.DataFrame, head: HeadConfig) -> pd.DataFrame:
    """Returns the columns of the cells, those with names of predictions behind a prefix."""
    own = [f"{kind}{task.name}" for task in head.outputs for kind in (f"{PREDICTED}_", PROBABILITY)]
    renamed = {name: stored_name(name, own) for name in obs if stored_name(name, own) != name}
    for name, other in renamed.items():
        logger.warning(f'obs column "{name}" of the cells is kept as "{other}" beside the new one')
    return obs.rename(columns=renamed)


def _add_output(predicted: ad.AnnData, task: HeadTask, own: np.ndarray) -> None:
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
    predicted.obsm[f"{PROBABILITIES}{task.name}"] = probabilities
    predicted.uns[f"{CLASSES}{task.name}"] = np.array(task.labels, dtype=object)


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
    vocabulary, (task,) = encoded.vocabulary, model.head.outputs
    labels = np.full(vocabulary.size, UNLABELLED, np.int32)
    labels[vocabulary.first_gene_token :] = 0
    counts = np.zeros(vocabulary.size, np.int64)
    sums = np.zeros((vocabulary.size, len(task.labels)))
    for outputs in _compute(model, encoded, runtime, tokens_per_device, labels):
        ((_, _, own),) = per_task(model.head, outputs)
        counts += np.bincount(outputs.tokens, minlength=len(counts))
        np.add.at(sums, outputs.tokens, np.exp(own))
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


def find_output(model: PretrainedModel, name: str = "") -> HeadTask:
    """Returns the output of classes that labels are compared with.

    Args:
      model: with a cell classifier.
      name: of the output; by default the first of classes.

    Raises:
      InputError: the model has no such output.
    """
    outputs = {task.name: task for task in model.head.outputs if not task.regression}
    if not outputs:
        raise InputError("labels are compared with classes, but the model gives numbers only")
    name = name or next(iter(outputs))
    if name not in outputs:
        raise InputError(
            f'"{name}" is no output of classes{did_you_mean(name, outputs)}; use one of '
            f"{', '.join(outputs)}"
        )
    return outputs[name]


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


def compare_with_labels(predicted: ad.AnnData, known: pd.Series, task: HeadTask) -> list[str]:
    """Returns lines on how predictions agree with known labels.

    Args:
      predicted: as `predict_cells` returns it.
      known: labels of the cells that have one, from `check_labels`.
      task: the output of classes to compare with.
    """
    shared = known.isin(task.labels)
    lines = []
    strange = sorted(set(known[~shared]))
    if strange:
        lines.append(
            f"{int((~shared).sum()):,} cells have a label that the model does not know, and are "
            f"not compared: {', '.join(strange)}"
        )
    if missing := int(predicted.obs[f"{PREDICTED}_{task.name}"].notna().sum()) - len(known):
        lines.append(f'{missing:,} cells have no "{known.name}", and are not compared')
    own = predicted.obs.loc[known.index[shared], f"{PREDICTED}_{task.name}"].astype(str)
    agreement = float((own.to_numpy() == known[shared].to_numpy()).mean())
    lines.append(
        f'"{known.name}": {agreement:.2%} of {int(shared.sum()):,} cells are predicted right'
    )
    return lines


def write_predicted(
    predicted: ad.AnnData | pd.DataFrame, output: Path, provenance: Mapping[str, Any]
) -> None:
    """Writes predictions with their provenance beside them.

    Args:
      predicted: from `predict_cells` or `predict_genes`.
      output: file: .h5ad (of cells), .parquet or .csv.
      provenance: of the run.
    """
    text = json.dumps(provenance, indent=2, default=str) + "\n"
    with atomic_write(provenance_beside(output)) as aside:
        aside.write_text(text)
    with atomic_write(output) as aside:
        if output.suffix == ".h5ad":
            predicted.uns["provenance"] = text
            write_anndata(predicted, aside)
            return
        table = _side_by_side(predicted) if isinstance(predicted, ad.AnnData) else predicted
        table.to_parquet(aside) if output.suffix == ".parquet" else table.to_csv(aside)


def _side_by_side(predicted: ad.AnnData) -> pd.DataFrame:
    """Returns obs and all probabilities as one table."""
    parts = [predicted.obs]
    for name, probabilities in predicted.obsm.items():
        output = name.removeprefix(PROBABILITIES)
        columns = [f"{PROBABILITY}{output}_{label}" for label in predicted.uns[CLASSES + output]]
        parts.append(pd.DataFrame(probabilities, predicted.obs_names, columns))
    return pd.concat(parts, axis=1)
