"""Classifiers of scikit-learn that learn a reference's labels, and how far a query lies from it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

NEIGHBOURS, PROTOTYPES, REGRESSION = "neighbours", "prototypes", "regression"
MAX_NEIGHBOURS = 15
# Of the reference's own cells so many lie nearer to the others than the limit.
TRUSTED_QUANTILE = 0.99

# Name -> classifier for a number of cells.
CLASSIFIERS: dict[str, Callable[[int], ClassifierMixin]] = {
    NEIGHBOURS: lambda cells: KNeighborsClassifier(_neighbours(cells)),
    PROTOTYPES: lambda cells: NearestCentroid(),
    REGRESSION: lambda cells: make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
}


class Distances(NamedTuple):
    """How far the cells of a query lie from a reference.

    Attributes:
      query: float64 [cells] mean distance to the nearest cells of the reference, at most 15.
      limit: the distance within which 99 % of the reference's cells lie from the others.
    """

    query: np.ndarray
    limit: float

    @property
    def is_trusted(self) -> np.ndarray:
        """bool [cells], whether a cell is as near to the reference as its own cells are."""
        return self.query <= self.limit


def measure_distances(reference_RD: np.ndarray, query_QD: np.ndarray) -> Distances:
    """Measures how far a query lies from a reference, by Euclidean distance.

    A label is carried over even to a cell that is unlike any of the reference; its distance tells.
    """
    nearest = NearestNeighbors(n_neighbors=_neighbours(len(reference_RD))).fit(reference_RD)
    # Asked of its own cells, the index leaves out each cell itself.
    own, _ = nearest.kneighbors()
    other, _ = nearest.kneighbors(query_QD)
    limit = float(np.quantile(own.mean(axis=1), TRUSTED_QUANTILE))
    return Distances(other.mean(axis=1), limit)


def _neighbours(cells: int) -> int:
    return max(min(MAX_NEIGHBOURS, cells // 2), 1)
