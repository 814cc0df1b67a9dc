"""Controls that set the list of shifts beside another list: without a model, or of ranks alone."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from geneformer_jax.perturbation.controls.finding import Asked, Finding
from geneformer_jax.perturbation.layout import BASELINES, RANDOM_RUN, WITHOUT_OWN
from geneformer_jax.perturbation.statistics.accuracy.screen_accuracy import spearman
from geneformer_jax.perturbation.statistics.rank_effect import variance_by_rank
from geneformer_jax.perturbation.statistics.tables import read_table

ALIKE, SAME = 0.7, 0.9
TOO_FEW = "too few genes to tell"


def correlate(first_E: np.ndarray, second_E: np.ndarray) -> tuple[float, int]:
    """Returns (Spearman's correlation of genes that have both values, number of them).

    NaN with fewer than three genes.
    """
    both = np.isfinite(first_E) & np.isfinite(second_E)
    few = both.sum() < 3
    return np.nan if few else spearman(first_E[both], second_E[both]), int(both.sum())


def say_correlation(what: str, found: tuple[float, int]) -> str:
    """Says how two lists correlate, or that there is too little to tell."""
    value, genes = found
    if np.isnan(value):
        return f"{what} cannot be compared: {genes:,} genes have both"
    return f"{what} correlate at {value:.2f} (Spearman, {genes:,} genes)"


def reranking(asked: Asked) -> Finding:
    """Asks how much of the order of genes is that of later genes moving up by one position."""
    alone, rest = (asked.means(asked.goal, part) for part in ("reranking", "removal"))
    found = correlate(asked.shifts, alone)
    result = say_correlation(
        "shifts and what they are with nothing removed, only later genes moved up,", found
    )
    by_rank = variance_by_rank(asked.rows(asked.goal, "measure", "state"))["explained"].iloc[0]
    if np.isfinite(by_rank):
        result += f"; {by_rank:.0%} of the variance within cells is explained by rank alone"
    parts = {"Reranking_shift": alone, "Removal_shift": rest}
    columns = pd.DataFrame(parts, asked.within.edits.names)
    headings = {
        "Reranking_shift": "mean shift if the gene stays and later genes move up by one; "
        "interpolated in large cells",
        "Removal_shift": "the rest of the mean shift: the gene is gone",
    }
    verdict = "the order is that of ranks" if found[0] > ALIKE else "the order is not that of ranks"
    verdict = TOO_FEW if np.isnan(found[0]) else verdict
    return Finding(result, verdict, columns, headings, iter(()))


def differential_expression(asked: Asked) -> Finding:
    """Asks whether the list is that of genes which differ between the states anyway."""
    columns = _baselines(asked, ["DE_effect_size", "DE_pval", "DE_FDR"])
    of = "counts" if asked.has_counts else "ranks"
    what = f"the difference in expression ({of}) between {asked.goal} and {_reference(asked)}"
    result = _beside(asked, what, columns["DE_effect_size"].to_numpy(float))
    values = _OF_COUNTS if asked.has_counts else _OF_RANKS
    headings = {
        "DE_effect_size": f"rank-biserial correlation of {values} in cells of {asked.goal} and of "
        f"{_reference(asked)}, from -1 to 1; above 0 it is higher in {asked.goal}",
        "DE_pval": "Wilcoxon's rank-sum test of that",
        "DE_FDR": "the same, adjusted over genes",
    }
    return Finding(*result, columns, headings, iter(()))


_OF_COUNTS = "log(1 + counts per 10,000) of the gene"
_OF_RANKS = "the gene's place among the ranks that the model reads (the cells came without counts)"


def covariance(asked: Asked) -> Finding:
    """Asks whether the list is that of a linear prediction from unperturbed cells."""
    columns = _baselines(asked, ["Covariance_shift"])
    what = f"what the genes' covariance in cells of {_reference(asked)} predicts"
    result = _beside(asked, what, columns["Covariance_shift"].to_numpy(float))
    headings = {
        "Covariance_shift": "predicted shift of the cell's ranks towards the goal, without a "
        "model: minus the covariance of the gene with the difference of the states, in cells of "
        f"{_reference(asked)}"
    }
    return Finding(*result, columns, headings, iter(()))


def random_weights(asked: Asked) -> Finding:
    """Asks whether a model that has learned nothing would give the same list."""
    random = asked.folder / RANDOM_RUN
    columns = {"Random_weights_shift": asked.means(asked.goal, folder=random)}
    pairs = {"shifts": (asked.shifts, columns["Random_weights_shift"])}
    if asked.has_start:
        ours, theirs = (
            asked.means(asked.goal, folder=each) - asked.means(asked.start, folder=each)
            for each in (asked.folder, random)
        )
        columns["Random_weights_goal_minus_start"] = theirs
        pairs["shifts towards goal minus start"] = ours, theirs
    for part in ("reranking", "removal"):
        if asked.has_parts() and asked.has_parts(random):
            both = [asked.means(asked.goal, part, each) for each in (asked.folder, random)]
            pairs[f"the parts {part} of shifts"] = tuple(both)
    found = {
        f"{name} and those of random weights": correlate(_compared(asked, ours), theirs)
        for name, (ours, theirs) in pairs.items()
    }
    return Finding(
        "; ".join(say_correlation(name, each) for name, each in found.items()),
        _verdict(found.values(), "training adds nothing there", "training changes the list"),
        pd.DataFrame(columns, asked.within.edits.names),
        {name: _OF_RANDOM_WEIGHTS[name] for name in columns},
        iter(()),
    )


_OF_RANDOM_WEIGHTS = {
    "Random_weights_shift": "mean shift of the same edits with random weights",
    "Random_weights_goal_minus_start": "the same minus the shift towards the start",
}


def self_deletion(asked: Asked) -> Finding:
    """Asks how much of the strongest shifts is nothing but the gene's own absence."""
    table = read_table(asked.folder / WITHOUT_OWN).set_index("perturbed")
    kept = table["Self_deleted_fraction"]
    result = (
        f"of the {len(table):,} genes with the strongest goal minus start, the median keeps "
        f"{kept.median():.0%} of it when the states are embedded without the gene "
        f"({kept.min():.0%} to {kept.max():.0%}); {(kept < 0.5).sum():,} keep less than half"
    )
    headings = {
        "Self_deletion_cells": "cells of the start, of those sampled, that have the gene",
        "Sampled_goal_minus_start": "shift towards goal minus start of these, states being means "
        "over the sample",
        "Self_deleted_goal_minus_start": "the same with the gene left out of the states' cells too",
        "Self_deleted_fraction": "the one as a fraction of the other: near 0, the shift says only "
        "that the states differ in this gene",
    }
    verdict = (
        "much of these shifts is the gene's own absence" if kept.median() < 0.5
        else "these shifts are more than the gene's own absence"
    )  # fmt: skip
    columns = table.reindex(asked.within.edits.names)[list(headings)]
    return Finding(result, verdict, columns, headings, iter(()))


def _baselines(asked: Asked, columns: list[str]) -> pd.DataFrame:
    table = read_table(asked.folder / BASELINES, ["perturbed", *columns])
    return table.set_index("perturbed").reindex(asked.within.edits.names)


def _beside(asked: Asked, what: str, values_E: np.ndarray) -> tuple[str, str]:
    """Returns (result, verdict) of our list, and that minus the start, beside a baseline."""
    found = {"shifts": correlate(asked.shifts, values_E)}
    if asked.has_start:
        away = asked.shifts - asked.means(asked.start)
        found["shifts towards goal minus start"] = correlate(away, values_E)
    result = "; ".join(say_correlation(f"{name} and {what}", each) for name, each in found.items())
    return result, _verdict(
        found.values(), "the model adds nothing there", "the list is another one"
    )


def _verdict(found: Iterable[tuple[float, int]], same: str, other: str) -> str:
    strongest = np.abs([value for value, _ in found])
    if np.isnan(strongest).all():
        return TOO_FEW
    return same if np.nanmax(strongest) > SAME else other


def _compared(asked: Asked, values_E: np.ndarray) -> np.ndarray:
    return np.where(asked.is_compared, values_E, np.nan)


def _reference(asked: Asked) -> str:
    return asked.start if asked.has_start else "all other states"
