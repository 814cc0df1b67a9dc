"""Masked gene prediction: which genes of a cell are hidden, and what stands in their place.

As the original does (BERT's rule): every gene is selected with probability 0.15, independently; of
the selected, 80 % become `<mask>`, 10 % a random gene, 10 % stay. One deliberate difference: random
replacements are genes, where the original also draws special tokens.

The same functions run on the host, over numpy arrays, and within a jitted step, over JAX arrays;
both give the same masks.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from geneformer_jax.batches.config import SELECTED_FRACTION, MaskingConfig
from geneformer_jax.batches.random_bits import random_bits
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary

_STANDARD_DEVIATIONS = 5
_POSITIONS_MULTIPLE = 8


class Packing(NamedTuple):
    """Where the cells of rows that hold several cells stand.

    Attributes:
      segments_BT: int32, 1, 2, ... for the first, second, ... cell of the row; 0 for padding.
      ranks_BT: int32, place of a token in its cell; 0 for padding.
    """

    segments_BT: np.ndarray
    ranks_BT: np.ndarray


class MaskedCells(NamedTuple):
    """A padded batch with masked genes, and what they were.

    Attributes:
      tokens_BT: int32, with replacements in place.
      positions_BM: int32, where the selected genes stand; 0 beyond the last of them.
      targets_BM: int32, the genes that stood there; 0 beyond the last.
      weights_BM: float32, 1 for selected genes, 0 beyond the last.
    """

    tokens_BT: np.ndarray
    positions_BM: np.ndarray
    targets_BM: np.ndarray
    weights_BM: np.ndarray


def masked_capacity(bucket: int, selected_fraction: float = SELECTED_FRACTION) -> int:
    """Number M of masked positions kept for each row of `bucket` tokens.

    Mean plus five standard deviations of the binomial count, so that fewer than one row in 100,000
    selects more (see `mask_cells`), rounded up to a multiple of 8.
    """
    mean = bucket * selected_fraction
    capacity = mean + _STANDARD_DEVIATIONS * math.sqrt(mean * (1 - selected_fraction)) + 1
    return min(-int(-capacity // _POSITIONS_MULTIPLE) * _POSITIONS_MULTIPLE, bucket)


def mask_cells(
    tokens_BT: Any,
    lengths_B: Any,
    cells_B: Any,
    *,
    seed: int,
    step: Any,
    config: MaskingConfig,
    vocabulary: GeneVocabulary,
    packing: Packing | None = None,
) -> MaskedCells:
    """Masks a padded batch; the result for a cell depends on (seed, step, cell) alone.

    Takes numpy arrays, or JAX arrays in a jitted step, and returns the same kind.

    Args:
      tokens_BT: int32 token ids, padded on the right.
      lengths_B: real tokens in each row.
      cells_B: int32 number of each cell in its store (any number for filler rows); of packed rows
        the numbers of their cells in turn, [B, cells].
      seed: of the run.
      step: training step; masking is drawn anew at each step, as in the original's collator.
      config: how genes are masked.
      vocabulary: of the tokens.
      packing: where the cells of packed rows stand; None where each row is one cell.

    Selected genes beyond `masked_capacity` (the last ones of the row) are left as they were.
    """
    xp = tokens_BT.__array_namespace__()
    T = tokens_BT.shape[1]
    if packing is None:
        ranks_BT = xp.broadcast_to(xp.arange(T, dtype=np.int32), tokens_BT.shape)
        cells_BT = xp.broadcast_to(cells_B[:, None], tokens_BT.shape)
    else:
        ranks_BT = packing.ranks_BT
        cells_BT = xp.take_along_axis(cells_B, xp.maximum(packing.segments_BT - 1, 0), axis=1)
    real_BT = xp.arange(T) < lengths_B[:, None]
    bits = random_bits(seed, step, cells_BT, ranks_BT)
    capacity = masked_capacity(T, config.selected_fraction)
    selected_BT, corrupted_BT = _corrupt(
        tokens_BT, real_BT, *bits, config=config, vocabulary=vocabulary, capacity=capacity
    )
    return MaskedCells(corrupted_BT, *_gather(tokens_BT, selected_BT, capacity))


def _threshold(fraction: float) -> np.uint32:
    """Returns the number below which that fraction of all 32-bit numbers lies."""
    return np.uint32(min(round(fraction * 2**32), 2**32 - 1))


def _corrupt(
    tokens_BT: Any,
    real_BT: Any,
    selecting_BT: Any,
    replacing_BT: Any,
    *,
    config: MaskingConfig,
    vocabulary: GeneVocabulary,
    capacity: int,
) -> tuple[Any, Any]:
    """Returns (whether a gene is selected, tokens with replacements in place)."""
    xp = tokens_BT.__array_namespace__()
    selected_BT = (selecting_BT < _threshold(config.selected_fraction)) & real_BT
    for token in (vocabulary.pad_id, vocabulary.mask_id):
        selected_BT = selected_BT & (tokens_BT != token)
    selected_BT = selected_BT & (xp.cumsum(selected_BT, axis=1, dtype=np.int32) <= capacity)

    mask = _threshold(config.mask_fraction)
    random = _threshold(config.mask_fraction + config.random_fraction)
    lowest = 0 if config.random_special_tokens else vocabulary.first_gene_token
    # Of a tenth of all 32-bit numbers, some 400 million, the remainders are as good as uniform.
    replacement_BT = (replacing_BT - mask) % np.uint32(vocabulary.size - lowest)
    replacement_BT = replacement_BT.astype(np.int32) + np.int32(lowest)
    changed_BT = xp.where(replacing_BT < mask, np.int32(vocabulary.mask_id), replacement_BT)
    changed_BT = xp.where(selected_BT & (replacing_BT < random), changed_BT, tokens_BT)
    return selected_BT, changed_BT


def _gather(tokens_BT: Any, selected_BT: Any, capacity: int) -> tuple[Any, Any, Any]:
    """Returns positions, tokens and weights of what is selected, each [B, capacity]."""
    xp = tokens_BT.__array_namespace__()
    # Sorting flags puts the selected positions first, in their order.
    positions_BM = xp.argsort(~selected_BT, axis=1, stable=True)[:, :capacity].astype(np.int32)
    used_BM = xp.arange(capacity) < selected_BT.sum(axis=1)[:, None]
    targets_BM = xp.take_along_axis(tokens_BT, positions_BM, axis=1)
    zero = np.int32(0)
    return (
        xp.where(used_BM, positions_BM, zero),
        xp.where(used_BM, targets_BM, zero),
        used_BM.astype(np.float32),
    )
