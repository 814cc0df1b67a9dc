"""Mixture model of shifts: which edits have an impact at all."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.mixture import GaussianMixture

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.statistics.moments import GeneIndex, RunningMoments
from geneformer_jax.perturbation.statistics.shifts import Pieces

_MIN_EDITS = 3


class Mixture(NamedTuple):
    """Two normal components of the mean shifts of edits, the one with the lower mean first.

    The first is the impact: its edits leave the least cosine similarity.
    """

    means: np.ndarray
    deviations: np.ndarray
    weights: np.ndarray

    def impact(self, values: np.ndarray) -> np.ndarray:
        """bool [values], which belong to the impact component.

        As in the original, a value below the impact's mean always does and one above the other
        mean never, which the likelier component alone would not guarantee.
        """
        low, high = (
            np.log(self.weights[i] / self.deviations[i])
            - ((values - self.means[i]) / self.deviations[i]) ** 2 / 2
            for i in range(2)
        )
        between = (values >= self.means[0]) & (values <= self.means[1])
        return np.where(between, low > high, values < self.means[0])


def fit_mixture(means: np.ndarray) -> Mixture:
    """Fits two normal components to the mean shifts [edits], in the order of the edits' ids.

    scikit-learn's GaussianMixture with the original's settings. The original takes component 0 for
    the impact, whatever its mean; here it is the one with the lower mean.

    Raises:
      InputError: too few edits, or they all have the same mean shift.
    """
    if len(means) < _MIN_EDITS or np.ptp(means) == 0:
        raise InputError(
            f"a mixture model needs at least {_MIN_EDITS} edits with different mean shifts, but "
            f"there are {len(np.unique(means))}; perturb more genes"
        )
    fitted = GaussianMixture(2, random_state=0).fit(means[:, None])
    order = np.argsort(fitted.means_[:, 0])
    deviations = np.sqrt(fitted.covariances_[:, 0, 0])
    return Mixture(fitted.means_[order, 0], deviations[order], fitted.weights_[order])


def mixture_model(pieces: Pieces, of: str = "perturbed") -> tuple[pd.DataFrame, Mixture]:
    """Which edits have an impact: their mean shift belongs to the lower of two components.

    Args:
      pieces: rows of one measure and state (see `shifts`).
      of: "perturbed", or "affected": then rows are shifts of genes by one edit, and the table
        names the genes that the edit has an impact on.

    Returns:
      (One row for each edit or affected gene, those with impact first, then by shift: Gene_name,
      Ensembl_ID, Test_avg_shift, Impact_component (1 = impact), Impact_component_percent (of its
      cells), N_Detections; the fitted components).

    Raises:
      InputError: as `fit_mixture`.
    """
    edits, running = GeneIndex(), RunningMoments()
    for piece in pieces:
        numbers = edits.add(piece[of], piece[f"{of}_symbol"])
        running.add(numbers, piece["value"].to_numpy(np.float64))
    moments = running.result()
    # The fit starts from a random choice of rows, so they must always stand in one order.
    fitted = fit_mixture(moments.means[np.argsort(edits.names)])
    hits = np.zeros(len(edits))
    for piece in pieces:
        impact = fitted.impact(piece["value"].to_numpy(np.float64))
        hits += np.bincount(edits.find(piece[of]), impact, len(edits))
    table = pd.DataFrame(
        {
            "Gene_name": edits.symbols,
            "Ensembl_ID": edits.names,
            "Test_avg_shift": moments.means,
            "Impact_component": fitted.impact(moments.means).astype(int),
            "Impact_component_percent": 100 * hits / moments.counts,
            "N_Detections": moments.counts,
        }
    )
    order = ["Impact_component", "Test_avg_shift", "Ensembl_ID"]
    return table.sort_values(order, ascending=[False, True, True], ignore_index=True), fitted
