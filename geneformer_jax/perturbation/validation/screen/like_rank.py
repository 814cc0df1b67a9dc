"""Genes of like rank and detection rate, which stand beside each perturbed gene as its control."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from geneformer_jax.common.errors import InputError


class Visibility(NamedTuple):
    """In which cells genes are within the model's sight, and where.

    Attributes:
      cells: int64 [V] cells that have the gene in sight.
      ranks: float64 [V] mean rank in these, as a fraction of the genes in sight; NaN without any.
      total: number of cells.
    """

    cells: np.ndarray
    ranks: np.ndarray
    total: int


def visibility(cells: Iterable[np.ndarray], size: int) -> Visibility:
    """Finds where genes stand in cells.

    Args:
      cells: of each its genes in sight, int [genes] tokens by rank.
      size: V, the number of tokens.
    """
    counts, sums, total = np.zeros(size, np.int64), np.zeros(size), 0
    for genes in cells:
        counts[genes] += 1
        sums[genes] += np.arange(1, len(genes) + 1) / len(genes)
        total += 1
    with np.errstate(invalid="ignore"):
        return Visibility(counts, sums / counts, total)


def genes_of_like_rank(
    seen: Visibility, targets: np.ndarray, min_cells: int, number: int
) -> np.ndarray:
    """Finds the genes nearest to each target in mean rank and in the fraction of cells.

    Rank and fraction are scaled by their standard deviation among the candidates: genes in at
    least `min_cells` cells that are no target themselves.

    Args:
      seen: of the cells.
      targets: int [P] tokens.
      min_cells: in which a gene must be seen.
      number: of genes for each target; fewer where there are not so many candidates.

    Returns:
      int64 [P, K] tokens, the nearest first.

    Raises:
      InputError: there is no candidate.
    """
    is_candidate = seen.cells >= min_cells
    is_candidate[targets] = False
    candidates = np.flatnonzero(is_candidate)
    if not len(candidates):
        raise InputError(
            f"no gene beside the perturbed ones is in {min_cells:,} control cells, so there is "
            "none of like rank to compare with; give more control cells, or lower `min_cells`"
        )
    # A target that no cell has in sight stands behind all others.
    places = np.stack([np.nan_to_num(seen.ranks, nan=1.0), seen.cells / seen.total], axis=1)
    spread = places[candidates].std(axis=0)
    scaled = places / np.where(spread > 0, spread, 1)
    wanted = np.arange(1, min(number, len(candidates)) + 1)
    return candidates[cKDTree(scaled[candidates]).query(scaled[targets], wanted)[1]]
