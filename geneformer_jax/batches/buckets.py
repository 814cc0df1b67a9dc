"""Buckets: the lengths to which cells are padded, and how many rows form a batch of each."""

import dataclasses

import numpy as np

from geneformer_jax.batches.config import MAX_BUCKETS, DataConfig
from geneformer_jax.common.errors import InputError

BUCKET_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """How many rows of which padded length form a batch.

    Attributes:
      buckets: padded lengths, ascending; a single one for packed rows.
      cells: cells in a full batch of each bucket; packed rows, where rows hold several.
      divisor: rows are a multiple of it: devices that share a batch, times micro-batches.
    """

    buckets: tuple[int, ...]
    cells: tuple[int, ...]
    divisor: int = 1

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows in a batch of each bucket: cells, and the empty rows that `divisor` asks for."""
        return tuple(-(-cells // self.divisor) * self.divisor for cells in self.cells)

    def describe(self) -> str:
        """Returns "cells x tokens" of each bucket, and the empty rows beside the cells."""
        listed = ", ".join(
            f"{cells} x {bucket}" for cells, bucket in zip(self.cells, self.buckets, strict=True)
        )
        if empty := self.rows[0] - self.cells[0]:
            listed += f"; {empty} empty rows in each, as rows must be a multiple of {self.divisor}"
        return listed


def choose_buckets(
    lengths: np.ndarray, max_buckets: int = MAX_BUCKETS, multiple: int = BUCKET_MULTIPLE
) -> tuple[int, ...]:
    """Chooses at most `max_buckets` padded lengths that waste the least padding on these cells.

    Exact, by dynamic programming over the multiples of `multiple`. Multiples of 128 would suit
    kernels best, but alone they waste half of that on every cell: 6 % of blood cells' tokens.

    Args:
      lengths: [cells] tokens in each cell.
      max_buckets: every bucket is one more compiled program.
      multiple: of which every bucket is one.
    """
    cells_of_length = np.bincount(lengths)
    grid = np.arange(multiple, len(cells_of_length) - 1 + multiple, multiple)
    cells_up_to = np.cumsum(cells_of_length)[np.minimum(grid, len(cells_of_length) - 1)]
    # cost[k, j]: least padded tokens of the cells up to grid[j], with k + 1 buckets.
    cost = np.full((max_buckets, len(grid)), np.inf)
    before = np.zeros((max_buckets, len(grid)), np.int64)
    cost[0] = cells_up_to * grid
    for k in range(1, max_buckets):
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
      cells_per_batch: the same number of cells in each batch, as the original does, whatever the
        devices; empty rows fill up what `divisor` asks for.
      divisor: rows are a multiple of it (devices that share a batch, times micro-batches).

    Raises:
      InputError: both or neither are given, or not even `divisor` cells fit.
    """
    if (tokens_per_batch > 0) == (cells_per_batch > 0):
        raise InputError(
            f"`config.data.tokens_per_batch` is {tokens_per_batch} and "
            f"`config.data.cells_per_batch` is {cells_per_batch}; set exactly one of them above 0"
        )
    if cells_per_batch:
        return BatchShape(buckets, (cells_per_batch,) * len(buckets), divisor)
    cells = tuple(tokens_per_batch // bucket // divisor * divisor for bucket in buckets)
    if not all(cells):
        raise InputError(
            f"`config.data.tokens_per_batch` {tokens_per_batch} does not hold {divisor} cells of "
            f"{buckets[-1]} tokens (devices of the mesh's data and fsdp axes x micro-batches); "
            f"set it to at least {divisor * buckets[-1]}"
        )
    return BatchShape(buckets, cells)


def batch_shape(data: DataConfig, lengths: np.ndarray, positions: int, divisor: int) -> BatchShape:
    """Returns buckets, none longer than the model's positions, and rows in a batch of each.

    Args:
      data: tokens or cells in a batch.
      lengths: [cells] tokens in each cell.
      positions: tokens that fit the model.
      divisor: rows are a multiple of it (devices that share a batch, times micro-batches).

    Raises:
      InputError: tokens or cells in a batch are not given, or do not fit.
    """
    buckets = [min(each, positions) for each in choose_buckets(lengths, data.max_buckets)]
    return shape_batches(
        tuple(buckets[-1:] if data.packing else buckets),
        tokens_per_batch=data.tokens_per_batch,
        cells_per_batch=data.cells_per_batch,
        divisor=divisor,
    )


def cells_to_move(counts: np.ndarray, shape: BatchShape) -> list[int]:
    """Chooses how many cells of each bucket go into the next longer one, so as to pad least.

    A bucket's last batch is filled up with empty rows. Moving the few cells of that batch to the
    next bucket, and perhaps with those left over there to the one after it, can cost less. Exact,
    by dynamic programming over the number of cells that come from below.

    Args:
      counts: cells that fit each bucket best.
      shape: buckets and cells in a batch.

    Returns:
      Cells to move up from each bucket, those that came from below included; 0 for the longest.
    """
    # {cells from below: (padded tokens so far, cells moved from each bucket so far)}
    ways: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for bucket, rows, count in zip(shape.buckets, shape.cells, counts.tolist(), strict=True):
        after: dict[int, tuple[int, list[int]]] = {}
        for below, (padded, moved) in ways.items():
            whole, left = divmod(count + below, rows)
            for leaves, batches in {0: whole + bool(left), left: whole}.items():
                way = padded + batches * rows * bucket, [*moved, leaves]
                after[leaves] = min(way, after.get(leaves, way))
        ways = after
    return ways[0][1]
