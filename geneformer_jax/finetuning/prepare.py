"""What the folds of a task share: the network, its compiled steps and the shape of batches."""

import dataclasses
from typing import Protocol

import jax
import numpy as np

from geneformer_jax.batches.buckets import BatchShape, batch_shape
from geneformer_jax.batches.labelled import (
    LabelledBatches,
    LabelledCells,
    Learning,
    balanced_weights,
)
from geneformer_jax.batches.loader import WHOLE
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification.task import FoldData
from geneformer_jax.finetuning.config import BALANCED, FinetuneConfig, TuningConfig
from geneformer_jax.finetuning.network.step import CompiledSteps, StepSpec, compile_steps
from geneformer_jax.finetuning.network.trainable import check_tuning, join_weights, split_weights
from geneformer_jax.model.config import PROBE, RANDOM, EncoderConfig, HeadOptions
from geneformer_jax.model.encoder import Params, init_params
from geneformer_jax.model.heads import CELLS, GENES, HeadConfig, HeadTask, head_of_tasks, init_head
from geneformer_jax.model.pretrained import PretrainedModel, Quantization, weights_hash
from geneformer_jax.model.processes import put_whole
from geneformer_jax.model.quantization import count_weights, has_adapter
from geneformer_jax.model.sharding import batch_divisor, make_mesh
from geneformer_jax.training.optimizer import describe_long_warmup, warmup_steps
from geneformer_jax.training.tracking.tracker import require_tracker

_NO_RATES = {"learning_rate": 1.0, "weight_decay": 0.0, "warmup_steps": 0, "warmup_ratio": 0.0}

# Compiled once for a shape.
_draw_encoder = jax.jit(init_params, static_argnums=0)
_draw_head = jax.jit(init_head, static_argnums=(0, 1))


class FoldedSplit(Protocol):
    """Sides of ids in each fold; here only the number of folds counts."""

    folds: int


