"""What cells of a reference and a query are compared by: embeddings, and components of counts."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA

from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.counts import are_alike

EMBEDDING, COUNTS = "Geneformer", "PCA of log counts"
COMPONENTS = 50

Expression = Callable[[np.ndarray], sparse.csr_matrix]


class Features(NamedTuple):
    """One representation of both.

    Attributes:
      reference_RD: float [cells, D].
      query_QD: float [cells, D], in the same space.
    """

    reference_RD: np.ndarray
    query_QD: np.ndarray


def count_features(reference: Expression, query: Expression, cells: tuple[int, int]) -> Features:
    """Returns the first principal components of log(1 + counts per 10,000).

    Axes are those of the reference's cells; the query's cells are put on them.

    Args:
      reference, query: give the log expression [cells, V] of cells by their numbers.
      cells: how many there are of each.
    """
    own, other = (read(np.arange(n)) for read, n in zip((reference, query), cells, strict=True))
    # Genes that no cell of the reference has would only make the solver slow.
    seen = np.flatnonzero(np.diff(own.tocsc().indptr))
    components = min(COMPONENTS, own.shape[0] - 1, len(seen) - 1)
    if components < 1 or are_alike(own):
        raise InputError(
            f"the reference has {own.shape[0]} cells with {len(seen)} genes of the vocabulary, "
            f"{'all alike' if are_alike(own) else 'too few'}: they have no principal components; "
            "give more"
        )
    axes = PCA(components, svd_solver="arpack", random_state=0).fit(own[:, seen])
    return Features(axes.transform(own[:, seen]), axes.transform(other[:, seen]))
