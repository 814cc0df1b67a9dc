"""What some edits did, as arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Shifts(NamedTuple):
    """What some edits did.

    Attributes:
      numbers: int64 [E] number of each edit in the plan.
      cells: int32 [E] the perturbed cell.
      sets_EK: int32 the perturbed genes, filled up with -1.
      ranks_E: int32 rank of the first of them in the cell, from 1; 0 where it is not in sight.
      values_EM: float32 the measures, in the order of `ForwardSpec.measures`; behind them the
        vectors, where `ForwardSpec.cell_vectors` asks for these.
      gene_edits: int32 [N] which of these edits a value of a gene belongs to.
      affected: int32 [N] token of the gene.
      gene_values: float32 [N] its cosine.
    """

    numbers: np.ndarray
    cells: np.ndarray
    sets_EK: np.ndarray
    ranks_E: np.ndarray
    values_EM: np.ndarray
    gene_edits: np.ndarray
    affected: np.ndarray
    gene_values: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["Shifts"]) -> "Shifts":
        """Puts shifts together, in the order of the plan."""
        first = np.cumsum([0, *(len(part.numbers) for part in parts)])
        gene_edits = [part.gene_edits + begin for part, begin in zip(parts, first, strict=False)]
        *of_edits, _, affected, gene_values = map(np.concatenate, zip(*parts, strict=True))
        numbers = of_edits[0]
        order = np.argsort(numbers)
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        gene_edits = place[np.concatenate(gene_edits)]
        genes = np.argsort(gene_edits, kind="stable")
        return cls(
            *(each[order] for each in of_edits),
            gene_edits[genes],
            affected[genes],
            gene_values[genes],
        )
