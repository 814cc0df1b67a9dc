"""How well a representation of cells separates known labels, beside simple baselines.

Zero-shot embeddings have to be compared with what a principal component analysis of the counts
gives, and both with chance, before anything is read into them.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.counts import are_alike, counts_per_10k
from geneformer_jax.inference.finite import require_finite

NEIGHBOURS = 15
FOLDS = 5


class LabelAccuracy(NamedTuple):
    """Cross-validated accuracy of a nearest-neighbour classifier, with its chance levels.

    Attributes:
      accuracy: fraction of cells whose label the neighbours in other folds vote for.
      majority: fraction of the commonest label, what always naming it would score.
      shuffled: the same classifier on labels dealt out at random.
      cells: cells that took part.
      classes: labels that took part.
      left_out: cells without a label, or with a label that has fewer cells than there are folds.
    """

    accuracy: float
    majority: float
    shuffled: float
    cells: int
    classes: int
    left_out: int


def label_accuracy(features: np.ndarray, labels: pd.Series, seed: int = 0) -> LabelAccuracy:
    """Measures how well the nearest neighbours of a cell name its label.

    15 neighbours by Euclidean distance, 5 stratified folds.

    Args:
      features: [cells, D], for example `.obsm["X_geneformer"]`.
      labels: [cells] categories, missing where unknown.
      seed: of the folds and of the shuffled labels.

    Raises:
      InputError: fewer than two labels have enough cells, or a feature is NaN or infinite.
    """
    require_finite(features, labels.index, "features")
    sizes = frequent_labels(labels)
    labels = labels.astype("object")
    kept = labels.isin(sizes.index).to_numpy()
    features, names = np.asarray(features)[kept], labels[kept].astype(str).to_numpy()
    shuffled = np.random.default_rng(seed).permutation(names)
    return LabelAccuracy(
        accuracy=float(named_rightly(features, names, seed).mean()),
        majority=float(sizes.max() / kept.sum()),
        shuffled=float(named_rightly(features, shuffled, seed).mean()),
        cells=int(kept.sum()),
        classes=len(sizes),
        left_out=int((~kept).sum()),
    )


def frequent_labels(labels: pd.Series) -> pd.Series:
    """Returns label -> number of cells, of those that have enough for an accuracy.

    Args:
      labels: [cells] categories, missing where unknown.

    Raises:
      InputError: fewer than two labels have enough cells.
    """
    sizes = labels.astype("object").value_counts()
    frequent = sizes[sizes >= FOLDS]
    if len(frequent) < 2:
        raise InputError(
            f"column {labels.name} has {len(frequent)} labels with at least {FOLDS} cells, but an "
            "accuracy needs two; name a column with more labels"
        )
    return frequent


def named_rightly(features: np.ndarray, names: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns bool [cells], whether the neighbours of a cell in other folds vote for its label.

    Args:
      features: [cells, D].
      names: text [cells], each of at least 5 cells.
      seed: of the folds.
    """
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classifier = KNeighborsClassifier(min(NEIGHBOURS, len(names) // 2))
    return cross_val_predict(classifier, features, names, cv=folds) == names


def log_count_components(
    counts: sparse.csr_matrix, totals: np.ndarray, components: int = 50, seed: int = 0
) -> np.ndarray:
    """Returns the first principal components of log(1 + counts per 10,000).

    Args:
      counts: [cells, genes] raw counts.
      totals: [cells] all counts of each cell.
      components: number of them; fewer where there are fewer cells or genes.
      seed: of the solver's start.

    Returns:
      float64 [cells, components]; a single one, 0 for all cells, where all cells are alike.
    """
    logged = counts_per_10k(counts, totals).log1p()
    components = min(components, *(size - 1 for size in logged.shape))
    if not components or are_alike(logged):
        return np.zeros((len(totals), 1))
    return PCA(components, svd_solver="arpack", random_state=seed).fit_transform(logged)
