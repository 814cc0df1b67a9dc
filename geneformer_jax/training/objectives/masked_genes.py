"""Masked gene prediction, the objective of pretraining."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from geneformer_jax.batches.loader import Batch
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, encode, masked_gene_logits
from geneformer_jax.model.runtime import Runtime


class LossSums(NamedTuple):
    """Float32 sums over what a batch asks for, to be divided by `targets`.

    Attributes:
      loss: cross-entropy in nats.
      correct: those ranked first; of equals, all.
      targets: how many there are: masked genes, or labelled cells or genes.
      contrastive: mean contrastive loss of the batch, or what a part adds to it; 0 without one.
    """

    loss: jax.Array
    correct: jax.Array
    targets: jax.Array
    contrastive: jax.Array | float = 0.0


def masked_gene_sums(
    config: EncoderConfig,
    params: Params,
    batch: Batch,
    runtime: Runtime,
    dropout_key: jax.Array | None = None,
) -> LossSums:
    """Masked gene prediction, the paper's pretraining objective, on a batch of masked cells."""
    hidden_BTD = encode(
        config,
        params,
        batch.tokens_BT,
        runtime=runtime,
        dropout_key=dropout_key,
        **places_of(batch),
    )
    return masked_gene_sums_of(config, params, hidden_BTD, batch, runtime)


def masked_gene_sums_of(
    config: EncoderConfig, params: Params, hidden_BTD: jax.Array, batch: Batch, runtime: Runtime
) -> LossSums:
    """Masked gene prediction from the last hidden state of a batch of masked cells."""
    logits_BMV = masked_gene_logits(
        config, params, hidden_BTD, batch.positions_BM, runtime.precision
    )
    of_target_BM = logits_of(logits_BMV, batch.targets_BM)
    losses_BM = jax.nn.logsumexp(logits_BMV, axis=-1) - of_target_BM
    # Not by argmax: its reduction of numbers with places took a CPU a twentieth of the whole step.
    correct_BM = of_target_BM >= logits_BMV.max(axis=-1)
    return LossSums(
        loss=(losses_BM * batch.weights_BM).sum(),
        correct=(correct_BM * batch.weights_BM).sum(),
        targets=batch.weights_BM.sum(),
    )


@jax.custom_vjp
def logits_of(logits_BMV: jax.Array, targets_BM: jax.Array) -> jax.Array:
    """Returns the logit of each target.

    Its gradient is written as a comparison, which XLA computes within whatever reads it. Left to
    itself, JAX adds into an array of the logits' shape, and that keeps the gradient of the loss
    from being computed in one pass: compiled for an H100, a tenth of what a step of V1-10M moves.
    """
    return jnp.take_along_axis(logits_BMV, targets_BM[..., None], axis=-1)[..., 0]


def _logits_of_forward(logits_BMV, targets_BM):
    return logits_of(logits_BMV, targets_BM), (targets_BM, jnp.arange(logits_BMV.shape[-1]))


def _logits_of_backward(kept, cotangent_BM):
    targets_BM, tokens_V = kept
    is_target_BMV = tokens_V == targets_BM[..., None]
    return jnp.where(is_target_BMV, cotangent_BM[..., None], 0.0), None


logits_of.defvjp(_logits_of_forward, _logits_of_backward)


def places_of(batch: Batch) -> dict[str, jax.Array | None]:
    """Returns the arguments of `encode` that say where the cells of a batch stand."""
    if batch.packing is None:
        return {"lengths_B": batch.lengths_B}
    packing = batch.packing
    return {
        "lengths_B": None,
        "positions_BT": packing.ranks_BT,
        "segments_BT": packing.segments_BT,
    }
