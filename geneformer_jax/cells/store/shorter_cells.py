"""Cells as a model sees them: of a cell with too many tokens, the highest ranked genes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.tokenization.rank_encoding import describe_cut, describe_lengths
from geneformer_jax.common.log import logger


def shorten(cells: EncodedCells, positions: int) -> EncodedCells:
    """Returns cells cut to what a model takes, as the original does; says how many were cut.

    Args:
      cells: of any length.
      positions: largest number of tokens that the model takes.
    """
    shorter = ShorterCells(cells, positions)
    if not shorter.is_cut.any():
        return cells
    logger.info(describe_cut(shorter.is_cut, positions))
    return shorter


@dataclass(frozen=True, eq=False)
class ShorterCells:
    """Other cells without what stands beyond a limit; all else is that of their source.

    A last `<eos>` stays the last token.

    Attributes:
      source: the whole cells.
      limit: tokens of a cell at most.
    """

    source: EncodedCells
    limit: int

    def __getattr__(self, name: str) -> object:
        # Underscored names are asked for by pickle and copy, before there is a source.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.source, name)

    def __reduce__(self):
        # Without the lengths, which each worker process reads for itself.
        return ShorterCells, (self.source, self.limit)

    def __repr__(self) -> str:
        return f"ShorterCells({describe_lengths(self.lengths)}, {self.is_cut.sum():,} of them cut)"

    def __len__(self) -> int:
        return len(self.source.lengths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell; int32 [cells]."""
        return np.minimum(self.source.lengths, self.limit)

    @property
    def max_length(self) -> int:
        """Maximal number of tokens of a cell."""
        return min(self.source.max_length, self.limit)

    @property
    def is_cut(self) -> np.ndarray:
        """Whether each cell is cut; bool [cells]."""
        return np.asarray(self.source.lengths) > self.limit

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens (uint16 arrays) of cells, in the order of `indices`."""
        return [self._cut(tokens) for tokens in self.source.read(indices)]

    def _cut(self, tokens: np.ndarray) -> np.ndarray:
        if len(tokens) <= self.limit:
            return tokens
        if self.source.vocabulary.eos_id is None:
            return tokens[: self.limit]
        return np.append(tokens[: self.limit - 1], tokens[-1:])
