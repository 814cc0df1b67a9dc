"""Shifts along states that are embedded without the deleted gene, as the edited cell is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.inference.cells import ChosenCells

# Genes that are left out in turn, and the most cells of either state.
GENES, MAX_CELLS = 20, 500
_NOTHING = -1


@dataclass(frozen=True, eq=False)
class CellsWithoutGenes(ChosenCells):
    """Cells of others, each without one of its genes or as it is; a cell may be there often.

    Attributes:
      gone: int64 [cells] token that each is without, -1 for none.
    """

    gone: np.ndarray

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell; int32 [cells]."""
        return (np.asarray(self.source.lengths)[self.rows] - (self.gone >= 0)).astype(np.int32)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens of cells, in the order of `indices`."""
        whole = super().read(indices)
        return [own[own != gone] for own, gone in zip(whole, self.gone[indices], strict=True)]


def without_each(cells: EncodedCells, tokens: Sequence[int]) -> CellsWithoutGenes:
    """Returns all cells as they are, and then for each gene the cells that have it, without it.

    A cell that would have no gene left is not among the latter.
    """
    total = len(cells.lengths)
    whole = cells.read(np.arange(total))
    first = cells.vocabulary.first_gene_token
    has_CG = np.array([np.isin(tokens, own) & ((own >= first).sum() > 1) for own in whole])
    genes, rows = np.nonzero(has_CG.T)
    gone = np.r_[np.full(total, _NOTHING), np.asarray(tokens)[genes]]
    return CellsWithoutGenes(cells, np.r_[np.arange(total), rows], {}, gone)


def self_deletion(
    cells: EncodedCells,
    is_goal: np.ndarray,
    tokens: Sequence[int],
    embed: Callable[[CellsWithoutGenes], np.ndarray],
) -> pd.DataFrame:
    """Compares goal minus start of deletions with the same along states without the deleted gene.

    Goal minus start is what deleting a gene adds to the cosine with the goal's mean, minus what it
    adds to that with the start's. Where states differ in the gene itself, deleting it takes cells
    from one to the other by that alone. Left out of the states' cells too, this part is gone.

    Args:
      cells: of the start and the goal, as the model sees them.
      is_goal: bool [cells].
      tokens: of the genes.
      embed: returns the embeddings [N, D] of N cells.

    Returns:
      One row for each gene: perturbed (gene id), Self_deletion_cells (of the start, that have it),
      Sampled_goal_minus_start, Self_deleted_goal_minus_start, Self_deleted_fraction.
    """
    edited = without_each(cells, tokens)
    vectors = np.asarray(embed(edited), np.float64)
    plain, rows = vectors[: len(is_goal)], []
    for token in tokens:
        own = np.flatnonzero(edited.gone == token)
        without = plain.copy()
        without[edited.rows[own]] = vectors[own]
        of_start = edited.rows[own][~is_goal[edited.rows[own]]]
        shifts = [
            _towards_goal(without[of_start], states, is_goal)
            - _towards_goal(plain[of_start], states, is_goal)
            for states in (plain, without)
        ]
        rows.append((cells.vocabulary.gene_id_of(int(token)), len(of_start), *map(_mean, shifts)))
    table = pd.DataFrame(rows, columns=_COLUMNS)
    sampled, kept = table["Sampled_goal_minus_start"], table["Self_deleted_goal_minus_start"]
    return table.assign(Self_deleted_fraction=kept / sampled)


_COLUMNS = ["perturbed", "Self_deletion_cells", "Sampled_goal_minus_start",
            "Self_deleted_goal_minus_start"]  # fmt: skip


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _towards_goal(cells_CD: np.ndarray, states_CD: np.ndarray, is_goal: np.ndarray) -> np.ndarray:
    """Returns [cells] the cosine with the goal's mean minus that with the start's."""
    means = np.stack([states_CD[is_goal].mean(axis=0), states_CD[~is_goal].mean(axis=0)])
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (cells_CD, means)]
    return unit[0] @ (unit[1][0] - unit[1][1])
