"""Which cells form step t: a pure function of (lengths, seed, step).

Cells are shuffled once per epoch. A plan of buckets pads each to the shortest bucket that holds it,
and a batch holds cells of one bucket, so that every batch of a bucket has the same shape. Batches
come in mega-batches, each run through from its longest cells to its shortest, as the original's
length-grouped sampler does. Where the original lets a batch straddle lengths, cells that do not
fill a batch here wait for the next cells of their bucket; the few left over at the end of an epoch
go into a longer bucket where that wastes less than the filler rows of a batch of their own. So
every epoch has the same number of steps, known in advance.

A plan of packed rows puts several cells into each row instead, see packing.py.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from geneformer_jax.batches.buckets import BatchShape, cells_to_move
from geneformer_jax.batches.config import MEGA_BATCH_MULTIPLIER
from geneformer_jax.batches.packing import pack_lengths
from geneformer_jax.common.errors import InputError


class StepCells(NamedTuple):
    """The cells of one step.

    Attributes:
      cells: int64 numbers of the cells in the store, [rows]; -1 for filler rows. Of packed rows
        [rows, most cells of a row], each row's cells first, then -1.
      bucket: length to which they are padded.
    """

    cells: np.ndarray
    bucket: int


def split_cells(n_cells: int, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ascending (training, held-out) cell numbers, drawn at random.

    Raises:
      InputError: fewer than one cell would be left for training.
    """
    if not 0 <= held_out < n_cells:
        raise InputError(
            f"`config.evaluation.held_out_cells` is {held_out}, but the store has {n_cells} cells; "
            "it must be smaller"
        )
    chosen = np.random.default_rng([seed, 0x5EED]).choice(n_cells, held_out, replace=False)
    training = np.ones(n_cells, bool)
    training[chosen] = False
    return _narrow(np.flatnonzero(training)), _narrow(np.sort(chosen))


@dataclasses.dataclass(frozen=True)
class PlanRecipe:
    """Everything but the lengths that a plan depends on; small enough to send to worker processes.

    Attributes:
      shape: buckets and cells in a batch.
      seed: of the run.
      held_out_cells: cells kept apart for evaluation.
      held_out: plan these instead of the training cells.
      packing: several cells in a row.
      mega_batch_multiplier: see BatchPlan.
    """

    shape: BatchShape
    seed: int
    held_out_cells: int = 0
    held_out: bool = False
    packing: bool = False
    mega_batch_multiplier: int = MEGA_BATCH_MULTIPLIER

    def make(self, lengths: np.ndarray) -> "BatchPlan | PackedPlan":
        """Returns the plan for cells of these lengths."""
        training, held_out = split_cells(len(lengths), self.held_out_cells, self.seed)
        cells = held_out if self.held_out else training
        if self.packing:
            return PackedPlan(lengths, self.shape, seed=self.seed, cells=cells)
        return BatchPlan(
            lengths,
            self.shape,
            seed=self.seed,
            cells=cells,
            mega_batch_multiplier=self.mega_batch_multiplier,
        )


class BatchPlan:
    """The cells of every step, one cell a row.

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
        self._cells, lengths = _planned(lengths, cells, shape.buckets[-1])
        bucket_of_length = np.searchsorted(shape.buckets, np.arange(shape.buckets[-1] + 1))
        self._bucket_of = bucket_of_length.astype(np.uint8)[lengths]
        counts = np.bincount(self._bucket_of, minlength=len(shape.buckets))
        for bucket, moved in enumerate(cells_to_move(counts, shape)):
            if moved:
                leaving = np.flatnonzero(self._bucket_of == bucket)[-moved:]
                self._bucket_of[leaving] = bucket + 1
        counts = np.bincount(self._bucket_of, minlength=len(shape.buckets))
        self._batches = -(-counts // np.asarray(shape.cells))
        self.steps_per_epoch = int(self._batches.sum())
        mean_cells = max(1, len(self._cells) // self.steps_per_epoch)
        multiplier = min(len(self._cells) // (mean_cells * 4), mega_batch_multiplier)
        self._mega_batch = max(1, multiplier) * mean_cells
        self._lay_out = functools.lru_cache(maxsize=2)(self._lay_out_epoch)

        padded = int((self._batches * np.asarray(shape.rows) * np.asarray(shape.buckets)).sum())
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
        cells = np.full(self.shape.rows[bucket], -1, np.int64)
        cells[: len(chosen)] = self._cells[chosen]
        return StepCells(cells, self.shape.buckets[bucket])

    def _lay_out_epoch(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Returns ([rows of each bucket, shuffled], bucket of each batch, first row of each)."""
        order = _shuffled(len(self._cells), self._seed, epoch)
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


