"""Held-out evaluation of masked gene prediction, beside what needs no model."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geneformer_jax.batches.loader import Batch, MaskedBatches, read_ahead
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import put_batch
from geneformer_jax.training.baselines import Baselines, BaselineScore
from geneformer_jax.training.objectives import LossSums, masked_gene_sums


class Evaluation(NamedTuple):
    """Masked gene prediction on held-out cells.

    Attributes:
      loss: mean cross-entropy of the masked genes, nats.
      accuracy: share of masked genes ranked first.
      perplexity: exp(loss).
      masked_genes: how many were predicted.
    """

    loss: float
    accuracy: float
    perplexity: float
    masked_genes: int


class Evaluator:
    """Evaluates weights on the same masked genes of the same held-out cells each time."""

    def __init__(self, batches: MaskedBatches, config: EncoderConfig, runtime: Runtime, mesh: Mesh):
        """Prepares the evaluation.

        Args:
          batches: one epoch of held-out cells.
          config: shape of the model.
          runtime: how to compute.
          mesh: where to.
        """
        self._batches, self._mesh = batches, mesh

        def sums(params: Params, batch: Batch) -> LossSums:
            return masked_gene_sums(config, params, batch, runtime)

        self._sums = jax.jit(sums, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, params: Params) -> Evaluation:
        """Returns the scores of these weights."""
        totals = [
            self._sums(params, put_batch(batch, self._mesh))
            for batch in read_ahead(self._batches, 0, workers=0)
        ]
        # Summed on the host in float64: the order of batches must not show.
        loss, correct, genes = np.asarray(jax.device_get(totals), np.float64).sum(axis=0)
        mean = loss / genes
        return Evaluation(mean, correct / genes, math.exp(min(mean, 700.0)), int(genes))

    def score_baselines(self, baselines: Baselines) -> dict[str, BaselineScore]:
        """Returns the scores of both baselines on the same masked genes."""
        targets, positions = [], []
        whole = self._batches.whole()
        for step in range(len(whole)):
            batch = whole[step]
            chosen = batch.weights_BM > 0
            targets.append(batch.targets_BM[chosen])
            positions.append(batch.positions_BM[chosen])
        masked = np.concatenate(targets), np.concatenate(positions)
        return {
            "gene_frequency": baselines.gene_frequency.score(*masked),
            "gene_at_rank": baselines.gene_at_rank.score(*masked),
        }
