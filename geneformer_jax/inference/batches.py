"""Cells as padded batches for inference on all devices at once, in buckets of like length."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from geneformer_jax.batches.buckets import BatchShape, choose_buckets
from geneformer_jax.batches.loader import pad_cells
from geneformer_jax.batches.plan import BatchPlan
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.sharding import batch_divisor, put_batch

# A CPU's caches hold small batches (perturbing cells of 1,000 genes, 2,048 tokens took a fifth less
# time than 8,192); an accelerator idles on them.
TOKENS_PER_DEVICE = {"cpu": 2_048}
TOKENS_PER_ACCELERATOR = 131_072
# Floating point operations per second, roughly, to weigh computing padding against compiling.
SPEED = {"cpu": 1e11}
ACCELERATOR_SPEED = 1e14
_MAX_BUCKETS = 24


class TokenBatch(NamedTuple):
    """Padded cells of one bucket.

    Attributes:
      cells: int64 [real cells] their numbers in the input; rows beyond them are filler.
      tokens_BT: int32 token ids, padded on the right.
      lengths_B: int32 real tokens in each row; 0 for filler rows.
    """

    cells: np.ndarray
    tokens_BT: jax.Array
    lengths_B: jax.Array


class BatchLayout(NamedTuple):
    """How cells are laid out in batches.

    Attributes:
      shape: padded lengths, and the cells in a batch of each.
      mesh: devices that share the cells of a batch.
      pad_token: id of `<pad>`.
    """

    shape: BatchShape
    mesh: Mesh
    pad_token: int


def lay_out(
    lengths: np.ndarray,
    config: EncoderConfig,
    mesh: Mesh,
    tokens_per_device: int | None = None,
) -> BatchLayout:
    """Chooses the buckets of these cells, and how many cells of each form a batch.

    Each bucket has one batch shape, so that each compiles once.

    Args:
      lengths: [cells] tokens of each cell.
      config: shape of the model; no bucket is longer than its positions.
      mesh: devices; cells in a batch are a multiple of their number.
      tokens_per_device: padded tokens of a batch on each device, at least one cell; by default
        2,048 on CPUs and 131,072 on accelerators.

    Raises:
      InputError: `tokens_per_device` is below 1.
    """
    platform = mesh.devices.flat[0].platform
    if tokens_per_device is None:
        tokens_per_device = TOKENS_PER_DEVICE.get(platform, TOKENS_PER_ACCELERATOR)
    if tokens_per_device < 1:
        raise InputError(f"`tokens_per_device` is {tokens_per_device}; it must be at least 1")
    lengths = np.asarray(lengths)
    found = choose_buckets(lengths, _worthwhile_buckets(lengths, config, platform))
    buckets = tuple(sorted({min(bucket, config.positions) for bucket in found}))
    in_bucket = np.bincount(np.searchsorted(buckets, lengths), minlength=len(buckets))
    devices = batch_divisor(mesh)
    cells = tuple(
        devices * _even_size(-(-int(count) // devices), max(tokens_per_device // bucket, 1))
        for bucket, count in zip(buckets, in_bucket, strict=True)
    )
    return BatchLayout(BatchShape(buckets, cells), mesh, config.pad_token)


def _worthwhile_buckets(lengths: np.ndarray, config: EncoderConfig, platform: str) -> int:
    """Number of buckets at which padding and compiling together take the least time.

    With K buckets about 1/K of the tokens is padding and each takes about a second to compile; the
    sum of both is least where K is the square root of the seconds of work.
    """
    seconds = encoding_flops(config, lengths).sum() / SPEED.get(platform, ACCELERATOR_SPEED)
    return int(np.clip(np.ceil(np.sqrt(seconds)), 1, _MAX_BUCKETS))


def encoding_flops(config: EncoderConfig, lengths: np.ndarray) -> np.ndarray:
    """Returns the floating point operations of encoding each cell, float64 shaped as `lengths`."""
    D, F = config.width, config.feed_forward
    lengths = np.asarray(lengths, np.float64)
    weights = 2 * config.layers * (4 * D * D + 2 * D * F) * lengths
    return weights + 4 * config.layers * D * lengths**2


def _even_size(cells: int, max_cells: int) -> int:
    """Cells in each of the fewest batches of up to `max_cells`: the last is not half empty."""
    return -(-cells // max(-(-cells // max_cells), 1)) if cells else 1


def token_batches(
    cells: EncodedCells, layout: BatchLayout, start: int = 0, stop: int | None = None
) -> Iterator[TokenBatch]:
    """Yields every cell from `start` to before `stop` once, in batches placed on the devices."""
    lengths = np.asarray(cells.lengths)
    chosen = np.arange(start, len(lengths) if stop is None else stop)
    plan = BatchPlan(lengths, layout.shape, seed=0, cells=chosen)
    for step in range(plan.steps_per_epoch):
        rows, bucket = plan.step(step)
        real = rows[rows >= 0]
        tokens_BT = np.full((len(rows), bucket), layout.pad_token, np.int32)
        tokens_BT[: len(real)] = pad_cells(cells.read(real), bucket, layout.pad_token)
        lengths_B = np.zeros(len(rows), np.int32)
        lengths_B[: len(real)] = lengths[real]
        yield TokenBatch(real, *put_batch((tokens_BT, lengths_B), layout.mesh))