class PackedPlan:
    """The cells of every step, several cells a row; a pure function of its arguments.

    Rows come in random order, and so do the cells within each length. Only in a small corpus, where
    few cells share a length, does a third of the rows hold the same cells in every epoch (of 2,000
    cells; 4 % of 30,000), in batches with others; attention does not see them anyway.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        shape: BatchShape,
        *,
        seed: int,
        cells: np.ndarray | None = None,
    ):
        """Makes the plan; no epoch is laid out until one of its steps is asked for.

        Args:
          lengths: [cells in the store] tokens in each cell.
          shape: one bucket, the length of a row, and the rows in a batch.
          seed: of the shuffle.
          cells: numbers of the cells to plan, all by default.
        """
        self.shape = shape
        self._seed = seed
        (self._row,), (self._rows,) = shape.buckets, shape.cells
        self._cells, lengths = _planned(lengths, cells, self._row)
        self._lengths = lengths.astype(np.uint16)
        counts = np.bincount(lengths)
        kinds = pack_lengths(counts, self._row)
        self._starts = np.cumsum([0, *(kind.rows for kind in kinds)])
        self._most_cells = max(len(kind.lengths) for kind in kinds)
        # Cells are sorted by length in each epoch; each place of a kind takes the next so many.
        next_of_length = np.cumsum(counts) - counts
        self._places = []
        for kind in kinds:
            first = np.empty(len(kind.lengths), np.int64)
            for place, length in enumerate(kind.lengths):
                first[place] = next_of_length[length]
                next_of_length[length] += kind.rows
            self._places.append(first)
        self.steps_per_epoch = -(-int(self._starts[-1]) // self._rows)
        self._lay_out = functools.lru_cache(maxsize=2)(self._lay_out_epoch)
        tokens = int(lengths.sum(dtype=np.int64))
        self.padding = 1 - tokens / (self.steps_per_epoch * self._rows * self._row)

    @property
    def n_cells(self) -> int:
        """Cells in an epoch."""
        return len(self._cells)

    def step(self, step: int) -> StepCells:
        """Returns the cells of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        by_length, order = self._lay_out(epoch)
        chosen = order[index * self._rows : (index + 1) * self._rows]
        kinds = np.searchsorted(self._starts, chosen, side="right") - 1
        cells = np.full((self._rows, self._most_cells), -1, np.int64)
        for row, (kind, within) in enumerate(zip(kinds, chosen - self._starts[kinds], strict=True)):
            places = self._places[kind] + within
            cells[row, : len(places)] = self._cells[by_length[places]]
        return StepCells(cells, self._row)

    def _lay_out_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (cells sorted by length and shuffled within, order of the rows)."""
        cells = _shuffled(len(self._cells), self._seed, epoch)
        by_length = cells[np.argsort(self._lengths[cells], kind="stable")]
        rows = _shuffled(int(self._starts[-1]), self._seed, epoch, 1)
        return by_length, rows


def _shuffled(n: int, *seeds: int) -> np.ndarray:
    """Returns 0..n-1 in random order."""
    numbers = _narrow(np.arange(n))
    np.random.default_rng(seeds).shuffle(numbers)
    return numbers


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """Returns ascending cell numbers in 32 bits where those hold them."""
    holds = not len(numbers) or numbers[-1] <= np.iinfo(np.int32).max
    return numbers.astype(np.int32) if holds else numbers


def _planned(
    lengths: np.ndarray, cells: np.ndarray | None, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (numbers of the cells to plan, their lengths) if rows of `longest` hold them."""
    cells = _narrow(np.arange(len(lengths))) if cells is None else np.asarray(cells)
    if not len(cells):
        raise InputError("there is no cell to make batches of; tokenize some first")
    lengths = np.asarray(lengths)[cells]
    if lengths.max() > longest:
        raise InputError(
            f"the longest cell has {lengths.max()} tokens but the longest bucket {longest}; choose "
            "buckets that hold it"
        )
    return cells, lengths
