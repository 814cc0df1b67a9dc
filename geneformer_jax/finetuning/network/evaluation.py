"""Outputs of a network over batches, and their scores."""

import contextlib

import jax
import numpy as np
from sklearn.metrics import f1_score

from geneformer_jax.batches.labelled import LabelledBatch, LabelledBatches
from geneformer_jax.batches.loader import read_ahead
from geneformer_jax.common.progress import Progress
from geneformer_jax.finetuning.classification.predictions import Outputs, per_task
from geneformer_jax.finetuning.network.step import CompiledSteps, Outputter, StepSpec
from geneformer_jax.finetuning.network.trainable import join_weights
from geneformer_jax.inference.finite import first_not_finite, not_finite
from geneformer_jax.inference.pipeline import Throughput, run_ahead
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.heads import GENES, HeadConfig
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.processes import whole_on_host
from geneformer_jax.model.sharding import put_batch

# Batches that the devices may be ahead of the host.
_AHEAD = 3


def compute_outputs(
    compiled: CompiledSteps,
    trainable: Params,
    frozen: Params,
    batches: LabelledBatches,
    workers: int,
    throughput: Throughput | None = None,
    progress: Progress | None = None,
    *,
    outputter: Outputter | None = None,
) -> Outputs:
    """Runs the network over one epoch of batches; each cell comes once.

    Of genes only those with a label are kept.

    Args:
      compiled: steps for the devices.
      trainable, frozen: weights.
      batches: one epoch, whole.
      workers: that read ahead.
      throughput: where the time of compiling is counted.
      progress: advanced by each batch's cells.
      outputter: what of cells is taken in place of the logits, one of `compiled`'s.

    Raises:
      InputError: outputs are NaN or infinite.
    """
    throughput = throughput or Throughput()
    per_gene = compiled.spec.head.kind == GENES
    collect = _labelled_genes if per_gene else _real_cells
    outputter = outputter or compiled.logits

    def start(batch: LabelledBatch) -> jax.Array:
        with throughput.starting(batch.tokens_BT.shape):
            # All processes read the whole batch, as all collect what it gives.
            own = jax.tree.map(compiled.shard.rows, batch)
            return outputter(trainable, frozen, put_batch(own, compiled.mesh))

    parts = []
    with contextlib.closing(read_ahead(batches, 0, workers)) as read:
        for batch, logits in run_ahead(read, start, _AHEAD):
            collected = collect(batch, logits)
            wrong = first_not_finite(collected[-1], collected[0])
            if wrong is not None:
                network = _network(compiled.spec, trainable, frozen)
                precision = precision_preset(compiled.spec.runtime.precision)
                raise not_finite(wrong, batches.cells, network, precision)
            parts.append(collected)
            if progress is not None:
                done = int((batch.cells_B >= 0).sum())
                progress.advance(done, compiling=throughput.compiling)
    cells, positions, tokens, targets, logits = (
        np.concatenate(each) for each in zip(*parts, strict=True)
    )
    order = np.lexsort((positions, cells))
    return Outputs(
        cells[order].astype(np.int64),
        tokens[order if per_gene else []],
        targets[order],
        logits[order],
    )


def _network(spec: StepSpec, trainable: Params, frozen: Params) -> PretrainedModel:
    """Returns the network as a model on the host, of a vocabulary that is not known here."""
    params = join_weights(*whole_on_host((trainable, frozen)), spec.tuning)
    return PretrainedModel(spec.encoder, params, None, "the network", 0, spec.head)


def _real_cells(batch: LabelledBatch, logits_BC: np.ndarray) -> tuple:
    real = batch.cells_B >= 0
    none = np.zeros(int(real.sum()), np.int32)
    targets = np.where(batch.weights > 0, batch.targets, np.nan)[real]
    return batch.cells_B[real], none, none, targets, logits_BC[real]


def _labelled_genes(batch: LabelledBatch, logits_BTC: np.ndarray) -> tuple:
    rows, positions = np.nonzero(batch.weights[..., 0] > 0)
    at = rows, positions
    return batch.cells_B[rows], positions, batch.tokens_BT[at], batch.targets[at], logits_BTC[at]


def score(head: HeadConfig, outputs: Outputs) -> dict[str, float]:
    """Returns loss (weighted over tasks), and each task's accuracy and macro F1, or its R2.

    Names of scores end with the task's name where there are several.
    """
    scores: dict[str, float] = {}
    weights = np.array([task.weight for task in head.outputs])
    losses = []
    for task, targets, own in per_task(head, outputs):
        ending = f"_{task.name}" if len(head.outputs) > 1 else ""
        known = ~np.isnan(targets)
        targets, own = targets[known], own[known]
        if task.regression:
            errors = np.square((own[:, 0] - targets) / task.scale)
            losses.append(errors.mean() if len(errors) else 0.0)
            spread = np.square((targets - targets.mean()) / task.scale).sum() if len(errors) else 0
            scores[f"r2{ending}"] = float(1 - errors.sum() / spread) if spread else float("nan")
            continue
        classes, predicted = targets.astype(int), own.argmax(axis=1)
        losses.append(-own[np.arange(len(own)), classes].mean() if len(own) else 0.0)
        scores[f"accuracy{ending}"] = float((classes == predicted).mean())
        scores[f"macro_f1{ending}"] = float(f1_score(classes, predicted, average="macro"))
    return {"loss": float((weights / weights.sum() * losses).sum()), **scores}
