"""Everything about a pretraining run that is fixed before its first step."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geneformer_jax.batches.loader import MaskedBatches, Share
from geneformer_jax.batches.masking import MaskingRule
from geneformer_jax.batches.plan import (
    BatchShape,
    PlanRecipe,
    choose_buckets,
    shape_batches,
    split_cells,
)
from geneformer_jax.cells.cell_store import CellStore
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.attention import choose_attention
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Runtime
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.pretrained import load_model
from geneformer_jax.training.config import PretrainConfig
from geneformer_jax.training.estimate import bytes_per_device, peak_flops, step_flops
from geneformer_jax.training.mesh import BATCH, batch_divisor, make_mesh
from geneformer_jax.training.optimizer import make_optimizer
from geneformer_jax.training.state import (
    Recipe,
    TrainState,
    TrainStep,
    abstract_state,
    init_state,
    jit_train_step,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run made ready: nothing is compiled and no array exists yet.

    Attributes:
      config: what was asked for.
      store: the cells.
      encoder: shape of the model.
      mesh: devices.
      runtime: how to compute, attention chosen.
      shape: buckets and cells in a batch.
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
        return Recipe(
            config=self.encoder,
            optimizer=make_optimizer(self.config.optimizer, self.steps),
            runtime=self.runtime,
            seed=self.config.seed,
            micro_batches=self.config.runtime.micro_batches,
            optimizer_on_host=self.config.runtime.optimizer_on_host,
        )

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the train state."""
        return abstract_state(self.recipe, self.mesh)

    @functools.cached_property
    def train_step(self) -> TrainStep:
        """The jitted step, one program per bucket."""
        return jit_train_step(self.recipe, self.mesh)

    def identity(self) -> dict[str, Any]:
        """Returns what decides the result, by dotted name: all parts of a run must share it.

        Devices, workers, number formats and the times of saving are not in it: a run may go on with
        others.
        """
        told = dataclasses.asdict(self.config)
        for name in ("mesh", "runtime", "checkpoint", "log_every_steps"):
            del told[name]
        del told["data"]["workers"], told["evaluation"]["every_steps"]
        # The store may be moved between two parts of a run; what is in it may not change.
        content = hashlib.sha256(self.store.vocabulary.hash.encode())
        for shard in self.store.shards:
            content.update(shard.sha256.encode())
        told["data"]["store"] = content.hexdigest()[:16]
        return traverse_util.flatten_dict(told, sep=".")

    def summary(self) -> list[str]:
        """Lines that say what the run will do."""
        plan = self.batches.plan
        shape = ", ".join(
            f"{cells} x {bucket}"
            for cells, bucket in zip(self.shape.cells, self.shape.buckets, strict=True)
        )
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        return [
            f"model: {self.encoder.parameters:,} parameters, {self.encoder.layers} layers of "
            f"width {self.encoder.width}, vocabulary {self.encoder.vocabulary_size:,}",
            f"cells: {plan.n_cells:,} to train on, "
            f"{self.config.evaluation.held_out_cells:,} held out",
            f"batches (cells x tokens): {shape}; padding {plan.padding:.1%} of tokens",
            f"steps: {self.steps:,} ({plan.steps_per_epoch:,} an epoch)",
            f"devices: {axes} on {jax.devices()[0].device_kind}; "
            f"precision {self.config.runtime.precision}",
            *self.notes,
            *self._costs(),
        ]

    def _costs(self) -> list[str]:
        """Lines on memory and arithmetic, from shapes alone."""
        state = self.abstract_state
        gib = [bytes_per_device(part) / 2**30 for part in (state.params, state.optimizer)]
        lengths = self.store.lengths[self.training_cells]
        masked = self.config.masking.selected_share * lengths.sum(dtype=np.int64)
        flops = step_flops(self.encoder, lengths, masked) / self.steps_per_epoch
        line = f"cost: {flops:.3g} FLOP a step, {flops * self.steps:.3g} in all"
        device = self.mesh.devices.flat[0]
        if peak := peak_flops(device, self.config.runtime.precision):
            hours = flops * self.steps / (peak * self.mesh.size) / 3600
            line += f"; {hours:.3g} hours at the full peak of {self.mesh.size} {device.device_kind}"
        return [
            f"on each device: weights {gib[0]:.3f} GiB, optimizer state {gib[1]:.3f} GiB, "
            f"gradients {gib[0]:.3f} GiB, and activations",
            line,
        ]


