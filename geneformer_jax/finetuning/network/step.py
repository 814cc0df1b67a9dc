"""The compiled parts of fine-tuning: one optimizer step, and logits.

Nothing that differs between the folds of a task is compiled in: fixed weights, learning rate,
number of steps and seed are arguments. So folds, and trials of a search, share one program for
each bucket.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geneformer_jax.batches.labelled import LabelledBatch
from geneformer_jax.batches.loader import BatchShard
from geneformer_jax.finetuning.config import FinetuneConfig, TuningConfig
from geneformer_jax.finetuning.network.losses import label_losses, task_totals, weighted_means
from geneformer_jax.finetuning.network.trainable import (
    constant_layers,
    join_weights,
    rate_factors,
    split_weights,
)
from geneformer_jax.model.config import EncoderConfig, MeshConfig, RuntimeConfig
from geneformer_jax.model.encoder import Params, encode
from geneformer_jax.model.heads import CellHead, GeneHead, HeadConfig, head_module
from geneformer_jax.model.pretrained import abstract_weights
from geneformer_jax.model.runtime import Runtime, make_runtime
from geneformer_jax.model.sharding import BATCH, make_mesh, shardings
from geneformer_jax.training.config import OptimizerConfig
from geneformer_jax.training.objectives.masked_genes import LossSums
from geneformer_jax.training.optimizer import decayed, rate_fraction, warmup_steps
from geneformer_jax.training.run import batch_shard
from geneformer_jax.training.state import (
    StepMetrics,
    TrainState,
    abstract_state,
    init_state,
    jit_train_step,
    split_rows,
)

Outputter = Callable[[Params, Params, LabelledBatch], jax.Array]


class TracedHyperparams(NamedTuple):
    """Hyperparameters that a compiled step takes as arguments; scalars.

    Attributes:
      learning_rate: peak.
      weight_decay: decoupled.
      warmup: steps of linear warmup.
      steps: in all.
      seed: of dropout.
    """

    learning_rate: jax.Array
    weight_decay: jax.Array
    warmup: jax.Array
    steps: jax.Array
    seed: jax.Array


class Constants(NamedTuple):
    """Inputs of a step that it does not change."""

    frozen: Params
    hyperparams: TracedHyperparams


def traced_hyperparams(config: FinetuneConfig, steps: int) -> TracedHyperparams:
    """Returns the hyperparameters of a run with this number of steps."""
    optimizer = config.optimizer
    return TracedHyperparams(
        jnp.float32(optimizer.learning_rate),
        jnp.float32(optimizer.weight_decay),
        jnp.int32(warmup_steps(optimizer, steps)),
        jnp.int32(steps),
        jnp.int32(config.seed),
    )


def tuned_adamw(
    config: OptimizerConfig, hyperparams: TracedHyperparams | None, factors: Any
) -> optax.GradientTransformation:
    """Returns clipping and AdamW as `make_optimizer` does, with traced hyperparameters.

    Args:
      config: for the schedule's name, Adam's constants and clipping.
      hyperparams: None where only the state's shape is asked for.
      factors: see trainable.rate_factors.
    """

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        rate = hyperparams.learning_rate * rate_fraction(
            config, hyperparams.warmup, hyperparams.steps, state.count
        )
        updates = jax.tree.map(
            lambda update, param, factor, decays: (
                -rate * factor * (update + (hyperparams.weight_decay * param if decays else 0))
            ),
            updates,
            params,
            factors,
            decayed(params),
        )
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    def init(_: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    steps.append(optax.scale_by_adam(config.b1, config.b2, config.eps))
    return optax.chain(*steps, optax.GradientTransformation(init, update))


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """Everything that is compiled into a step; hashable.

    Attributes:
      encoder: shape of the model.
      head: its head.
      tuning: which weights are trainable.
      optimizer: its learning rate, decay and warmup are not compiled in.
      runtime: how to compute, attention chosen.
      mesh: devices.
      quantized: whether the frozen weights are; then they are whole on every device.
    """

    encoder: EncoderConfig
    head: HeadConfig
    tuning: TuningConfig
    optimizer: OptimizerConfig
    runtime: RuntimeConfig
    mesh: MeshConfig
    quantized: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class FinetuneRecipe:
    """The recipe of a step, see training.state; `constants` are None where only shapes matter."""

    spec: StepSpec
    runtime: Runtime
    constants: Constants | None = None

    @property
    def micro_batches(self) -> int:
        """Parts into which a batch is cut."""
        return self.spec.runtime.micro_batches

    @property
    def optimizer_on_host(self) -> bool:
        """Whether the optimizer's state is kept in host memory between steps."""
        return self.spec.runtime.optimizer_on_host

    def bound(self, constants: Constants) -> "FinetuneRecipe":
        """Returns the recipe with its constants, of which a step is traced."""
        return dataclasses.replace(self, constants=constants)

    @property
    def seed(self) -> jax.Array:
        """Of dropout."""
        return self.constants.hyperparams.seed

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Clipping and AdamW."""
        hyperparams = self.constants.hyperparams if self.constants else None
        trainable = abstract_split(self.spec)[0]
        factors = rate_factors(trainable, self.spec.encoder, self.spec.tuning)
        return tuned_adamw(self.spec.optimizer, hyperparams, factors)

    def draw(self) -> Params:
        """Returns zeros for the trainable weights: their values are always given."""
        return jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_split(self.spec)[0]
        )

    def prepare(self, batch: LabelledBatch, step: jax.Array) -> LabelledBatch:
        """Returns the batch itself: nothing is masked."""
        return batch

    def tokens(self, batch: LabelledBatch) -> tuple[jax.Array, int]:
        """Returns the real tokens of a batch, and all with padding."""
        return batch.lengths_B.sum(), batch.tokens_BT.size

    def split(self, batch: LabelledBatch, k: int) -> LabelledBatch:
        """Returns k parts of a batch."""
        return split_rows(batch, k)

    def together(self, trainable: Params, parts: LabelledBatch, keys: jax.Array) -> None:
        """Returns nothing: the labels of one part say nothing of those of another."""

    def size(self, batch: LabelledBatch) -> tuple[jax.Array, jax.Array]:
        """Returns (weight of each task's targets [K], number of targets) of a whole batch."""
        return task_totals(batch), (batch.weights > 0).sum().astype(jnp.float32)

    def loss(
        self,
        trainable: Params,
        part: LabelledBatch,
        size: Any,
        key: jax.Array,
        together: None = None,
    ) -> tuple[jax.Array, LossSums]:
        """Returns what a part adds to the mean loss of its batch, and its sums."""
        params = join_weights(trainable, self.constants.frozen, self.spec.tuning)
        logits = model_logits(self.spec, self.runtime, params, part, key)
        losses, hits = label_losses(self.spec.head, logits, part.targets)
        (totals_K, targets), head = size, self.spec.head
        loss = weighted_means(head, losses, part.weights, totals_K)
        accuracy = weighted_means(head, hits, part.weights, totals_K)
        found = (part.weights > 0).sum().astype(jnp.float32)
        return loss, LossSums(loss * targets, accuracy * targets, found)


def abstract_split(spec: StepSpec) -> tuple[Params, Params]:
    """Returns shapes of (trainable weights, frozen weights)."""
    return jax.eval_shape(
        lambda params, key: split_weights(params, spec.encoder, spec.tuning, key),
        abstract_weights(spec.encoder, spec.head),
        jax.random.key(0),
    )


def model_logits(
    spec: StepSpec, runtime: Runtime, params: Params, batch: LabelledBatch, key: jax.Array | None
) -> jax.Array:
    """Returns float32 logits of a whole model, [B, C] or [B, T, C]; a key switches dropout on."""
    keys = (None, None) if key is None else jax.random.split(key)
    head, hidden_BTD = _below_head(spec, runtime, params, batch, keys[0])
    return head(hidden_BTD, batch.lengths_B, dropout_key=keys[1], attention=runtime.attention)


def _below_head(
    spec: StepSpec, runtime: Runtime, params: Params, batch: LabelledBatch, key: jax.Array | None
) -> tuple[CellHead | GeneHead, jax.Array]:
    """Returns (the head, the last hidden state [B, T, D])."""
    hidden_BTD = encode(
        spec.encoder,
        params,
        batch.tokens_BT,
        batch.lengths_B,
        runtime=runtime,
        dropout_key=key,
        constant_layers=constant_layers(spec.tuning, spec.encoder),
    )
    head = head_module(spec.encoder, spec.head, params[spec.head.kind], runtime.precision)
    return head, hidden_BTD


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledSteps:
    """A spec on its devices, compiled once for each bucket.

    Attributes:
      spec: what is compiled.
      mesh: devices.
      step: (state, batch, constants) -> (state, metrics); the old state's memory is reused.
      start: (trainable weights) -> the state before the first step.
      logits: (trainable weights, frozen weights, batch) -> float32 logits, on every device.
      pooled: the same of what the head pools of each cell, float32 [B, D].
      abstract: shapes, types and shardings of the state.
      constants: shardings of the constants.
      shard: the rows of each batch that lie on this process's devices.
      notes: lines to print, e.g. why this attention was chosen.
    """

    spec: StepSpec
    mesh: Mesh
    step: Callable[[TrainState, LabelledBatch, Constants], tuple[TrainState, StepMetrics]]
    start: Callable[[Params], TrainState]
    logits: Outputter
    pooled: Outputter
    abstract: TrainState
    constants: Constants
    shard: BatchShard
    notes: tuple[str, ...]


@functools.lru_cache(maxsize=8)
def compile_steps(spec: StepSpec, longest: int) -> CompiledSteps:
    """Returns the compiled steps of a spec; the same ones for the same spec.

    Args:
      spec: what is compiled.
      longest: tokens of the longest bucket, by which attention is chosen.

    Raises:
      InputError: the spec cannot run on these devices.
    """
    mesh = make_mesh(spec.mesh)
    runtime, notes = make_runtime(spec.runtime, spec.encoder, mesh, longest)
    recipe = FinetuneRecipe(spec, runtime)
    abstract = abstract_state(recipe, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    whole = NamedSharding(mesh, PartitionSpec())
    frozen = whole if spec.quantized else shardings(mesh, abstract_split(spec)[1])
    constants = Constants(frozen, TracedHyperparams(*(whole,) * len(TracedHyperparams._fields)))

    def logits(trainable: Params, frozen: Params, batch: LabelledBatch) -> jax.Array:
        params = join_weights(trainable, frozen, spec.tuning)
        return model_logits(spec, runtime, params, batch, None)

    def pooled(trainable: Params, frozen: Params, batch: LabelledBatch) -> jax.Array:
        params = join_weights(trainable, frozen, spec.tuning)
        head, hidden_BTD = _below_head(spec, runtime, params, batch, None)
        return head.pool(hidden_BTD, batch.lengths_B).astype(jnp.float32)

    of_batches = {
        "in_shardings": (placed.params, frozen, NamedSharding(mesh, BATCH)),
        "out_shardings": whole,
    }
    return CompiledSteps(
        spec,
        mesh,
        step=jit_train_step(recipe, mesh, constants),
        start=jax.jit(functools.partial(init_state, recipe), out_shardings=placed),
        logits=jax.jit(logits, **of_batches),
        pooled=jax.jit(pooled, **of_batches),
        abstract=abstract,
        constants=constants,
        shard=batch_shard(mesh),
        notes=notes,
    )
