"""How well embeddings of cells keep what is known about them, beside simple baselines.

Zero-shot embeddings of Geneformer are known to lose to simple baselines on many data sets
(Kedzierska et al. 2025), so each measure is also taken of the principal components of the counts
and of a model of the same shape with random weights: only what lies above both was learned.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.label_accuracy import NEIGHBOURS, label_accuracy
from geneformer_jax.inference.finite import require_finite
from geneformer_jax.inference.random_control import MODEL

MAX_MEASURED_CELLS = 5_000
ACCURACY = f"accuracy of {NEIGHBOURS} neighbours"
# Neighbours in scIB's graphs.
_GRAPH_NEIGHBOURS = 90
# Differences below this are no more than what another draw of cells would change.
_LEVEL = 0.01


def has_scib() -> bool:
    """Whether the optional package scib-metrics is installed."""
    return importlib.util.find_spec("scib_metrics") is not None


def check_labels(obs: pd.DataFrame, column: str, batch_key: str = "") -> None:
    """Raises InputError if `measure_quality` would, before any cell is embedded."""
    known = _known(obs, column, batch_key)
    if obs.loc[known, column].nunique() < 2:
        raise InputError(
            f'column "{column}" has fewer than two different values with two cells or more; '
            "quality needs two"
        )
    if batch_key and obs.loc[known, batch_key].nunique() < 2:
        raise InputError(f'batch column "{batch_key}" has fewer than two different values')


def measure_quality(
    representations: Mapping[str, np.ndarray], obs: pd.DataFrame, column: str, batch_key: str = ""
) -> pd.DataFrame:
    """Measures how well representations of the same cells keep the labels of a column.

    Always: cross-validated accuracy of nearest neighbours; silhouette, rescaled to 0..1; normalised
    mutual information (NMI) and adjusted Rand index (ARI) between the column and as many k-means
    clusters as it has values. With the package scib-metrics also scIB's cLISI and the NMI and ARI
    of its Leiden clusters, and, if a batch column is named, its isolated labels, iLISI, graph
    connectivity, silhouette of batches and kBET, which reward mixed batches.

    Args:
      representations: name -> [cells, D].
      obs: [cells].
      column: labels; cells without one or alone with theirs are left out.
      batch_key: labels that should not show, such as donors; "" for none.

    Returns:
      Float table [representations, measures], each from 0 (bad) to 1 (good); ARI may fall below 0.

    Raises:
      InputError: too few labels, or a representation holds NaN or infinity.
    """
    check_labels(obs, column, batch_key)
    for name, features in representations.items():
        require_finite(features, obs.index, name)
    known = _known(obs, column, batch_key)
    labels = obs.loc[known, column].astype(str)
    batches = obs.loc[known, batch_key].astype(str).to_numpy() if batch_key else None
    table = {}
    for name, features in representations.items():
        features = np.ascontiguousarray(np.asarray(features)[known], np.float32)
        measures = _simple_measures(features, labels)
        if has_scib():
            measures |= _scib_measures(features, labels.to_numpy(), batches)
        table[name] = measures
    return pd.DataFrame(table).T


def describe_quality(table: pd.DataFrame, column: str) -> list[str]:
    """Returns the table as lines, and where the model wins and loses."""
    lines = [f"{column}: quality of representations, 0 (bad) to 1 (good)"]
    lines += table.T.round(3).to_string().splitlines()
    for measure in table.columns:
        ours, others = table.loc[MODEL, measure], table[measure].drop(index=MODEL)
        above = others[others > ours + _LEVEL].sort_values(ascending=False)
        level = others[(others - ours).abs() <= _LEVEL]
        if np.isnan(ours) or others.isna().all():
            verdict = "cannot be measured on these cells"
        elif len(above):
            verdict = f"the model LOSES to {_listed(above)}: it has {ours:.3f}"
        elif len(level):
            verdict = f"the model is level with {_listed(level)}: it has {ours:.3f}"
        else:
            verdict = f"the model is above every baseline: it has {ours:.3f}"
        lines.append(f"  {measure}: {verdict}")
    return lines


def conclude_quality(table: pd.DataFrame, column: str) -> str:
    """Returns a sentence on what to conclude from a table of `measure_quality`."""
    ours, others = table.loc[MODEL], table.drop(index=MODEL)
    measured = ours.notna() & others.notna().all()
    better = (others < ours - _LEVEL).loc[:, measured].sum(axis=1)
    counted = " and ".join(f"{name} in {wins}" for name, wins in better.items())
    text = f"{column}: of {measured.sum()} measures the model is better than {counted}"
    if (better > measured.sum() / 2).all():
        return f"{text}."
    return f"{text}; only what lies above every one of them was learned."


def _listed(values: pd.Series) -> str:
    return " and ".join(f"{name} ({value:.3f})" for name, value in values.items())


def _simple_measures(features: np.ndarray, labels: pd.Series) -> dict[str, float]:
    classes = labels.nunique()
    clusters = KMeans(classes, n_init=4, random_state=0).fit_predict(features)
    return {
        ACCURACY: label_accuracy(features, labels).accuracy,
        "silhouette": (float(silhouette_score(features, labels)) + 1) / 2,
        "NMI of k-means": float(normalized_mutual_info_score(labels, clusters)),
        "ARI of k-means": float(adjusted_rand_score(labels, clusters)),
    }


def _scib_measures(
    features: np.ndarray, labels: np.ndarray, batches: np.ndarray | None
) -> dict[str, float]:
    # Imported here: it is an optional package.
    import scib_metrics

    graph = _neighbours(features)
    leiden = scib_metrics.nmi_ari_cluster_labels_leiden(graph, labels)
    measures: dict[str, Any] = {
        "scIB: cLISI": scib_metrics.clisi_knn(graph, labels),
        "scIB: NMI of Leiden": leiden["nmi"],
        "scIB: ARI of Leiden": leiden["ari"],
    }
    if batches is not None:
        measures |= {
            "scIB: isolated labels": scib_metrics.isolated_labels(features, labels, batches),
            "scIB: iLISI": scib_metrics.ilisi_knn(graph, batches),
            "scIB: graph connectivity": scib_metrics.graph_connectivity(graph, labels),
            "scIB: batch silhouette": scib_metrics.silhouette_batch(features, labels, batches),
            "scIB: kBET": scib_metrics.kbet_per_label(graph, batches, labels),
        }
    return {name: float(value) for name, value in measures.items()}


def _neighbours(features: np.ndarray) -> Any:
    from scib_metrics.nearest_neighbors import NeighborsResults

    count = min(_GRAPH_NEIGHBOURS, len(features))
    distances, indices = NearestNeighbors(n_neighbors=count - 1).fit(features).kneighbors()
    # scIB counts a cell as its own first neighbour.
    own = np.arange(len(features))[:, None]
    return NeighborsResults(
        indices=np.hstack([own, indices]), distances=np.hstack([np.zeros(own.shape), distances])
    )


def _known(obs: pd.DataFrame, column: str, batch_key: str) -> np.ndarray:
    """Which cells have a label that another cell has too, and a batch."""
    known = obs[column].notna()
    if batch_key:
        known &= obs[batch_key].notna()
    sizes = obs.loc[known, column].astype(str).value_counts()
    shared = sizes.index[sizes > 1]
    return (known & obs[column].astype(str).isin(shared)).to_numpy()
