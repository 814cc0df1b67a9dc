"""What training minimises."""

from typing import NamedTuple

import jax
import optax

from geneformer_jax.batches.loader import Batch
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, encode, masked_gene_logits
from geneformer_jax.model.runtime import Runtime


class LossSums(NamedTuple):
    """Float32 sums over what a batch asks for, to be divided by `targets`.

    Attributes:
      loss: cross-entropy in nats.
      correct: those ranked first.
      targets: how many there are: masked genes, or labelled cells or genes.
    """

    loss: jax.Array
    correct: jax.Array
    targets: jax.Array


def masked_gene_sums(
    config: EncoderConfig,
    params: Params,
    batch: Batch,
    runtime: Runtime,
    dropout_key: jax.Array | None = None,
) -> LossSums:
    """Masked gene prediction, the paper's pretraining objective, on a batch of masked cells."""
    packed = batch.packing is not None
    hidden_BTD = encode(
        config,
        params,
        batch.tokens_BT,
        None if packed else batch.lengths_B,
        runtime=runtime,
        dropout_key=dropout_key,
        positions_BT=batch.packing.ranks_BT if packed else None,
        segments_BT=batch.packing.segments_BT if packed else None,
    )
    logits_BMV = masked_gene_logits(
        config, params, hidden_BTD, batch.positions_BM, runtime.precision
    )
    losses_BM = optax.softmax_cross_entropy_with_integer_labels(logits_BMV, batch.targets_BM)
    correct_BM = logits_BMV.argmax(axis=-1) == batch.targets_BM
    return LossSums(
        loss=(losses_BM * batch.weights_BM).sum(),
        correct=(correct_BM * batch.weights_BM).sum(),
        targets=batch.weights_BM.sum(),
    )
