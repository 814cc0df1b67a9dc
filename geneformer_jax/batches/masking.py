"""Masked gene prediction: which genes of a cell are hidden, and what stands in their place.

As the original does (BERT's rule): every gene is selected with probability 0.15, independently; of
the selected, 80 % become `<mask>`, 10 % a random gene, 10 % stay. One deliberate difference: random
replacements are genes, where the original also draws special tokens.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

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
    """Number M of masked positions kept for each cell of `bucket` tokens.

    Mean plus five standard deviations of the binomial count, so that fewer than one cell in 100,000
    selects more (see `mask_cells`), rounded up to a multiple of 8.
    """
    mean = bucket * selected_share
    capacity = mean + _STANDARD_DEVIATIONS * math.sqrt(mean * (1 - selected_share)) + 1
    return min(-int(-capacity // _POSITIONS_MULTIPLE) * _POSITIONS_MULTIPLE, bucket)


def mask_cells(
    tokens_BT: np.ndarray,
    lengths_B: np.ndarray,
    cells_B: np.ndarray,
    *,
    seed: int,
    step: int,
    rule: MaskingRule,
) -> MaskedCells:
    """Masks a padded batch; the result for a cell depends on (seed, step, cell) alone.

    Args:
      tokens_BT: int token ids, padded on the right.
      lengths_B: real tokens in each row.
      cells_B: number of each cell in its store, not negative (any number for filler rows).
      seed: of the run.
      step: training step; masking is drawn anew at each step, as in the original's collator.
      rule: what to mask.

    Selected genes beyond `masked_capacity` (the last ones of the row) are left as they were.
    """
    B, T = tokens_BT.shape
    # Three uniform numbers a token: selected?, what happens to it, by which token.
    uniform_B3T = np.empty((B, 3, T), np.float32)
    for row, cell in enumerate(cells_B):
        bits = np.random.Philox(key=[seed, step], counter=[0, 0, 0, int(cell)])
        uniform_B3T[row] = np.random.Generator(bits).random((3, T), np.float32)

    selected_BT = uniform_B3T[:, 0] < rule.selected_share
    selected_BT &= np.arange(T) < lengths_B[:, None]
    selected_BT &= ~np.isin(tokens_BT, rule.protected_tokens)
    capacity = masked_capacity(T, rule.selected_share)
    selected_BT &= np.cumsum(selected_BT, axis=1) <= capacity

    lowest = 0 if rule.random_special_tokens else rule.first_gene_token
    choices = rule.vocabulary_size - lowest
    replacement_BT = lowest + (uniform_B3T[:, 2] * choices).astype(np.int32)
    replacement_BT = np.minimum(replacement_BT, rule.vocabulary_size - 1)
    action_BT = uniform_B3T[:, 1]
    masked_BT = selected_BT & (action_BT < rule.mask_share)
    random_BT = selected_BT & ~masked_BT & (action_BT < rule.mask_share + rule.random_share)
    corrupted_BT = np.where(masked_BT, rule.mask_token, tokens_BT)
    corrupted_BT = np.where(random_BT, replacement_BT, corrupted_BT).astype(np.int32)
    return MaskedCells(corrupted_BT, *_gather(tokens_BT, selected_BT, capacity))


def _gather(
    tokens_BT: np.ndarray, selected_BT: np.ndarray, capacity: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, positions = np.nonzero(selected_BT)
    slots = (np.cumsum(selected_BT, axis=1) - 1)[rows, positions]
    shape = (len(tokens_BT), capacity)
    positions_BM, targets_BM = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights_BM = np.zeros(shape, np.float32)
    positions_BM[rows, slots] = positions
    targets_BM[rows, slots] = tokens_BT[rows, positions]
    weights_BM[rows, slots] = 1.0
    return positions_BM, targets_BM, weights_BM
