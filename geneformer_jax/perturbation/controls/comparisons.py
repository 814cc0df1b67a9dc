"""Controls that set the list of shifts beside another list: without a model, or of ranks alone."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from geneformer_jax.perturbation.controls.finding import Asked, Finding
from geneformer_jax.perturbation.layout import BASELINES
from geneformer_jax.perturbation.statistics.screen_accuracy import spearman

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
    alone = asked.means(asked.goal, "reranking")
    found = correlate(asked.shifts, alone)
    result = say_correlation(
        "shifts and what they are with nothing removed, only later genes moved up,", found
    )
    columns = pd.DataFrame({"Reranking_shift": alone}, asked.within.edits.names)
    headings = {"Reranking_shift": "mean shift if the gene stays and later genes move up by one"}
    verdict = "the order is that of ranks" if found[0] > ALIKE else "the order is not that of ranks"
    verdict = TOO_FEW if np.isnan(found[0]) else verdict
    asks = "Is it the gene, or only its rank?"
    return Finding(asks, result, verdict, columns, headings, iter(()))


def differential_expression(asked: Asked) -> Finding:
    """Asks whether the list is that of genes which differ between the states anyway."""
    columns = _baselines(asked, ["DE_effect_size", "DE_pval", "DE_FDR"])
    what = f"the difference in expression between {asked.goal} and {_reference(asked)}"
    result = _beside(asked, what, columns["DE_effect_size"].to_numpy(float))
    headings = {
        "DE_effect_size": f"rank-biserial correlation of the gene's rank in cells of {asked.goal} "
        f"and of {_reference(asked)}, from -1 to 1; above 0 it stands higher in {asked.goal}",
        "DE_pval": "Wilcoxon's rank-sum test of that; from the ranks that the model reads, so no "
        "counts are needed",
        "DE_FDR": "the same, adjusted over genes",
    }
    asks = "Would differential expression, without a model, give the same list?"
    return Finding(asks, *result, columns, headings, iter(()))


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
    asks = "Would the covariance of genes, without a model, give the same list?"
    return Finding(asks, *result, columns, headings, iter(()))


def _baselines(asked: Asked, columns: list[str]) -> pd.DataFrame:
    table = pq.read_table(asked.folder / BASELINES, columns=["perturbed", *columns]).to_pandas()
    return table.set_index("perturbed").reindex(asked.within.edits.names)


def _beside(asked: Asked, what: str, values_E: np.ndarray) -> tuple[str, str]:
    """Returns (result, verdict) of our list, and that minus the start, beside a baseline."""
    found = {"shifts": correlate(asked.shifts, values_E)}
    if asked.has_start:
        away = asked.shifts - asked.means(asked.start)
        found["shifts towards goal minus start"] = correlate(away, values_E)
    result = "; ".join(say_correlation(f"{name} and {what}", each) for name, each in found.items())
    strongest = np.abs([value for value, _ in found.values()])
    if np.isnan(strongest).all():
        return result, TOO_FEW
    adds = np.nanmax(strongest) <= SAME
    return result, "the list is another one" if adds else "the model adds nothing there"


def _reference(asked: Asked) -> str:
    return asked.start if asked.has_start else "all other states"