class Task(Protocol):
    """Labels of cells or genes, and their folds; see classification.task.

    Attributes:
      name: for messages.
      unit: "cell" or "gene".
      outputs: of the head.
      summary: lines that describe it.
      cells: tokenised cells, with their obs.
      split: how many folds there are.
    """

    name: str
    unit: str
    outputs: tuple[HeadTask, ...]
    summary: tuple[str, ...]
    cells: EncodedCells
    split: FoldedSplit

    def fold_data(self, fold: int) -> FoldData:
        """Returns the labelled cells of a fold."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinetuneSetup:
    """What all folds of a task share.

    Attributes:
      config: what was asked for.
      cells: tokenised cells.
      head: of the network.
      compiled: steps for the devices.
      trainable: initial trainable weights, on the host.
      frozen: frozen weights, on the devices.
      base: hash of the pretrained weights, or "scratch".
      source: where those were loaded from.
      quantization: how those are rounded, None if they are not.
      shape: how batches are shaped, shared by all folds.
    """

    config: FinetuneConfig
    cells: EncodedCells
    head: HeadConfig
    compiled: CompiledSteps
    trainable: Params
    frozen: Params
    base: str
    source: str
    quantization: Quantization | None
    shape: BatchShape

    @property
    def encoder(self) -> EncoderConfig:
        """Shape of the model."""
        return self.compiled.spec.encoder

    @property
    def per_gene(self) -> bool:
        """Whether genes are labelled."""
        return self.head.kind == GENES

    def summary(self) -> list[str]:
        """Describes the network, its weights, batches and devices, a line each."""
        count = {
            name: count_weights(tree)
            for name, tree in (("trainable", self.trainable), ("frozen", self.frozen))
        }
        mesh = self.compiled.mesh
        axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        rounded = f" (in {self.quantization.kind})" if self.quantization else ""
        return [
            f"network: {self.encoder.layers} layers of width {self.encoder.width}, from "
            f"{self.source or 'scratch'}",
            f"weights: {count['trainable']:,} trainable, {count['frozen']:,} frozen{rounded}",
            f"head: {self.head.kind}, {', '.join(self.head.labels)}",
            f"batches (cells x tokens): {self.shape.describe()}",
            f"devices: {axes} on {mesh.devices.flat[0].device_kind}; precision "
            f"{self.config.runtime.precision}",
            *self.compiled.notes,
        ]

    def model(self, trainable: Params, step: int) -> PretrainedModel:
        """Returns the whole model, low-rank factors merged in."""
        params = join_weights(trainable, self.frozen, self.config.tuning)
        described = self.cells.vocabulary, self.source, step, self.head, self.quantization
        return PretrainedModel(self.encoder, params, *described)

    def batches(
        self, labelled: LabelledCells, *, training: bool = False, steps: int = 0
    ) -> LabelledBatches:
        """Returns batches of labelled cells, of which training takes this process's rows.

        Sampling and class weights are for training only.
        """
        config = self.config
        weights, loss = None, config.loss
        if training and loss.class_weights == BALANCED:
            weights = balanced_weights(np.asarray(labelled.labels), len(self.head.labels))
        sampling = Learning(
            self.shape,
            config.seed,
            class_weights=weights,
            balanced=training and loss.sampling == BALANCED,
            mega_batch_multiplier=config.data.mega_batch_multiplier,
        )
        shard = self.compiled.shard if training else WHOLE
        return LabelledBatches(self.cells, labelled, sampling, self.per_gene, steps, shard)

    def steps(self, labelled: LabelledCells) -> tuple[int, int]:
        """Returns (optimizer steps of a run on these training cells, steps in one pass)."""
        per_epoch = self.batches(labelled, training=True).plan.steps_per_epoch
        return self.config.steps or self.config.epochs * per_epoch, per_epoch

    def describe_steps(self, fold: int, data: FoldData) -> list[str]:
        """Describes the cells and steps of a fold, with a warning if the rate never peaks."""
        (steps, per_epoch), optimizer = self.steps(data.train), self.config.optimizer
        warmup = warmup_steps(optimizer, steps)
        sizes = ", ".join(
            f"{len(getattr(data, side).rows):,} {what}"
            for side, what in (
                ("train", "cells to learn from"),
                ("valid", "to validate with"),
                ("test", "to test"),
            )
        )
        lines = [
            f"fold {fold}: {sizes}; {steps:,} steps ({per_epoch:,} an epoch), the first "
            f"{min(warmup, steps):,} of them warmup"
        ]
        if problem := describe_long_warmup(optimizer, steps):
            lines.append(f"warning: {problem}")
        return lines

    def long_warmup(self, task: Task) -> str:
        """Returns what is wrong where a fold ends before its warmup does; else ""."""
        steps = [self.steps(task.fold_data(i).train)[0] for i in range(task.split.folds)]
        return describe_long_warmup(self.config.optimizer, min(steps))


def prepare_finetuning(
    task: Task,
    model: PretrainedModel | None,
    config: FinetuneConfig,
) -> FinetuneSetup:
    """Checks that all fits together, and builds what the folds share; compiles nothing yet.

    Args:
      task: labels, cells and folds.
      model: pretrained weights; None trains a new network of the shape `config.model`.
      config: how.

    Raises:
      InputError: the model does not fit the cells or the labels, the configuration cannot run, or
        a tracker is not installed.
    """
    require_tracker(config.track)
    vocabulary = task.cells.vocabulary
    encoder = config.encoder(vocabulary.size) if model is None else model.config
    check_tuning(config.tuning, encoder)
    head = _head(task.unit, task.outputs, config, encoder)
    if model is not None:
        _check_model(model, vocabulary, head)
        _check_quantized(model, config.tuning)
    shape = _shape(task.cells, encoder, config)
    # Rates are arguments of the compiled step.
    optimizer = dataclasses.replace(config.optimizer, **_NO_RATES)
    quantization, runtime = model and model.quantization, config.runtime
    if quantization and runtime.remat == "none":
        # Else the backward pass would keep every layer's kernels in float.
        runtime = dataclasses.replace(runtime, remat="dots")
    steps = config.tuning, optimizer, runtime, config.mesh, quantization is not None
    spec = StepSpec(encoder, head, *steps)
    compiled = compile_steps(spec, shape.buckets[-1])
    trainable, frozen = split_weights(
        _initial_weights(model, encoder, head, config.seed),
        encoder,
        config.tuning,
        jax.random.key(config.seed + 1),
    )
    return FinetuneSetup(
        config,
        task.cells,
        head,
        compiled,
        trainable=jax.device_get(trainable),
        frozen=put_whole(frozen, compiled.constants.frozen),
        base="scratch" if model is None else weights_hash(model),
        source="" if model is None else model.source,
        quantization=quantization,
        shape=shape,
    )


def _head(
    unit: str, outputs: tuple[HeadTask, ...], config: FinetuneConfig, encoder: EncoderConfig
) -> HeadConfig:
    per_gene = unit == "gene"
    options, loss = config.head, config.loss
    dropout = encoder.dropout if options.dropout == -1 else options.dropout
    if per_gene and options.pooling != "first":
        raise InputError(
            f"`config.head.pooling` is {options.pooling}, but genes are not pooled; leave it first"
        )
    for task in outputs:
        if not task.regression and len(task.labels) < 2:
            raise InputError(
                f'"{task.name}" has the single class "{task.labels[0]}"; a classifier needs two'
            )
    single = len(outputs) == 1 and not outputs[0].regression
    if not single and (loss.class_weights == BALANCED or loss.sampling == BALANCED):
        raise InputError(
            "`config.loss.class_weights` and `config.loss.sampling` can be balanced for a single "
            "classification only; set them to none and natural"
        )
    if per_gene and loss.sampling == BALANCED:
        raise InputError(
            "`config.loss.sampling` is balanced, but a cell holds genes of all classes; use "
            "`config.loss.class_weights`=balanced"
        )
    if options.initial == PROBE:
        _check_probe(unit, outputs, options)
    kind = GENES if per_gene else CELLS
    pooling = {"pooling": options.pooling, "extra_layer": options.extra_layer}
    return head_of_tasks(kind, outputs, dropout, **pooling)


def _check_probe(unit: str, outputs: tuple[HeadTask, ...], options: HeadOptions) -> None:
    """Raises InputError where logistic regression is no head."""
    reason = ""
    if unit == "gene":
        reason = "genes are labelled; it is for cells"
    elif len(outputs) > 1 or outputs[0].regression:
        reason = "it is for a single classification"
    elif options.extra_layer or options.pooling == "attention":
        reason = "nothing may be learned between the network and what is pooled"
    if reason:
        raise InputError(f"`config.head.initial` is {PROBE}, but {reason}; set it to {RANDOM}")


def _check_model(model: PretrainedModel, vocabulary: GeneVocabulary, head: HeadConfig) -> None:
    if model.vocabulary is None:
        raise InputError(
            f"the model of {model.source} carries no vocabulary; give its own `vocabulary`"
        )
    if model.vocabulary.hash != vocabulary.hash:
        raise InputError(
            f"the cells were tokenised with vocabulary {vocabulary.hash[:12]}, but the model of "
            f"{model.source} was trained with {model.vocabulary.hash[:12]}; tokenize them with the "
            "model's"
        )
    if model.head is not None and (model.head.kind, model.head.labels) != (head.kind, head.labels):
        raise InputError(
            f"the model of {model.source} has a {model.head.kind} for "
            f"{', '.join(model.head.labels)}, but the labels ask for a {head.kind} for "
            f"{', '.join(head.labels)}; begin with the pretrained checkpoint it was made from"
        )


def _check_quantized(model: PretrainedModel, tuning: TuningConfig) -> None:
    """Raises InputError if quantised weights would have to change."""
    if model.quantization is None:
        return
    if tuning.lora is None:
        raise InputError(
            f"the weights of {model.source} are in {model.quantization.kind}, which are not "
            "trained themselves; set `config.tuning.lora_rank`, or leave `quantize` out"
        )
    if has_adapter(model.params):
        raise InputError(
            f"{model.source} is an adapter beside quantised weights, and no second one is trained "
            "on it; begin with its base, or leave `quantize` out"
        )


def _shape(cells: EncodedCells, encoder: EncoderConfig, config: FinetuneConfig) -> BatchShape:
    lengths, data = np.asarray(cells.lengths), config.data
    if data.packing:
        raise InputError("`config.data.packing` is for pretraining; set it to False")
    if not len(lengths):
        raise InputError("there is no cell to train on; give cells with labels")
    if lengths.max() > encoder.positions:
        raise InputError(
            f"the longest cell has {lengths.max()} tokens, but the model {encoder.positions} "
            f"positions; tokenize with `max_length`={encoder.positions}"
        )
    divisor = batch_divisor(make_mesh(config.mesh)) * config.runtime.micro_batches
    return batch_shape(data, lengths, encoder.positions, divisor)


def _initial_weights(
    model: PretrainedModel | None, encoder: EncoderConfig, head: HeadConfig, seed: int
) -> Params:
    """Returns weights of the encoder and the head, those of the model where it has them."""
    key = jax.random.key(seed)
    params = _draw_encoder(encoder, key) if model is None else model.params
    weights = {part: params[part] for part in ("embeddings", "blocks")}
    if model is not None and model.head == head:
        return weights | {head.kind: params[head.kind]}
    return weights | {head.kind: _draw_head(encoder, head, jax.random.fold_in(key, 1))}