def prepare_run(config: PretrainConfig, store: CellStore) -> Run:
    """Works out mesh, batches, steps and attention; refuses what cannot run.

    Raises:
      InputError: a value of the configuration does not fit the store, the devices or another value.
    """
    encoder = config.encoder(store.vocabulary.size)
    mesh = make_mesh(config.mesh)
    _require_divisible(encoder, mesh)
    shape = _shape(config, store, mesh, encoder)
    rule = MaskingRule(
        vocabulary_size=store.vocabulary.size,
        first_gene_token=store.vocabulary.first_gene_token,
        mask_token=store.vocabulary.mask_id,
        protected_tokens=(store.vocabulary.pad_id, store.vocabulary.mask_id),
        **dataclasses.asdict(config.masking),
    )
    recipe = PlanRecipe(
        shape,
        seed=config.seed,
        held_out_cells=config.evaluation.held_out_cells,
        mega_batch_multiplier=config.data.mega_batch_multiplier,
    )
    share = _share(mesh)
    steps = config.steps or config.epochs * recipe.make(store.lengths).steps_per_epoch
    runtime, notes = _runtime(config, encoder, mesh, shape.buckets[-1])
    return Run(
        config=config,
        store=store,
        encoder=encoder,
        mesh=mesh,
        runtime=runtime,
        shape=shape,
        batches=MaskedBatches(store, recipe, rule, steps, share),
        held_out=_held_out(store, recipe, rule, share) if recipe.held_out_cells else None,
        steps=steps,
        notes=notes,
    )


def start_state(run: Run) -> TrainState:
    """Returns the state before the first step: weights drawn, or those of `config.initial`.

    Raises:
      InputError: the initial checkpoint is of another shape of model, or another vocabulary.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, run.abstract_state)
    # Each device draws only its own part.
    state = jax.jit(lambda: init_state(run.recipe), out_shardings=placed)()
    if not run.config.initial:
        return state
    model = load_model(run.config.initial)
    if model.vocabulary.hash != run.store.vocabulary.hash:
        raise InputError(
            f"the store was tokenised with vocabulary {run.store.vocabulary.hash[:12]}, but "
            f"--config.initial {model.source} was trained with {model.vocabulary.hash[:12]}; "
            "tokenize with that checkpoint's vocabulary"
        )
    # Dropout is no property of the weights.
    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    theirs, ours = (dataclasses.replace(each, **rates) for each in (model.config, run.encoder))
    if model.head is not None or theirs != ours:
        raise InputError(
            f"--config.initial {model.source} holds another model ({model.config}) than "
            f"--config.model asks for ({run.encoder}); set --config.model to its shape"
        )
    return state._replace(params=jax.device_put(model.params, placed.params))


def _require_divisible(encoder: EncoderConfig, mesh: Mesh) -> None:
    tensor = mesh.shape["tensor"]
    for name in ("heads", "feed_forward"):
        size = getattr(encoder, name)
        if size % tensor:
            raise InputError(
                f"--config.model.{name} {size} is not divisible by --config.mesh.tensor {tensor}; "
                "choose a divisor"
            )


def _shape(
    config: PretrainConfig, store: CellStore, mesh: Mesh, encoder: EncoderConfig
) -> BatchShape:
    longest = int(store.lengths.max())
    if longest > encoder.positions:
        raise InputError(
            f"the store's longest cell has {longest} tokens, but --config.model.positions is "
            f"{encoder.positions}; raise it, or tokenize with --max_length={encoder.positions}"
        )
    buckets = tuple(
        min(bucket, encoder.positions)
        for bucket in choose_buckets(store.lengths, config.data.most_buckets)
    )
    return shape_batches(
        buckets,
        tokens_per_batch=config.data.tokens_per_batch,
        cells_per_batch=config.data.cells_per_batch,
        divisor=batch_divisor(mesh) * config.runtime.micro_batches,
    )


def _share(mesh: Mesh) -> Share:
    """The part of each batch whose rows lie on this process's devices."""
    rows = batch_divisor(mesh)
    places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((rows,))
    starts = sorted({index[0].start or 0 for index in places.values()})
    return Share(index=starts[0] // len(starts), of=rows // len(starts))


def _held_out(
    store: CellStore, recipe: PlanRecipe, rule: MaskingRule, share: Share
) -> MaskedBatches:
    recipe = dataclasses.replace(recipe, held_out=True)
    steps = recipe.make(store.lengths).steps_per_epoch
    return MaskedBatches(store, recipe, rule, steps, share)


def _runtime(
    config: PretrainConfig, encoder: EncoderConfig, mesh: Mesh, longest: int
) -> tuple[Runtime, tuple[str, ...]]:
    precision = precision_preset(config.runtime.precision)
    choice = choose_attention(
        config.runtime.attention,
        platform=jax.default_backend(),
        compute_dtype=precision.compute,
        head_size=encoder.head_size,
        dropout_rate=encoder.attention_dropout,
        packed=False,
        positions=longest,
    )
    activations = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, None))
    runtime = Runtime(
        precision=precision,
        attention=choice.implementation,
        remat=config.runtime.remat,
        constrain=lambda x: jax.lax.with_sharding_constraint(x, activations),
    )
    return runtime, (f"attention: {choice.implementation} ({choice.reason})",)
