"""Cells, or the genes in them, with their labels, as batches that a classifier learns from."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geneformer_jax.batches.buckets import BatchShape
from geneformer_jax.batches.config import MEGA_BATCH_MULTIPLIER
from geneformer_jax.batches.loader import WHOLE, BatchShard, read_padded
from geneformer_jax.batches.plan import BatchPlan
from geneformer_jax.cells.store.cell_store import EncodedCells

# Number of the class of what has none, as in the original.
UNLABELLED = -100


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """Some cells of a source, with labels.

    Attributes:
      rows: int64 [n] numbers of the cells in their source.
      labels: of cells: int32 [n] class numbers, or float32 [n, K] values of K targets, NaN where
        missing; of genes: int32 [V] class of each token, UNLABELLED elsewhere.
    """

    rows: np.ndarray
    labels: np.ndarray


def unlabelled(rows: np.ndarray) -> LabelledCells:
    """Returns cells of which nothing is known."""
    return LabelledCells(rows, np.zeros((len(rows), 0), np.float32))


class LabelledBatch(NamedTuple):
    """The cells of one step, or the rows of it that one process holds.

    Attributes:
      tokens_BT: int32 token ids, padded on the right.
      lengths_B: int32 real tokens in each row; 0 for filler rows.
      targets: float32 class numbers or values, [B, K] of cells or [B, T, 1] of genes.
      weights: float32, of the shape of `targets`; 0 where there is no label.
      cells_B: int32 numbers of the cells in their source; -1 for filler rows.
    """

    tokens_BT: np.ndarray
    lengths_B: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    cells_B: np.ndarray


@dataclass(frozen=True, eq=False)
class Learning:
    """How labelled cells are drawn and weighed.

    Attributes:
      shape: buckets and cells in a batch.
      seed: of the shuffle and of balanced sampling.
      class_weights: float32 [C] of a single classification's classes, or None: all 1.
      balanced: cells of all classes of a single classification are drawn equally often.
      mega_batch_multiplier: see BatchPlan.
    """

    shape: BatchShape
    seed: int
    class_weights: np.ndarray | None = None
    balanced: bool = False
    mega_batch_multiplier: int = MEGA_BATCH_MULTIPLIER


class LabelledBatches:
    """Random access to the labelled batch of every step; a grain data source.

    Attributes:
      cells: where the tokens are.
    """

    def __init__(
        self,
        cells: EncodedCells,
        labelled: LabelledCells,
        learning: Learning,
        per_gene: bool,
        steps: int = 0,
        shard: BatchShard = WHOLE,
    ):
        """Describes the batches.

        Args:
          cells: where the tokens are.
          labelled: which cells, and their labels.
          learning: how they are drawn and weighed.
          per_gene: whether labels are of genes.
          steps: number of steps; 0 takes one epoch.
          shard: the rows of each batch that this process reads.
        """
        self.cells, self._learning, self._per_gene = cells, learning, per_gene
        self._shard, self._steps = shard, steps
        labels = np.asarray(labelled.labels)
        # One column a target, and rows in ascending order, to be looked up.
        table = labels.reshape(len(labels), -1).astype(np.float32)
        if np.issubdtype(labels.dtype, np.integer):
            table[table == UNLABELLED] = np.nan
        order = np.argsort(labelled.rows, kind="stable")
        self._rows = np.asarray(labelled.rows, np.int64)[order]
        self._table = table if per_gene else table[order]

    def __len__(self) -> int:
        return self._steps or self.plan.steps_per_epoch

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "plan"}

    @functools.cached_property
    def plan(self) -> BatchPlan:
        """The plan, laid out when first needed."""
        rows = self._rows
        if self._learning.balanced:
            rows = rows[balanced_draw(self._table[:, 0], self._learning.seed)]
        return BatchPlan(
            self.cells.lengths,
            self._learning.shape,
            seed=self._learning.seed,
            cells=rows,
            mega_batch_multiplier=self._learning.mega_batch_multiplier,
        )

    def __getitem__(self, step: int) -> LabelledBatch:
        cells_B, bucket = self.plan.step(int(step))
        cells_B = self._shard.rows(cells_B)
        tokens_BT, lengths_B = read_padded(self.cells, cells_B, bucket)
        if self._per_gene:
            targets = self._table[tokens_BT]
            targets[np.arange(bucket) >= lengths_B[:, None]] = np.nan
        else:
            targets = np.full((len(cells_B), self._table.shape[1]), np.nan, np.float32)
            real = cells_B >= 0
            targets[real] = self._table[np.searchsorted(self._rows, cells_B[real])]
        targets, weights = self._weigh(targets)
        return LabelledBatch(tokens_BT, lengths_B, targets, weights, cells_B.astype(np.int32))

    def _weigh(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known = ~np.isnan(targets)
        targets = np.where(known, targets, 0).astype(np.float32)
        weights = known.astype(np.float32)
        if self._learning.class_weights is not None:
            weights *= np.asarray(self._learning.class_weights, np.float32)[targets.astype(int)]
        return targets, weights


def balanced_draw(classes: np.ndarray, seed: int) -> np.ndarray:
    """Returns int64 [n] numbers of cells, every class equally often (but for rounding).

    A class is gone through as often as it takes, in a new order each time; what remains of its
    number is drawn without repeats.

    Args:
      classes: [n] class numbers.
      seed: of the draw.
    """
    rng = np.random.default_rng([seed, 0xBA1])
    found = np.unique(classes)
    size = -(-len(classes) // len(found))
    drawn = []
    for each in found:
        members = np.flatnonzero(classes == each)
        rounds = -(-size // len(members))
        drawn.append(np.concatenate([rng.permutation(members) for _ in range(rounds)])[:size])
    return np.concatenate(drawn)


def balanced_weights(classes: np.ndarray, count: int) -> np.ndarray:
    """Returns float32 [count] class weights n / (C n_c), as scikit-learn's "balanced"; 0 if none.

    Args:
      classes: class numbers; those of no class are left out.
      count: C.
    """
    members = np.bincount(classes[classes >= 0].astype(int), minlength=count)
    weights = members.sum() / (np.count_nonzero(members) * np.maximum(members, 1))
    return np.where(members > 0, weights, 0).astype(np.float32)
