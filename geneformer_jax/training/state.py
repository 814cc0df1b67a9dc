"""The train state and one optimizer step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.loader import Batch, mask_batch
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, init_params
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import BATCH, resize_vocabulary, shardings
from geneformer_jax.training.objectives.masked_genes import LossSums, masked_gene_sums

INITIAL_SCALE = 2.0**15
GROWTH_PERIOD = 2_000
_SMALLEST_SCALE = 1.0


class LossScale(NamedTuple):
    """State of the scaling; scalars.

    Attributes:
      scale: float32 factor of the loss.
      good_steps: int32, steps without overflow since the scale last changed.
      skipped: int32, updates skipped so far.
    """

    scale: jax.Array
    good_steps: jax.Array
    skipped: jax.Array


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
      step: int32 scalar, batches seen so far.
      params: float32 weights, see model.encoder.
      optimizer: state of the optax chain; its moments are shaped like `params`.
      loss_scale: dynamic loss scaling; None where the precision needs none.
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState
    loss_scale: LossScale | None = None


class StepMetrics(NamedTuple):
    """Float32 scalars of one step, over the whole batch.

    Attributes:
      loss: mean over the targets, for classes the cross-entropy in nats.
      accuracy: fraction of the targets whose class was ranked first.
      targets: masked genes, or labelled cells or genes.
      tokens: real tokens in the batch.
      padded_tokens: tokens of the batch with its padding.
      gradient_norm: global norm before clipping.
      parameter_norm: global norm of the weights before the update.
      loss_scale: by which the loss was multiplied, 1 without loss scaling.
      skipped_updates: updates left out because a gradient overflowed, since the run began.
      contrastive_loss: mean over the cells, nats; 0 without that objective.
    """

    loss: jax.Array
    accuracy: jax.Array
    targets: jax.Array
    tokens: jax.Array
    padded_tokens: jax.Array
    gradient_norm: jax.Array
    parameter_norm: jax.Array
    loss_scale: jax.Array
    skipped_updates: jax.Array
    contrastive_loss: jax.Array


class StepRecipe(Protocol):
    """What a training step needs to know, be it of pretraining or fine-tuning; see `Recipe`.

    Attributes:
      optimizer: clipping and AdamW.
      runtime: how to compute.
      seed: of dropout.
      micro_batches: parts into which a batch is cut.
      optimizer_on_host: whether the optimizer's state is in host memory between steps.
    """

    optimizer: optax.GradientTransformation
    runtime: Runtime
    seed: int | jax.Array
    micro_batches: int
    optimizer_on_host: bool

    def draw(self) -> Params:
        """Returns initial weights."""

    def prepare(self, batch: Any, step: jax.Array) -> Any:
        """Returns a batch as it is learnt from."""

    def tokens(self, batch: Any) -> tuple[jax.Array, int]:
        """Returns the real tokens of a prepared batch, and all with padding."""

    def size(self, batch: Any) -> Any:
        """Returns what a whole batch's losses are divided by."""

    def split(self, batch: Any, k: int) -> Any:
        """Returns k parts of a batch, [k, rows, ...]."""

    def together(self, params: Params, parts: Any, keys: jax.Array) -> Any:
        """Returns what the loss of each part must know of the others, [parts, ...]; or None."""

    def loss(
        self, params: Params, part: Any, size: Any, key: jax.Array, together: Any = None
    ) -> tuple[jax.Array, LossSums]:
        """Returns what a part adds to the mean loss of its batch, and its sums."""


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What every step of a run has in common.

    Attributes:
      config: shape of the model.
      optimizer: clipping and AdamW.
      runtime: how to compute.
      seed: of initial weights and dropout.
      micro_batches: parts into which a batch is cut to save memory; their gradients are added.
      optimizer_on_host: keep Adam's moments in the host's pinned memory between steps (the place of
        ZeRO-Offload); slower, for models whose optimizer state does not fit the devices.
      masking: how a step masks its batch; None where batches come masked.
      vocabulary: of the tokens, for masking.
      vocabulary_rows: rows of the tables that have one for each token, see mesh.vocabulary_rows; 0
        for as many as there are tokens.
    """

    config: EncoderConfig
    optimizer: optax.GradientTransformation
    runtime: Runtime
    seed: int
    micro_batches: int = 1
    optimizer_on_host: bool = False
    masking: MaskingConfig | None = None
    vocabulary: GeneVocabulary | None = None
    vocabulary_rows: int = 0

    def draw(self) -> Params:
        """Draws initial weights."""
        params = init_params(self.config, jax.random.key(self.seed))
        return resize_vocabulary(params, self.vocabulary_rows) if self.vocabulary_rows else params

    def prepare(self, batch: Batch, step: jax.Array) -> Any:
        """Returns a batch as it is learnt from: masked."""
        if self.masking is None:
            return batch
        return mask_batch(
            batch, seed=self.seed, step=step, config=self.masking, vocabulary=self.vocabulary
        )

    def tokens(self, batch: Any) -> tuple[jax.Array, int]:
        """Returns the real tokens of a batch, and all with padding."""
        return batch.lengths_B.sum(), batch.tokens_BT.size

    def size(self, batch: Any) -> Any:
        """Returns what a whole batch's losses are divided by."""
        return jnp.maximum(batch.weights_BM.sum(), 1.0)

    def split(self, batch: Any, k: int) -> Any:
        """Returns k parts of a batch."""
        return split_rows(batch, k)

    def together(self, params: Params, parts: Any, keys: jax.Array) -> Any:
        """Returns None: the masked genes of one cell say nothing of those of another."""

    def loss(
        self, params: Params, part: Any, size: Any, key: jax.Array, together: Any = None
    ) -> tuple[jax.Array, LossSums]:
        """Returns what a part adds to the mean loss of its batch, and its sums."""
        sums = masked_gene_sums(self.config, params, part, self.runtime, key)
        return sums.loss / size, sums


