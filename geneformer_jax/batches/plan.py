"""Which cells form step t: a pure function of (lengths, seed, step).

Cells are shuffled once per epoch. Each is padded to the shortest bucket that holds it, and a batch
holds cells of one bucket, so that every batch of a bucket has the same shape. Batches come in
mega-batches, each run through from its longest cells to its shortest, as the original's
length-grouped sampler does. Where the original lets a batch straddle lengths, cells that do not
fill a batch here wait for the next cells of their bucket; only the last batch of each bucket in an
epoch can hold filler rows. So every epoch has the same number of steps, known in advance.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from geneformer_jax.common.errors import InputError

MEGA_BATCH_MULTIPLIER = 1_000  # of the original's own sampler for its first models
FINE_MULTIPLE, COARSE_MULTIPLE, COARSE_FROM = 64, 128, 512


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """How many cells of which padded length form a batch.

    Attributes:
      buckets: padded lengths, ascending.
      cells: cells in a batch of each bucket, filler rows included.
    """

    buckets: tuple[int, ...]
    cells: tuple[int, ...]


class StepCells(NamedTuple):
    """The cells of one step.

    Attributes:
      cells: int64 numbers of the cells in the store; -1 for filler rows.
      bucket: length to which they are padded.
    """

    cells: np.ndarray
    bucket: int


def choose_buckets(
    lengths: np.ndarray, most: int = 16, coarse_multiple: int = COARSE_MULTIPLE
) -> tuple[int, ...]:
    """Chooses at most `most` padded lengths that waste the least padding on these cells.

    Candidates are multiples of 64 up to 512 and of `coarse_multiple` beyond: attention kernels want
    multiples of 128, and short cells are worth a finer grid. Exact, by dynamic programming over the
    candidates.

    Args:
      lengths: [cells] tokens in each cell.
      most: every bucket is one more compiled program.
      coarse_multiple: 64 or 128.
    """
    longest = int(lengths.max())
    fine = np.arange(FINE_MULTIPLE, min(longest, COARSE_FROM) + FINE_MULTIPLE, FINE_MULTIPLE)
    coarse = np.arange(COARSE_FROM, longest + coarse_multiple, coarse_multiple)
    grid = np.unique(np.concatenate([fine, coarse]))
    grid = grid[: np.searchsorted(grid, longest) + 1]
    cells_up_to = np.searchsorted(np.sort(lengths), grid, side="right")
    # cost[k, j]: least padded tokens of the cells up to grid[j], with k + 1 buckets.
    cost = np.full((most, len(grid)), np.inf)
    before = np.zeros((most, len(grid)), np.int64)
    cost[0] = cells_up_to * grid
    for k in range(1, most):
        for j in range(k, len(grid)):
            options = cost[k - 1, :j] + (cells_up_to[j] - cells_up_to[:j]) * grid[j]
            before[k, j] = np.argmin(options)
            cost[k, j] = options[before[k, j]]
    k = int(np.argmin(cost[:, -1]))
    j = len(grid) - 1
    buckets = [int(grid[j])]
    for level in range(k, 0, -1):
        j = before[level, j]
        buckets.append(int(grid[j]))
    return tuple(reversed(buckets))


def shape_batches(
    buckets: tuple[int, ...],
    *,
    tokens_per_batch: int = 0,
    cells_per_batch: int = 0,
    divisor: int = 1,
) -> BatchShape:
    """Fixes the number of cells in a batch of each bucket.

    Args:
      buckets: padded lengths, ascending.
      tokens_per_batch: as many cells as fit this number of padded tokens, so that every step costs
        about the same; or
      cells_per_batch: the same number of cells in each batch, as the original does.
      divisor: cells are a multiple of it (devices that share a batch, times micro-batches).

    Raises:
      InputError: both or neither are given, or not even `divisor` cells fit.
    """
    if (tokens_per_batch > 0) == (cells_per_batch > 0):
        raise InputError(
            f"data.tokens_per_batch is {tokens_per_batch} and data.cells_per_batch is "
            f"{cells_per_batch}; set exactly one of them above 0"
        )
    if cells_per_batch:
        if cells_per_batch % divisor:
            raise InputError(
                f"data.cells_per_batch {cells_per_batch} is not divisible by {divisor} (devices of "
                "the mesh's data and fsdp axes x micro-batches); choose a multiple"
            )
        return BatchShape(buckets, (cells_per_batch,) * len(buckets))
    cells = tuple(tokens_per_batch // bucket // divisor * divisor for bucket in buckets)
    if not all(cells):
        raise InputError(
            f"data.tokens_per_batch {tokens_per_batch} does not hold {divisor} cells of "
            f"{buckets[-1]} tokens (devices of the mesh's data and fsdp axes x micro-batches); "
            f"set it to at least {divisor * buckets[-1]}"
        )
    return BatchShape(buckets, cells)


def split_cells(n_cells: int, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ascending (training, held-out) cell numbers, drawn at random.

    Raises:
      InputError: fewer than one cell would be left for training.
    """
    if not 0 <= held_out < n_cells:
        raise InputError(
            f"evaluation.held_out_cells is {held_out}, but the store has {n_cells} cells; "
            "it must be smaller"
        )
    order = np.random.default_rng([seed, 0x5EED]).permutation(n_cells)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


