"""Masked gene prediction: which genes of a cell are hidden, and what stands in their place.

As the original does (BERT's rule): every gene is selected with probability 0.15, independently; of
the selected, 80 % become `<mask>`, 10 % a random gene, 10 % stay. One deliberate difference: random
replacements are genes, where the original also draws special tokens.

The same functions run on the host, over numpy arrays, and within a jitted step, over JAX arrays;
both give the same masks.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from geneformer_jax.batches.random_bits import random_bits
from geneformer_jax.common.errors import InputError

SELECTED_SHARE = 0.15
_STANDARD_DEVIATIONS = 5
_POSITIONS_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class MaskingRule:
    """How genes are masked.

    Attributes:
      vocabulary_size: V.
      first_gene_token: lower token ids are special.
      mask_token: id of `<mask>`.
      protected_tokens: ids that are never selected (`<pad>` never is, nor is `<mask>`).
      selected_share: probability that a gene is selected.
      mask_share: of the selected, the share that becomes `<mask>`.
      random_share: of the selected, the share that becomes a random token.
      random_special_tokens: also draw special tokens as replacements, as the original does.
    """

    vocabulary_size: int
    first_gene_token: int
    mask_token: int = 1
    protected_tokens: tuple[int, ...] = (0, 1)
    selected_share: float = SELECTED_SHARE
    mask_share: float = 0.8
    random_share: float = 0.1
    random_special_tokens: bool = False

    def __post_init__(self):
        if not 0 < self.selected_share < 1:
            raise InputError(
                f"masking.selected_share is {self.selected_share}; it must be between 0 and 1"
            )
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise InputError(
                f"masking.mask_share {self.mask_share} and masking.random_share "
                f"{self.random_share} must not be negative nor add up to more than 1"
            )


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


def masked_capacity(bucket: int, selected_share: float = SELECTED_SHARE) -> int:
    """Number M of masked positions kept for each row of `bucket` tokens.

    Mean plus five standard deviations of the binomial count, so that fewer than one row in 100,000
    selects more (see `mask_cells`), rounded up to a multiple of 8.
    """
    mean = bucket * selected_share
    capacity = mean + _STANDARD_DEVIATIONS * math.sqrt(mean * (1 - selected_share)) + 1
    return min(-int(-capacity // _POSITIONS_MULTIPLE) * _POSITIONS_MULTIPLE, bucket)


def mask_cells(
    tokens_BT: Any,
    lengths_B: Any,
    cells_B: Any,
    *,
    seed: int,
    step: Any,
    rule: MaskingRule,
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
      rule: what to mask.
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
    words = random_bits(seed, step, cells_BT, ranks_BT)
    selected_BT, corrupted_BT = _corrupt(tokens_BT, real_BT, *words, rule)
    return MaskedCells(corrupted_BT, *_gather(tokens_BT, selected_BT, _capacity(T, rule)))


def _capacity(bucket: int, rule: MaskingRule) -> int:
    return masked_capacity(bucket, rule.selected_share)


def _below(share: float) -> np.uint32:
    """The words below this are that share of all words."""
    return np.uint32(min(round(share * 2**32), 2**32 - 1))


def _corrupt(
    tokens_BT: Any, real_BT: Any, choosing_BT: Any, acting_BT: Any, rule: MaskingRule
) -> tuple[Any, Any]:
    """Returns (whether a gene is selected, tokens with replacements in place)."""
    xp = tokens_BT.__array_namespace__()
    selected_BT = (choosing_BT < _below(rule.selected_share)) & real_BT
    for token in rule.protected_tokens:
        selected_BT = selected_BT & (tokens_BT != token)
    capacity = _capacity(tokens_BT.shape[1], rule)
    selected_BT = selected_BT & (xp.cumsum(selected_BT, axis=1, dtype=np.int32) <= capacity)

    mask, random = _below(rule.mask_share), _below(rule.mask_share + rule.random_share)
    lowest = 0 if rule.random_special_tokens else rule.first_gene_token
    # Of the words of a tenth of all, some 400 million, the remainders are as good as uniform.
    replacement_BT = (acting_BT - mask) % np.uint32(rule.vocabulary_size - lowest)
    replacement_BT = replacement_BT.astype(np.int32) + np.int32(lowest)
    changed_BT = xp.where(acting_BT < mask, np.int32(rule.mask_token), replacement_BT)
    changed_BT = xp.where(selected_BT & (acting_BT < random), changed_BT, tokens_BT)
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
