"""Edits of cells as arrays of fixed shape for the devices."""

from collections.abc import Sequence

import jax
import numpy as np

from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.batches import (
    ACCELERATOR_SPEED,
    SPEED,
    TOKENS_PER_ACCELERATOR,
    TOKENS_PER_DEVICE,
)
from geneformer_jax.model.attention.plain import CHUNK
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.perturbation.engine.edits import EditBatch, nowhere
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.forward import BaselineCells
from geneformer_jax.perturbation.engine.plan import EditPlan

# Of the free memory, for edited cells.
_FRACTION = 0.6
# Seconds that compiling the programs of one more padded length takes, roughly.
_COMPILING = {"cpu": 4.0}
_COMPILING_FOR_ACCELERATOR = 30.0
_FLOAT32 = 4


def split_by_cut(edits: EditBatch) -> list[EditBatch]:
    """Splits the edits of a cell by the original that they are compared with."""
    return [edits.take(edits.cut == cut) for cut in np.unique(edits.cut)]


def lay_out_edits(
    plan: EditPlan,
    edits: Sequence[EditBatch],
    padded: int,
    rows: int,
    devices: int,
    own_cells: int,
) -> tuple[BaselineCells, list[EditBatch]]:
    """Lays out edits for the devices.

    Args:
      plan: of the run.
      edits: of one cell and one original each; of a single one, which all devices share, or of
        several, which are split among the devices.
      padded: T.
      rows: edits in a batch on each device.
      devices: their number.
      own_cells: cells at hand on each device, 0 where all share one.

    Returns:
      (cells at hand, each device's own after those of the one before, or one for all; batches of
      edits, the rows of each device after those of the one before).
    """
    size, beyond = plan.sets.size, nowhere(plan.rule, padded, plan.sets.size)
    nothing = EditBatch.filler(0, size, beyond)
    if own_cells:
        queues = [EditBatch.stack([nothing, *edits[d::devices]]) for d in range(devices)]
        cells = _cells_at_hand(plan, queues, padded, own_cells)
    else:
        (whole,) = edits
        cells = _cells_at_hand(plan, [whole], padded, 1)
        queues = [whole.take(own) for own in np.array_split(np.arange(len(whole.slots)), devices)]
    longest = max(len(queue.slots) for queue in queues)
    batches = [
        EditBatch.concatenate(
            [queue.take(slice(begin, begin + rows)).pad(rows, beyond) for queue in queues]
        )
        for begin in range(0, longest, rows)
    ]
    return cells, batches


def _cells_at_hand(
    plan: EditPlan, queues: Sequence[EditBatch], padded: int, own_cells: int
) -> BaselineCells:
    """Returns the cells of the queues, each queue's filled up to `own_cells`."""
    beyond = plan.sets.size if plan.rule.refill else 0
    total = len(queues) * own_cells
    cells = BaselineCells(
        np.zeros((total, padded), np.int32),
        np.zeros((total, beyond), np.int32),
        np.zeros(total, np.int32),
        np.zeros(total, np.int32),
    )
    for first, queue in zip(range(0, total, own_cells), queues, strict=True):
        cells.cut_C[first + queue.slots] = queue.cut
        for slot, genes in enumerate(queue.cells, first):
            tokens = plan.special.tokens_in_sight(genes)
            cells.tokens_CT[slot, : len(tokens)] = tokens
            next_genes = genes[len(plan.special.in_sight(genes)) :][:beyond]
            cells.beyond_CK[slot, : len(next_genes)] = next_genes
            cells.lengths_C[slot] = len(tokens)
    return cells


def choose_rows(spec: ForwardSpec, padded: int, tokens: int | None) -> int:
    """Returns the number of edited cells of `padded` tokens that a device encodes at a time.

    Args:
      spec: what is computed.
      padded: T.
      tokens: padded tokens at a time; by default what the platform does best with, and no more than
        a part of the memory that the device reports as free.

    Raises:
      InputError: `tokens` is below 1.
    """
    if tokens is not None:
        if tokens < 1:
            raise InputError(f"`tokens_per_device` is {tokens}; it must be at least 1")
        return max(tokens // padded, 1)
    device = spec.mesh.devices.flat[0]
    best = TOKENS_PER_DEVICE.get(device.platform, TOKENS_PER_ACCELERATOR)
    return max(min(best // padded, _fitting(spec, padded, device)), 1)


def bytes_of_row(spec: ForwardSpec, padded: int) -> int:
    """Estimates the memory that one edited cell takes while it is encoded and compared."""
    config, itemsize = spec.config, spec.runtime.precision.compute.dtype.itemsize
    scores = {"xla": padded, "chunked": min(CHUNK, padded)}.get(spec.runtime.attention, 0)
    activations = (8 * config.width + 2 * config.feed_forward) * itemsize
    comparison = 4 * config.width * _FLOAT32
    # Scores and weights, in float32.
    return padded * (activations + comparison + 2 * scores * config.heads * _FLOAT32)


def _fitting(spec: ForwardSpec, padded: int, device: jax.Device) -> int:
    memory = device.memory_stats() or {}
    if "bytes_limit" not in memory:
        return padded
    free = memory["bytes_limit"] - memory.get("bytes_in_use", 0)
    return int(free * _FRACTION) // bytes_of_row(spec, padded)


def tokens_worth_compiling(config: EncoderConfig, platform: str, length: int) -> float:
    """Returns the tokens that can be encoded in the time of compiling for one more length."""
    D, F = config.width, config.feed_forward
    per_token = config.layers * (8 * D * D + 4 * D * F + 4 * D * length)
    seconds = _COMPILING.get(platform, _COMPILING_FOR_ACCELERATOR)
    return seconds * SPEED.get(platform, ACCELERATOR_SPEED) / per_token


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device failed for lack of memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
