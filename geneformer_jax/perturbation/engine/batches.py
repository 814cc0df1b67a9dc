"""Edits of cells as arrays of fixed shape for the devices."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
from geneformer_jax.perturbation.engine.edits import Edits, SpecialTokens
from geneformer_jax.perturbation.engine.forward import PerturbationPass, Rows, Slots
from geneformer_jax.perturbation.engine.plan import CellEdits, Work

FILLER = -1

_SHARE = 0.6
# Seconds that compiling the programs of one more padded length takes, roughly.
_COMPILING = {"cpu": 4.0}
_COMPILING_FOR_ACCELERATOR = 30.0
_FLOAT32 = 4


class SlotWork(NamedTuple):
    """Edits of one cell that are compared with the same original.

    Attributes:
      edited: the cell.
      cut: genes cut off its tail in the original.
      numbers: int64 [E] the edits' numbers among all.
      edits: the edits.
    """

    edited: CellEdits
    cut: int
    numbers: np.ndarray
    edits: Edits


class Step(NamedTuple):
    """One batch of edits.

    Attributes:
      rows: for the devices, the rows of each device after those of the one before.
      numbers: int64 [rows] numbers of the edits, -1 for filler rows.
      slots: int32 [rows] their cells among those of all devices.
    """

    rows: Rows
    numbers: np.ndarray
    slots: np.ndarray


class Batches(NamedTuple):
    """Cells at hand and the edits made in them.

    Attributes:
      slots: for the devices; each device's own one after the other, or one for all.
      steps: batches of edits.
      tokens_SE: int32 tokens of each slot by position, see `Edits`.
    """

    slots: Slots
    steps: list[Step]
    tokens_SE: np.ndarray

    def affected(self, step: Step, positions_RN: np.ndarray) -> np.ndarray:
        """Returns the tokens at positions of a step's cells; int32 [R, N]."""
        return self.tokens_SE[step.slots[:, None], positions_RN]


def split_by_cut(work: Work, edited: CellEdits, padded: int) -> Iterator[SlotWork]:
    """Yields a cell's edits, apart for each original they are compared with."""
    edits = edited.rows(work.rule, work.frame, padded)
    numbers = edited.first + np.arange(len(edits.cut))
    for cut in np.unique(edits.cut):
        own = edits.cut == cut
        yield SlotWork(edited, int(cut), numbers[own], Edits(*(field[own] for field in edits)))


def lay_out_edits(
    work: Work, slots: Sequence[SlotWork], padded: int, rows: int, devices: int, own_slots: int
) -> Batches:
    """Lays out edits for the devices.

    Args:
      work: of the run.
      slots: cells; a single one whose edits all devices share, or cells that are dealt out.
      padded: T.
      rows: edits in a batch on each device.
      devices: their number.
      own_slots: cells on each device, 0 where all share one.
    """
    size = work.sets.size
    dealt = [list(slots[d::devices]) for d in range(devices)] if own_slots else [list(slots)]
    told = _slot_arrays(work, dealt, padded, max(own_slots, 1))
    if own_slots:
        queues = [_queue(own) for own in dealt]
    else:
        whole = _queue(slots)
        shares = np.array_split(np.arange(len(whole[-1])), devices)
        queues = [tuple(field[share] for field in whole) for share in shares]
    longest = max(len(queue[-1]) for queue in queues)
    steps = []
    for begin in range(0, longest, rows):
        parts = [_filled(queue, begin, rows, size, padded, work) for queue in queues]
        *fields, numbers = (np.concatenate(field) for field in zip(*parts, strict=True))
        rows_of_all = Rows(*fields)
        device = np.repeat(np.arange(devices), rows)
        steps.append(Step(rows_of_all, numbers, rows_of_all.slot_R + device * own_slots))
    added_SK = np.zeros((len(told.tokens_CT), size), np.int32)
    tokens_SE = np.concatenate([told.tokens_CT, told.beyond_CK, added_SK], axis=1)
    return Batches(told, steps, tokens_SE)


