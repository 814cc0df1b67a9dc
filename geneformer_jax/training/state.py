"""The train state and one optimizer step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geneformer_jax.batches.loader import Batch
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, Runtime, init_params
from geneformer_jax.training.mesh import BATCH, shardings
from geneformer_jax.training.objectives import MaskedGeneSums, masked_gene_sums


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
      step: int32 scalar, updates made so far.
      params: float32 weights, see model.encoder.
      optimizer: state of the optax chain; its moments are shaped like `params`.
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState


class StepMetrics(NamedTuple):
    """Float32 scalars of one step, over the whole batch.

    Attributes:
      loss: mean cross-entropy of the masked genes, nats.
      accuracy: share of masked genes ranked first.
      masked_genes: number of masked genes.
      tokens: real tokens in the batch.
      gradient_norm: global norm before clipping.
      parameter_norm: global norm of the weights before the update.
    """

    loss: jax.Array
    accuracy: jax.Array
    masked_genes: jax.Array
    tokens: jax.Array
    gradient_norm: jax.Array
    parameter_norm: jax.Array


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def init_state(
    config: EncoderConfig, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Draws initial weights and the optimizer's zero state."""
    params = init_params(config, jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: EncoderConfig,
    optimizer: optax.GradientTransformation,
    runtime: Runtime,
    seed: int,
) -> tuple[TrainState, StepMetrics]:
    """One update; a pure function of state and batch. Dropout depends on (seed, step) alone."""
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss(params: Params) -> tuple[jax.Array, MaskedGeneSums]:
        sums = masked_gene_sums(config, params, batch, runtime, dropout_key)
        return sums.loss / jnp.maximum(sums.genes, 1.0), sums

    (value, sums), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    metrics = StepMetrics(
        loss=value,
        accuracy=sums.correct / jnp.maximum(sums.genes, 1.0),
        masked_genes=sums.genes,
        tokens=batch.lengths_B.sum().astype(jnp.float32),
        gradient_norm=optax.tree.norm(gradients),
        parameter_norm=optax.tree.norm(state.params),
    )
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, optimizer_state), metrics


def abstract_state(
    config: EncoderConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns shapes, types and shardings of the train state; builds no arrays."""
    shapes = jax.eval_shape(lambda: init_state(config, optimizer, 0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(mesh, shapes),
    )


def jit_train_step(
    config: EncoderConfig,
    optimizer: optax.GradientTransformation,
    runtime: Runtime,
    mesh: Mesh,
    seed: int,
) -> TrainStep:
    """Compiles `train_step` for a mesh, once per bucket length; reuses the old state's memory."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return train_step(
            state, batch, config=config, optimizer=optimizer, runtime=runtime, seed=seed
        )

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(placed, NamedSharding(mesh, BATCH)),
        out_shardings=(placed, NamedSharding(mesh, PartitionSpec())),
    )