def init_state(recipe: StepRecipe, params: Params | None = None) -> TrainState:
    """Returns the state before the first step: weights given or drawn, and a fresh optimizer."""
    params = recipe.draw() if params is None else params
    scaled = recipe.runtime.precision.scaled_loss
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=recipe.optimizer.init(params),
        loss_scale=initial_loss_scale() if scaled else None,
    )


def train_step(
    state: TrainState, batch: Batch, *, recipe: StepRecipe
) -> tuple[TrainState, StepMetrics]:
    """One update; a pure function of state and batch. Dropout depends on (seed, step) alone."""
    batch = recipe.prepare(batch, state.step)
    scale = jnp.ones(()) if state.loss_scale is None else state.loss_scale.scale
    sums, gradients = _gradients(state, batch, recipe, scale)
    targets = jnp.maximum(sums.targets, 1.0)
    tokens, padded = recipe.tokens(batch)
    after = _update(state, gradients, recipe.optimizer)
    skipped = 0 if after.loss_scale is None else after.loss_scale.skipped
    metrics = StepMetrics(
        loss=sums.loss / targets,
        accuracy=sums.correct / targets,
        targets=sums.targets,
        tokens=tokens.astype(jnp.float32),
        padded_tokens=jnp.asarray(padded, jnp.float32),
        gradient_norm=optax.tree.norm(gradients),
        parameter_norm=optax.tree.norm(state.params),
        loss_scale=scale,
        skipped_updates=jnp.asarray(skipped, jnp.float32),
        contrastive_loss=jnp.asarray(sums.contrastive, jnp.float32),
    )
    return after, metrics


def _gradients(
    state: TrainState, batch: Batch, recipe: StepRecipe, scale: jax.Array
) -> tuple[LossSums, Params]:
    """Returns the batch's sums and the gradients of its mean loss, unscaled again."""
    size = recipe.size(batch)
    dropout_key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)

    def loss(params: Params, part: Batch, *rest: Any) -> tuple[jax.Array, LossSums]:
        mean, sums = recipe.loss(params, part, size, *rest)
        return mean * scale, sums

    differentiate = jax.grad(loss, has_aux=True)
    k = recipe.micro_batches
    if k == 1:
        gradients, sums = differentiate(state.params, batch, dropout_key)
    else:
        parts = recipe.split(batch, k)

        def add(total: Any, scanned: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, differentiate(state.params, *scanned)), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        zero = jnp.zeros(())
        keys = jax.random.split(dropout_key, k)
        start = (zeros, LossSums(zero, zero, zero, zero))
        together = recipe.together(state.params, parts, keys)
        (gradients, sums), _ = jax.lax.scan(add, start, (parts, keys, together))
    return sums, jax.tree.map(lambda gradient: gradient / scale, gradients)