def _slot_arrays(work: Work, dealt: list[list[SlotWork]], padded: int, own: int) -> Slots:
    frame, beyond = work.frame, work.sets.size if work.rule.refill else 0
    total = len(dealt) * own
    slots = Slots(
        np.zeros((total, padded), np.int32),
        np.zeros((total, beyond), np.int32),
        np.zeros(total, np.int32),
        np.zeros(total, np.int32),
    )
    for device, cells in enumerate(dealt):
        for place, slot in enumerate(cells, device * own):
            ranks = slot.edited.ranks
            tokens = _in_sight(frame, ranks.genes[: ranks.seen])
            slots.tokens_CT[place, : len(tokens)] = tokens
            next_genes = ranks.genes[ranks.seen :][:beyond]
            slots.beyond_CK[place, : len(next_genes)] = next_genes
            slots.lengths_C[place] = len(tokens)
            slots.cut_C[place] = slot.cut
    return slots


def _in_sight(frame: SpecialTokens, genes: np.ndarray) -> np.ndarray:
    if not frame.framed:
        return genes
    return np.concatenate([[frame.first_gene_token - 2], genes, [frame.first_gene_token - 1]])


def _queue(slots: Sequence[SlotWork]) -> tuple[np.ndarray, ...]:
    """Edits of several cells, one after the other: slot, positions, keys, added, numbers."""
    places = [np.full(len(slot.numbers), k, np.int32) for k, slot in enumerate(slots)]
    fields = [
        [getattr(slot.edits, name) for slot in slots] for name in ("positions", "keys", "added")
    ]
    numbers = [slot.numbers for slot in slots]
    if not slots:
        return (np.empty(0, np.int32),) + (np.empty((0, 0)),) * 3 + (np.empty(0, np.int64),)
    return tuple(np.concatenate(field) for field in (places, *fields, numbers))


def _filled(queue, begin: int, rows: int, size: int, padded: int, work: Work):
    """Takes the next edits off a queue, filled up with rows that edit nothing."""
    slots = size if work.rule.refill else 0
    nowhere = padded + slots + size
    empty = (
        np.zeros(rows, np.int32),
        np.full((rows, size), nowhere, np.int32),
        np.zeros((rows, size), np.float32),
        np.zeros((rows, size), np.int32),
        np.full(rows, FILLER, np.int64),
    )
    taken = len(queue[-1][begin : begin + rows])
    if taken:
        for target, field in zip(empty, queue, strict=True):
            target[:taken] = field[begin : begin + rows]
    return empty


def choose_rows(pass_: PerturbationPass, padded: int, tokens: int | None) -> int:
    """Returns the number of edited cells of `padded` tokens that a device encodes at a time.

    Args:
      pass_: what is computed.
      padded: T.
      tokens: padded tokens at a time; by default what the platform does best with, and no more than
        a part of the memory that the device says it has left.

    Raises:
      InputError: `tokens` is below 1.
    """
    if tokens is not None:
        if tokens < 1:
            raise InputError(f"tokens_per_device is {tokens}; it must be at least 1")
        return max(tokens // padded, 1)
    device = pass_.mesh.devices.flat[0]
    best = TOKENS_PER_DEVICE.get(device.platform, TOKENS_PER_ACCELERATOR)
    return max(min(best // padded, _fitting(pass_, padded, device)), 1)


def bytes_of_row(pass_: PerturbationPass, padded: int) -> int:
    """Estimates the memory that one edited cell takes while it is encoded and compared."""
    config, itemsize = pass_.config, pass_.runtime.precision.compute.dtype.itemsize
    scores = {"xla": padded, "chunked": min(CHUNK, padded)}.get(pass_.runtime.attention, 0)
    activations = (8 * config.width + 2 * config.feed_forward) * itemsize
    comparison = 4 * config.width * _FLOAT32
    # Scores and weights, in float32.
    return padded * (activations + comparison + 2 * scores * config.heads * _FLOAT32)


def _fitting(pass_: PerturbationPass, padded: int, device: jax.Device) -> int:
    told = device.memory_stats() or {}
    if "bytes_limit" not in told:
        return padded
    free = told["bytes_limit"] - told.get("bytes_in_use", 0)
    return int(free * _SHARE) // bytes_of_row(pass_, padded)


def tokens_worth_compiling(config: EncoderConfig, platform: str, length: int) -> float:
    """Returns the tokens that can be encoded in the time of compiling for one more length."""
    D, F = config.width, config.feed_forward
    per_token = config.layers * (8 * D * D + 4 * D * F + 4 * D * length)
    seconds = _COMPILING.get(platform, _COMPILING_FOR_ACCELERATOR)
    return seconds * SPEED.get(platform, ACCELERATOR_SPEED) / per_token


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device failed for lack of memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
