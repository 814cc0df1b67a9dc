"""Scores of predictions, and of what stands in their place: controls that they must beat.

Everything is scored against one half of the measured cells, and so is the other half: what the
screen says of itself is the most that a prediction can reach. Scores of both halves are averaged.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_jax.perturbation.statistics.shifts import SIGNIFICANT
from geneformer_jax.perturbation.validation.scoring.effects import Predicted
from geneformer_jax.perturbation.validation.scoring.metrics import (
    gene_areas,
    held_out_correlations,
    mean_of_others,
    retrieval,
)
from geneformer_jax.perturbation.validation.screen.expression import HALVES, Differential

PREDICTION, LIKE_RANK = "prediction", "like_rank"
# scPertEval's names of a mean over perturbations (of genes: without the one at hand), and of a
# second half.
MEAN, SPLIT_HALF = "all_perturbed_mean", "tech_dup"
SOURCES = (PREDICTION, LIKE_RANK, MEAN, SPLIT_HALF)
_SPECIFIC = "_pert"
CORRELATION = "pearson_abs_lfc"

# Source -> candidates [P, X] of it, whose scores are averaged.
Candidates = Mapping[str, list[np.ndarray]]


class Effects(NamedTuple):
    """What is compared of P perturbations.

    Attributes:
      names: of the perturbations.
      targets: int64 [P] tokens.
      like_rank: int64 [P, K] tokens of genes of like rank.
      predicted: effects of all of these.
      measured: float64 [2, P, D] shifts of embeddings in each half.
      differential: expression in each half.
    """

    names: tuple[str, ...]
    targets: np.ndarray
    like_rank: np.ndarray
    predicted: Predicted
    measured: np.ndarray
    differential: tuple[Differential, ...]

    def of_edits(self, values_EX: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Returns what the predictions are, and those of genes of like rank in their place."""
        rows = self.predicted.rows
        return {
            PREDICTION: [values_EX[rows(self.targets)]],
            LIKE_RANK: [values_EX[rows(each)] for each in self.like_rank.T],
        }


def score(effects: Effects, seed: int) -> pd.DataFrame:
    """Scores the predictions and their controls.

    Returns:
      One row for each `protocol`, `perturbation` and `source`, with its mean `value` over the two
      halves; without those that have none.
    """
    halves = range(HALVES)
    rows = [row for half in halves for kind in _KINDS for row in kind(effects, half, seed)]
    table = pd.DataFrame(rows, columns=["protocol", "source", "perturbation", "value"])
    keys = ["protocol", "perturbation", "source"]
    return table.dropna().groupby(keys, sort=False)["value"].mean().reset_index()


Row = tuple[str, str, str, float]


def _rows(
    effects: Effects, source: str, scores: Mapping[str, np.ndarray], ending: str = ""
) -> Iterator[Row]:
    for protocol, values in scores.items():
        for name, value in zip(effects.names, values, strict=True):
            yield protocol + ending, source, name, float(value)


def _of_embeddings(effects: Effects, half: int, seed: int) -> Iterator[Row]:
    truth, other = effects.measured[half], effects.measured[1 - half]
    # The same for all, which is at chance; without the one at hand it would be below.
    mean = np.broadcast_to(other.mean(axis=0), other.shape)
    candidates = effects.of_edits(effects.predicted.shifts)
    candidates |= {MEAN: [mean], SPLIT_HALF: [other]}
    for source, each in candidates.items():
        for values in each:
            yield from _rows(effects, source, retrieval(values, truth))
            if source != MEAN:
                specific = retrieval(_centred(values), _centred(truth))
                yield from _rows(effects, source, specific, _SPECIFIC)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=0)


def _of_genes(effects: Effects, half: int, seed: int) -> Iterator[Row]:
    """Scores how changed genes are told; the perturbed gene itself takes no part."""
    is_changed = effects.differential[half].rates < SIGNIFICANT
    other = np.abs(effects.differential[1 - half].statistics)
    candidates = effects.of_edits(effects.predicted.gene_shifts)
    candidates |= {MEAN: [mean_of_others(other)], SPLIT_HALF: [other]}
    is_known = _known_to_all(effects, candidates, half)
    everywhere = effects.of_edits(mean_of_others(effects.predicted.gene_shifts))
    everywhere |= {SPLIT_HALF: [mean_of_others(other)]}
    for source, each in candidates.items():
        for place, values in enumerate(each):
            yield from _areas(effects, source, values, is_changed, is_known)
            if source in everywhere:
                specific = values - everywhere[source][place]
                yield from _areas(effects, source, specific, is_changed, is_known, _SPECIFIC)


def _known_to_all(effects: Effects, candidates: Candidates, half: int) -> np.ndarray:
    """bool [P, V], genes that each candidate and the measurement say something of."""
    known = np.isfinite(effects.differential[half].rates)
    for each in candidates.values():
        known &= np.all([np.isfinite(values) for values in each], axis=0)
    known[np.arange(len(known)), effects.targets] = False
    return known


def _areas(
    effects: Effects,
    source: str,
    values: np.ndarray,
    is_changed: np.ndarray,
    is_known: np.ndarray,
    ending: str = "",
) -> Iterator[Row]:
    values = np.where(is_known, values, np.nan)
    areas = [gene_areas(*each) for each in zip(values, is_changed, strict=True)]
    scores = {name: np.array([each[name] for each in areas]) for name in areas[0]}
    return _rows(effects, source, scores, ending)


def _of_changes(effects: Effects, half: int, seed: int) -> Iterator[Row]:
    """Scores how well changes are predicted from the gene's identity and from each candidate."""
    truth, other = (np.abs(effects.differential[h].fold_changes) for h in (half, 1 - half))
    candidates = effects.of_edits(effects.predicted.gene_shifts) | {SPLIT_HALF: [other]}
    truth = np.where(_known_to_all(effects, candidates, half), truth, np.nan)
    alone = held_out_correlations(truth, other, None, seed)
    yield from _rows(effects, MEAN, {CORRELATION: alone})
    for source, each in candidates.items():
        for values in each:
            yield from _rows(
                effects, source, {CORRELATION: held_out_correlations(truth, other, values, seed)}
            )


_KINDS = (_of_embeddings, _of_genes, _of_changes)