def split_rows(batch: Any, k: int) -> Any:
    """Returns k parts of a batch, [k, rows, ...]: every k-th row.

    So each part lies on all devices as the whole batch does.
    """
    return jax.tree.map(
        lambda rows: jnp.swapaxes(rows.reshape(-1, k, *rows.shape[1:]), 0, 1), batch
    )


def _update(
    state: TrainState, gradients: Params, optimizer: optax.GradientTransformation
) -> TrainState:
    """Applies gradients; under loss scaling, only if all of them are finite."""
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    if state.loss_scale is None:
        return TrainState(state.step + 1, params, optimizer_state)
    finite = all_finite(gradients)
    params, optimizer_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, optimizer_state),
        (state.params, state.optimizer),
    )
    return TrainState(
        state.step + 1, params, optimizer_state, next_loss_scale(state.loss_scale, finite)
    )


def abstract_state(recipe: StepRecipe, mesh: Mesh) -> TrainState:
    """Returns shapes, types and shardings of the train state; builds no arrays."""
    shapes = jax.eval_shape(lambda: init_state(recipe))
    placed = shardings(mesh, shapes)
    if recipe.optimizer_on_host:
        placed = placed._replace(optimizer=_on_host(placed.optimizer, shapes.optimizer))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        placed,
    )


def resize_state(state: TrainState, recipe: Recipe, mesh: Mesh) -> TrainState:
    """Returns a state with the `vocabulary_rows` of this recipe, placed like `abstract_state`.

    Checkpoints hold as many rows as there are tokens, so that every mesh can read them.
    """
    target = abstract_state(recipe, mesh)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(each)] for each in (target, state)]
    if shapes[0] == shapes[1]:
        return state
    # Memory of the host holds arrays but computes nothing.
    on_device = jax.device_put(state, shardings(mesh, state))
    resize = functools.partial(resize_vocabulary, rows=recipe.vocabulary_rows)
    resized = jax.jit(resize, out_shardings=shardings(mesh, target))(on_device)
    return jax.device_put(resized, jax.tree.map(lambda leaf: leaf.sharding, target))


def _on_host(placed: Any, shapes: Any) -> Any:
    # Scalars stay on the device, where the schedule reads them.
    return jax.tree.map(
        lambda sharding, leaf: sharding.with_memory_kind("pinned_host") if leaf.ndim else sharding,
        placed,
        shapes,
    )


def jit_train_step(recipe: StepRecipe, mesh: Mesh, constants: Any = None) -> TrainStep:
    """Compiles `train_step` for a mesh, once per bucket length; reuses the old state's memory.

    Args:
      recipe: what every step has in common.
      mesh: devices.
      constants: shardings of a third argument of the step, given to `recipe.bound`, for a recipe
        with parts that are not to be compiled in.
    """
    abstract = abstract_state(recipe, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    at_work = shardings(mesh, abstract.optimizer)
    extra = () if constants is None else (constants,)

    def step(state: TrainState, batch: Batch, *constants: Any) -> tuple[TrainState, StepMetrics]:
        if recipe.optimizer_on_host:
            state = state._replace(optimizer=jax.device_put(state.optimizer, at_work))
        own = recipe.bound(*constants) if constants else recipe
        return train_step(state, batch, recipe=own)

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(placed, NamedSharding(mesh, BATCH), *extra),
        out_shardings=(placed, NamedSharding(mesh, PartitionSpec())),
    )


def initial_loss_scale() -> LossScale:
    """Returns the state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return LossScale(jnp.asarray(INITIAL_SCALE, jnp.float32), zero, zero)


def all_finite(tree: Any) -> jax.Array:
    """Returns whether every number of every array in `tree` is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def next_loss_scale(state: LossScale, finite: jax.Array) -> LossScale:
    """Returns the state after a step whose gradients were all finite, or not."""
    good = jnp.where(finite, state.good_steps + 1, 0)
    grows = good >= GROWTH_PERIOD
    scale = jnp.where(finite, state.scale, jnp.maximum(state.scale / 2, _SMALLEST_SCALE))
    return LossScale(
        scale=jnp.where(grows, scale * 2, scale),
        good_steps=jnp.where(grows, 0, good),
        skipped=state.skipped + jnp.where(finite, 0, 1),
    )
