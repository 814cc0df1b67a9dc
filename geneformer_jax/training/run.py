"""Everything about a pretraining run that is fixed before its first step."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from geneformer_jax.batches.buckets import BatchShape, batch_shape
from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.loader import BatchShard, MaskedBatches
from geneformer_jax.batches.plan import PlanRecipe, split_cells
from geneformer_jax.batches.views import LEAST_GENES, mean_genes
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.shorter_cells import ShorterCells
from geneformer_jax.cells.tokenization.rank_encoding import describe_cut
from geneformer_jax.common.config import LARGEST_COUNT
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.runtime import Runtime, make_runtime
from geneformer_jax.model.sharding import BATCH, batch_divisor, make_mesh, vocabulary_rows
from geneformer_jax.training.config import PretrainConfig
from geneformer_jax.training.flops import (
    ASSUMED_SPEED,
    Speed,
    bytes_per_device,
    hours_line,
    step_flops,
)
from geneformer_jax.training.initial.gene_components import MAX_CELLS
from geneformer_jax.training.objectives.contrastive import ContrastiveRecipe
from geneformer_jax.training.optimizer import describe_long_warmup, make_optimizer
from geneformer_jax.training.state import (
    Recipe,
    TrainState,
    TrainStep,
    abstract_state,
    jit_train_step,
    resize_state,
)
from geneformer_jax.training.tracking.tracker import require_tracker


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run made ready: nothing is compiled and no array exists yet.

    Attributes:
      config: what was asked for.
      store: the cells.
      encoder: shape of the model.
      mesh: devices.
      runtime: how to compute, attention chosen.
      shape: buckets and rows in a batch.
      batches: the masked training batches of all steps.
      held_out: one epoch of masked held-out batches, None if no cells are held out.
      steps: optimizer steps in all.
      notes: lines to print, e.g. why this attention was chosen.
    """

    config: PretrainConfig
    store: CellStore
    encoder: EncoderConfig
    mesh: Mesh
    runtime: Runtime
    shape: BatchShape
    batches: MaskedBatches
    held_out: MaskedBatches | None
    steps: int
    notes: tuple[str, ...]

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training cells."""
        return self.batches.plan.steps_per_epoch

    @functools.cached_property
    def training_cells(self) -> np.ndarray:
        """Numbers of the cells that are trained on."""
        held_out = self.config.evaluation.held_out_cells
        return split_cells(len(self.store), held_out, self.config.seed)[0]

    @functools.cached_property
    def recipe(self) -> Recipe:
        """What every step has in common."""
        config = self.config
        common = {
            "config": self.encoder,
            "optimizer": make_optimizer(config.optimizer, self.steps),
            "runtime": self.runtime,
            "seed": config.seed,
            "micro_batches": config.runtime.micro_batches,
            "optimizer_on_host": config.runtime.optimizer_on_host,
            "masking": config.masking if config.masks_on_device else None,
            "vocabulary": self.store.vocabulary,
            "vocabulary_rows": vocabulary_rows(self.mesh, self.encoder.vocabulary_size),
        }
        if config.objective.contrastive:
            return ContrastiveRecipe(**common, objective=config.objective)
        return Recipe(**common)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the train state."""
        return abstract_state(self.recipe, self.mesh)

    @property
    def stored_recipe(self) -> Recipe:
        """The recipe of a state as checkpoints hold it: with a row for each token and no more."""
        return dataclasses.replace(self.recipe, vocabulary_rows=self.encoder.vocabulary_size)

    def stored(self, state: TrainState) -> TrainState:
        """Returns a state as checkpoints hold it."""
        return resize_state(state, self.stored_recipe, self.mesh)

    def at_work(self, state: TrainState) -> TrainState:
        """Returns a state that a checkpoint held as the steps take it."""
        return resize_state(state, self.recipe, self.mesh)

    @functools.cached_property
    def train_step(self) -> TrainStep:
        """The jitted step, one program per bucket."""
        return jit_train_step(self.recipe, self.mesh)

    def flops(self, cells: np.ndarray) -> float:
        """Returns the floating point operations of a training step on these cells."""
        return self._flops(self.store.lengths[cells])

    def _flops(self, lengths: np.ndarray) -> float:
        """Returns the floating point operations of steps on cells of these lengths."""
        masked = self.config.masking.selected_fraction * lengths.sum(dtype=np.int64)
        flops, objective = step_flops(self.encoder, lengths, masked), self.config.objective
        if objective.contrastive:
            below = dataclasses.replace(
                self.encoder, layers=self.encoder.layers + objective.hidden_layer
            )
            flops += step_flops(below, mean_genes(lengths, objective.views), 0)
        return flops

    @functools.cached_property
    def flops_per_step(self) -> float:
        """Floating point operations of a step on average, see estimate.step_flops."""
        return self._flops(self.store.lengths[self.training_cells]) / self.steps_per_epoch

    def identity(self) -> dict[str, Any]:
        """Returns the settings that decide the result, by dotted name; a resumed run has the same.

        Devices, workers, number formats and the times of saving are not in it: a run may go on with
        others.
        """
        decisive = dataclasses.asdict(self.config)
        for name in ("mesh", "runtime", "checkpoint", "profile", "log_every_steps", "track"):
            del decisive[name]
        del decisive["data"]["workers"], decisive["evaluation"]["every_steps"]
        del decisive["masking"]["on_device"]
        # As in runs that were begun before there was a choice.
        if not self.config.objective.contrastive:
            del decisive["objective"]
        if self.config.optimizer.name == "adamw":
            del decisive["optimizer"]["name"]
        if self.config.initial_genes == "random":
            del decisive["initial_genes"]
        if self.config.optimizer.schedule != "stable_decay":
            del decisive["optimizer"]["decay_ratio"]
        # The store may be moved between two parts of a run; what is in it may not change.
        content = hashlib.sha256(self.store.vocabulary.hash.encode())
        for shard in self.store.shards:
            content.update(shard.sha256.encode())
        decisive["data"]["store"] = content.hexdigest()[:16]
        return traverse_util.flatten_dict(decisive, sep=".")

    def summary(self, speed: Speed = ASSUMED_SPEED) -> list[str]:
        """Returns lines on what the run will do, and what it costs on devices of this speed."""
        plan, problem = self.batches.plan, describe_long_warmup(self.config.optimizer, self.steps)
        what = "packed rows" if self.config.data.packing else "cells"
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        return [
            f"model: {self.encoder.parameters:,} parameters, {self.encoder.layers} layers of "
            f"width {self.encoder.width}, vocabulary {self.encoder.vocabulary_size:,}",
            f"cells: {plan.n_cells:,} to train on, "
            f"{self.config.evaluation.held_out_cells:,} held out",
            f"batches ({what} x tokens): {self.shape.describe()}",
            f"padding: {plan.padding:.1%} of tokens",
            f"steps: {self.steps:,} ({plan.steps_per_epoch:,} an epoch)",
            f"devices: {axes} on {self.mesh.devices.flat[0].device_kind}; "
            f"precision {self.config.runtime.precision}",
            *self._initial_genes(),
            *self._second_objective(),
            *self.notes,
            *self._costs(speed),
            *([f"warning: {problem}"] if problem else []),
        ]

    def _initial_genes(self) -> list[str]:
        """Lines on embeddings of genes that are not drawn."""
        if self.config.initial_genes == "random":
            return []
        cells = min(len(self.training_cells), MAX_CELLS)
        return [f"embeddings of genes begin as components of their ranks in {cells:,} cells"]

    def _second_objective(self) -> list[str]:
        """Lines on what is learnt beside masked genes."""
        objective = self.config.objective
        if not objective.contrastive:
            return []
        views = objective.views
        return [
            f"objective: masked genes, and {objective.contrastive:g} times a contrastive loss of "
            f"each cell and a view of it ({views.least_genes} to {views.most_genes} of its genes)"
        ]

    def _costs(self, speed: Speed) -> list[str]:
        """Lines on memory and arithmetic, from shapes alone."""
        state = self.abstract_state
        gib = [bytes_per_device(part) / 2**30 for part in (state.params, state.optimizer)]
        flops = self.flops_per_step
        device, precision = self.mesh.devices.flat[0], self.config.runtime.precision
        return [
            f"on each device: weights {gib[0]:.3f} GiB, optimizer state {gib[1]:.3f} GiB, "
            f"gradients {gib[0]:.3f} GiB, and activations",
            f"cost: {flops:.3g} FLOP a step, {flops * self.steps:.3g} in all",
            hours_line(flops * self.steps, self.mesh.size, device, precision, speed),
        ]


