"""Masked gene prediction, the objective of pretraining."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

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
    losses_BM = optax.softmax_cross_entropy_with_integer_labels(logits_BMV, batch.targets_BM)
    # Not by argmax: its reduction of numbers with places took a CPU a twentieth of the whole step.
    of_target_BM = jnp.take_along_axis(logits_BMV, batch.targets_BM[..., None], axis=-1)[..., 0]
    correct_BM = of_target_BM >= logits_BMV.max(axis=-1)
    return LossSums(
        loss=(losses_BM * batch.weights_BM).sum(),
        correct=(correct_BM * batch.weights_BM).sum(),
        targets=batch.weights_BM.sum(),
    )


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
