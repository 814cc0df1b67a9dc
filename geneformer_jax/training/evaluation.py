"""Held-out evaluation of masked gene prediction, beside what needs no model."""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geneformer_jax.batches.loader import Batch, MaskedBatches, read_ahead
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import put_batch
from geneformer_jax.training.objectives.masked_genes import LossSums, masked_gene_sums

MAX_CELLS = 20_000
_FINEST_WIDTH = 8
_WIDTHS = (8, 16, 32, 64, 128, 256, 512)
_WEIGHTS = (30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0)
_TUNING_FRACTION = 0.1
_CHUNK = 1_024


class Evaluation(NamedTuple):
    """Masked gene prediction on held-out cells.

    Attributes:
      loss: mean cross-entropy of the masked genes, nats.
      accuracy: fraction of masked genes ranked first.
      perplexity: exp(loss).
      masked_genes: how many were predicted.
    """

    loss: float
    accuracy: float
    perplexity: float
    masked_genes: int


class BaselineScore(NamedTuple):
    """How well a baseline predicts masked genes.

    Attributes:
      loss: mean cross-entropy, nats.
      accuracy: fraction of masked genes ranked first.
    """

    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class RankBaseline:
    """Log probabilities of genes, one row for each band of ranks.

    Attributes:
      log_probability_RV: float32 [bands, vocabulary].
      width: ranks in a band; one band over all ranks is the gene-frequency baseline.
    """

    log_probability_RV: np.ndarray
    width: int

    def score(self, targets: np.ndarray, positions: np.ndarray) -> BaselineScore:
        """Scores masked genes `targets` that stand at rank positions `positions`, both [genes]."""
        bands = np.minimum(positions // self.width, len(self.log_probability_RV) - 1)
        first_R = self.log_probability_RV.argmax(axis=1)
        return BaselineScore(
            loss=-float(self.log_probability_RV[bands, targets].mean(dtype=np.float64)),
            accuracy=float((first_R[bands] == targets).mean()),
        )


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Both baselines, and the number of cells they were counted on."""

    gene_frequency: RankBaseline
    gene_at_rank: RankBaseline
    cells: int


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
        loss, correct, genes, _ = np.asarray(jax.device_get(totals), np.float64).sum(axis=0)
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


def fit_baselines(store: CellStore, cells: np.ndarray, seed: int) -> Baselines:
    """Counts genes at ranks in (at most 20,000 of) the training cells.

    The width of a band of ranks, and the weight of the corpus frequency within it, are those that
    predict a tenth of the cells best when counted on the others, so that the baseline is as strong
    as this form of it can be.

    Args:
      store: where the cells are.
      cells: numbers of the training cells.
      seed: of the draw.
    """
    order = np.random.default_rng([seed, 0xBA5E]).permutation(cells)[:MAX_CELLS]
    tuning = max(1, int(len(order) * _TUNING_FRACTION))
    tuning_RV = _count(store, order[:tuning])
    counted_RV = _count(store, order[tuning:])
    best = min(
        ((width, weight) for width in _WIDTHS for weight in _WEIGHTS),
        key=lambda choice: _cross_entropy(_smooth(counted_RV, *choice), tuning_RV, choice[0]),
    )
    all_RV = counted_RV + tuning_RV
    everything = len(all_RV) * _FINEST_WIDTH
    return Baselines(
        gene_frequency=RankBaseline(_smooth(all_RV, everything, 0.0), everything),
        gene_at_rank=RankBaseline(_smooth(all_RV, *best), best[0]),
        cells=len(order),
    )


def _count(store: CellStore, cells: np.ndarray) -> np.ndarray:
    """Returns [bands of the finest width, vocabulary] occurrences in these cells."""
    bands, V = -(-store.max_length // _FINEST_WIDTH), store.vocabulary.size
    counts = np.zeros(bands * V, np.int64)
    for start in range(0, len(cells), _CHUNK):
        tokens = store.read(cells[start : start + _CHUNK])
        positions = np.concatenate([np.arange(len(cell)) for cell in tokens])
        keys = positions // _FINEST_WIDTH * V + np.concatenate(tokens)
        counts += np.bincount(keys, minlength=len(counts))
    return counts.reshape(bands, V)


def _pool(counts_RV: np.ndarray, width: int) -> np.ndarray:
    starts = np.arange(0, len(counts_RV), width // _FINEST_WIDTH)
    return np.add.reduceat(counts_RV, starts, axis=0)


def _smooth(counts_RV: np.ndarray, width: int, weight: float) -> np.ndarray:
    """Log probabilities in bands of `width`; the corpus counts as `weight` more occurrences."""
    pooled_RV = _pool(counts_RV, width)
    # Half an occurrence for every token: a gene never seen in training has no log of zero.
    corpus_V = counts_RV.sum(axis=0) + 0.5
    smoothed_RV = pooled_RV + weight * corpus_V / corpus_V.sum()
    if not weight:
        smoothed_RV = pooled_RV + 0.5
    return np.log(smoothed_RV / smoothed_RV.sum(axis=1, keepdims=True)).astype(np.float32)


def _cross_entropy(log_probability_RV: np.ndarray, counts_RV: np.ndarray, width: int) -> float:
    return -float((log_probability_RV * _pool(counts_RV, width)).sum(dtype=np.float64))