def open_store(config: PretrainConfig) -> CellStore:
    """Opens the store that the configuration names; raises InputError if it names none."""
    if not config.data.store:
        raise InputError("`config.data.store` is not set; name a folder written by tokenize")
    return CellStore.open(config.data.store)


def prepare_run(
    config: PretrainConfig, store: CellStore, devices: Sequence[jax.Device] | None = None
) -> Run:
    """Determines mesh, batches, steps and attention, and checks that they fit together.

    Cells with more tokens than the model takes are cut to their highest ranked genes.

    Args:
      config: the whole run.
      store: the cells.
      devices: to run on, by default all that JAX finds; compile-only ones will do.

    Raises:
      InputError: a value of the configuration does not fit the store, the devices or another
        value, or a tracker is not installed.
    """
    require_tracker(config.track)
    encoder = config.encoder(store.vocabulary.size)
    seen = ShorterCells(store, encoder.positions)
    is_cut = seen.is_cut
    store = seen if is_cut.any() else store
    mesh = make_mesh(config.mesh, devices)
    _require_divisible(encoder, mesh)
    shape = _shape(config, store, mesh, encoder)
    packing, held_out_cells = config.data.packing, config.evaluation.held_out_cells
    recipe = PlanRecipe(
        shape,
        seed=config.seed,
        held_out_cells=held_out_cells,
        packing=packing,
        mega_batch_multiplier=config.data.mega_batch_multiplier,
    )
    # Never packed: the baselines want to know at which rank of its cell a masked gene stood.
    unpacked = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=False))
    unpacked_shape = _shape(unpacked, store, mesh, encoder)
    held_out = dataclasses.replace(recipe, shape=unpacked_shape, held_out=True, packing=False)
    shard = batch_shard(mesh)
    steps = config.steps or config.epochs * recipe.make(store.lengths).steps_per_epoch
    if config.objective.contrastive:
        _check_contrastive(config, store, encoder, shape)
    runtime, notes = make_runtime(config.runtime, encoder, mesh, shape.buckets[-1], packing)
    run = Run(
        config=config,
        store=store,
        encoder=encoder,
        mesh=mesh,
        runtime=runtime,
        shape=shape,
        batches=MaskedBatches(
            store, recipe, None if config.masks_on_device else config.masking, steps, shard
        ),
        held_out=_held_out(store, held_out, config.masking, shard) if held_out_cells else None,
        steps=steps,
        notes=(*notes, *([describe_cut(is_cut, seen.limit)] if is_cut.any() else [])),
    )
    _check_steps(run)
    return run


