"""Cells, or the genes in them, with their labels, as a classifier learns from them."""

from dataclasses import dataclass

import numpy as np

# Number of the class of what has none, as in the original.
UNLABELLED = -100


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """Some cells of a source, with labels.

    Attributes:
      rows: int64 [n] numbers of the cells in their source.
      labels: of cells: int32 [n] class numbers, or float32 [n, K] values of K targets, NaN where
        missing; of genes: int32 [V] class of each token, UNLABELLED elsewhere.
    """

    rows: np.ndarray
    labels: np.ndarray
