"""Affected genes: how far each is moved by any edit at all, and what is left without that."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_jax.perturbation.statistics.moments import (
    GeneIndex,
    RunningMoments,
    fraction_between,
)

MIN_EDITS = 20


class Responsiveness(NamedTuple):
    """How genes respond to edits at large.

    Attributes:
      means: by affected gene (or "cell_emb"), the mean over edits of its mean cosine.
      edits: number of edits.
      explained: fraction of the variance of the means of pairs that lies between affected genes.
    """

    means: pd.Series
    edits: int
    explained: float


def responsiveness(pieces: Iterable[pd.DataFrame], min_cells: int) -> Responsiveness:
    """Measures how genes respond to edits at large; every edit counts the same.

    Args:
      pieces: of the table `aggregate_gene_shifts`.
      min_cells: pairs in fewer cells are left out.
    """
    genes, running, edits = GeneIndex(), RunningMoments(), set()
    for piece in pieces:
        piece = piece[piece["N_Detections"] >= min_cells]
        numbers = genes.add(piece["Affected"], piece["Affected"])
        running.add(numbers, piece["Cosine_sim_mean"].to_numpy(np.float64))
        edits.update(piece["Ensembl_ID"].unique())
    moments = running.result().dense(len(genes))
    return Responsiveness(
        pd.Series(moments.means, genes.names), len(edits), fraction_between(moments)
    )


def without_responsiveness(
    pieces: Iterable[pd.DataFrame], means: pd.Series
) -> Iterator[pd.DataFrame]:
    """Adds Universal_mean, that of the affected gene, and Minus_universal, what the edit adds."""
    for piece in pieces:
        universal = piece["Affected"].astype(str).map(means)
        yield piece.assign(
            Universal_mean=universal, Minus_universal=piece["Cosine_sim_mean"] - universal
        )


def describe(found: Responsiveness) -> tuple[str, str]:
    """Returns (result, verdict) for the table of controls."""
    result = (
        f"{found.explained:.0%} of the variance of the shifts of pairs is which gene is affected, "
        f"whatever is edited ("
        f"over {found.edits:,} edits)"
    )
    verdict = (
        "read Minus_universal: most of a list of affected genes is the same for every edit"
        if found.explained > 0.5
        else "Minus_universal shows what is the edit's own"
    )
    return result, verdict