def _check_steps(run: Run) -> None:
    """Raises InputError where there are too many steps, or too few cells in them."""
    config, cells = run.config, run.batches.plan.n_cells
    if run.steps > LARGEST_COUNT:
        raise InputError(
            f"`config.epochs` is {config.epochs:,}, which makes {run.steps:,} steps; at most "
            f"{LARGEST_COUNT:,} can be counted"
        )
    weight = config.objective.contrastive
    if weight and cells < 2 * run.steps_per_epoch:
        raise InputError(
            f"`config.objective.contrastive` is {weight:g}, but a step has "
            f"{cells / run.steps_per_epoch:.1f} of the {cells:,} cells to train on, too few to "
            "tell one from the others; take more cells, raise `config.data.tokens_per_batch` or "
            "`config.data.cells_per_batch`, or set it to 0"
        )


def _require_divisible(encoder: EncoderConfig, mesh: Mesh) -> None:
    tensor = mesh.shape["tensor"]
    for name in ("heads", "feed_forward"):
        size = getattr(encoder, name)
        if size % tensor:
            raise InputError(
                f"`config.model.{name}` {size} is not divisible by `config.mesh.tensor` {tensor}; "
                "choose a divisor"
            )


def _check_contrastive(
    config: PretrainConfig, store: CellStore, encoder: EncoderConfig, shape: BatchShape
) -> None:
    """Raises InputError where a contrastive loss has nothing to compare."""
    objective = config.objective
    weight = f"`config.objective.contrastive` is {objective.contrastive:g}"
    # Embeddings that no layer has seen would learn by themselves.
    if objective.hidden_layer <= -encoder.layers:
        raise InputError(
            f"`config.objective.hidden_layer` is {objective.hidden_layer}, but the model has "
            f"{encoder.layers} layers; choose one from {1 - encoder.layers} to 0"
        )
    small = int((store.lengths - store.vocabulary.special_per_cell < LEAST_GENES).sum())
    if small:
        raise InputError(
            f"{weight}, but {small:,} of {len(store):,} cells have fewer than {LEAST_GENES} genes, "
            "too few for a view; tokenize without them (`min_genes`), or set it to 0"
        )
    if not config.data.packing and min(shape.cells) < 2:
        raise InputError(
            f"{weight}, but a batch of cells of {shape.buckets[-1]} tokens holds one cell, which "
            "has none to be told from; raise `config.data.tokens_per_batch` or "
            "`config.data.cells_per_batch`, or set it to 0"
        )


def _shape(
    config: PretrainConfig, store: CellStore, mesh: Mesh, encoder: EncoderConfig
) -> BatchShape:
    divisor = batch_divisor(mesh) * config.runtime.micro_batches
    return batch_shape(config.data, store.lengths, encoder.positions, divisor)


def batch_shard(mesh: Mesh) -> BatchShard:
    """Returns the part of each batch whose rows lie on this process's devices."""
    rows = batch_divisor(mesh)
    places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((rows,))
    starts = sorted({index[0].start or 0 for index in places.values()})
    return BatchShard(index=starts[0] // len(starts), count=rows // len(starts))


def _held_out(
    store: CellStore, recipe: PlanRecipe, masking: MaskingConfig, shard: BatchShard
) -> MaskedBatches:
    steps = recipe.make(store.lengths).steps_per_epoch
    return MaskedBatches(store, recipe, masking, steps, shard)