@dataclasses.dataclass(frozen=True)
class PlanRecipe:
    """Everything but the lengths that a plan depends on; small enough to send to worker processes.

    Attributes:
      shape: buckets and cells in a batch.
      seed: of the run.
      held_out_cells: cells kept apart for evaluation.
      held_out: plan these instead of the training cells.
      mega_batch_multiplier: see BatchPlan.
    """

    shape: BatchShape
    seed: int
    held_out_cells: int = 0
    held_out: bool = False
    mega_batch_multiplier: int = MEGA_BATCH_MULTIPLIER

    def make(self, lengths: np.ndarray) -> "BatchPlan":
        """Returns the plan for cells of these lengths."""
        training, held_out = split_cells(len(lengths), self.held_out_cells, self.seed)
        return BatchPlan(
            lengths,
            self.shape,
            seed=self.seed,
            cells=held_out if self.held_out else training,
            mega_batch_multiplier=self.mega_batch_multiplier,
        )


class BatchPlan:
    """The cells of every step.

    A pure function of its arguments: no state, so that resuming is starting at another step, and
    neither hosts, devices nor workers change what a step holds.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        shape: BatchShape,
        *,
        seed: int,
        cells: np.ndarray | None = None,
        mega_batch_multiplier: int = MEGA_BATCH_MULTIPLIER,
    ):
        """Makes the plan; no epoch is laid out until one of its steps is asked for.

        Args:
          lengths: [cells in the store] tokens in each cell.
          shape: buckets and cells in a batch.
          seed: of the shuffle.
          cells: numbers of the cells to plan, all by default.
          mega_batch_multiplier: mean-sized batches in a mega-batch; fewer for small corpora, as in
            the original's sampler: at least four mega-batches in an epoch where possible.
        """
        self.shape = shape
        self._seed = seed
        self._cells = np.arange(len(lengths)) if cells is None else np.asarray(cells)
        if not len(self._cells):
            raise InputError("there is no cell to make batches of; tokenize some first")
        lengths = np.asarray(lengths)[self._cells]
        if lengths.max() > shape.buckets[-1]:
            raise InputError(
                f"the longest cell has {lengths.max()} tokens but the longest bucket "
                f"{shape.buckets[-1]}; choose buckets that hold it"
            )
        self._bucket_of = np.searchsorted(shape.buckets, lengths).astype(np.uint8)
        counts = np.bincount(self._bucket_of, minlength=len(shape.buckets))
        self._batches = -(-counts // np.asarray(shape.cells))
        self.steps_per_epoch = int(self._batches.sum())
        mean_cells = max(1, len(self._cells) // self.steps_per_epoch)
        multiplier = min(len(self._cells) // (mean_cells * 4), mega_batch_multiplier)
        self._mega_batch = max(1, multiplier) * mean_cells
        self._lay_out = functools.lru_cache(maxsize=2)(self._lay_out_epoch)

        padded = int((self._batches * np.asarray(shape.cells) * np.asarray(shape.buckets)).sum())
        self.padding = 1 - int(lengths.sum(dtype=np.int64)) / padded

    @property
    def n_cells(self) -> int:
        """Cells in an epoch."""
        return len(self._cells)

    def step(self, step: int) -> StepCells:
        """Returns the cells of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        rows, buckets, starts = self._lay_out(epoch)
        bucket = buckets[index]
        chosen = rows[bucket][starts[index] : starts[index] + self.shape.cells[bucket]]
        cells = np.full(self.shape.cells[bucket], -1, np.int64)
        cells[: len(chosen)] = self._cells[chosen]
        return StepCells(cells, self.shape.buckets[bucket])

    def _lay_out_epoch(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Returns ([rows of each bucket, shuffled], bucket of each batch, first row of each)."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._cells))
        bucket_in_order = self._bucket_of[order]
        rows, last_seen, buckets, starts = [], [], [], []
        for bucket, size in enumerate(self.shape.cells):
            places = np.flatnonzero(bucket_in_order == bucket)
            rows.append(order[places])
            first = np.arange(0, len(places), size)
            full = first + size <= len(places)
            last = np.minimum(first + size, len(places)) - 1
            # A batch that is never filled is run through after all mega-batches.
            last_seen.append(np.where(full, places[last] // self._mega_batch, len(order)))
            buckets.append(np.full(len(first), bucket))
            starts.append(first)
        bucket, start = np.concatenate(buckets), np.concatenate(starts)
        sequence = np.lexsort((start, -bucket, np.concatenate(last_seen)))
        return rows, bucket[sequence], start[sequence]
