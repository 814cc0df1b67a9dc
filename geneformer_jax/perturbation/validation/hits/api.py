"""Statistics of perturbations beside the hits of a screen, for notebooks and the command."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.common.arguments import require_type, require_whole
from geneformer_jax.perturbation.statistics.shifts import SIGNIFICANT
from geneformer_jax.perturbation.validation.config import SEED
from geneformer_jax.perturbation.validation.hits.lists import Compared, compare_lists
from geneformer_jax.perturbation.validation.hits.score import score_hits

_LACKS = (
    "no gene is called, so that calls cannot be right or wrong; areas judge the order of all genes"
)


@dataclass(frozen=True, eq=False)
class HitValidation:
    """How well a statistic of perturbations finds the hits of a screen.

    Attributes:
      verdict: sentences, the answer first.
      metrics: see `score_hits`.
      genes: see `Compared`.
      statistic: name of it.
      left_out: reason -> number of genes.
    """

    verdict: list[str]
    metrics: pd.DataFrame
    genes: pd.DataFrame
    statistic: str
    left_out: dict[str, int]


def validate_hits(
    statistics: pd.DataFrame | Path | str,
    hits: pd.DataFrame | Path | str,
    *,
    score: str = "",
    min_cells: int = 10,
    seed: int = SEED,
) -> HitValidation:
    """Compares a statistic of perturbations with the hits of a screen.

    A gene is called by goal_state_shift where it is significant and its shift is towards the goal,
    by vs_null where it is significant, and by mixture_model where it is of the impact component.

    Args:
      statistics: a table of goal_state_shift, vs_null or mixture_model, its .parquet or .csv, or
        the folder of a perturbation (its goal_state_shift is taken).
      hits: a table with a column of genes (symbols or Ensembl ids), and `hit` (yes or no) or
        `score` (the highest tenth are taken for hits); genes that it does not list take no part.
        Or genes alone, which are the hits, all others being none. Or the path of either.
      score: column by which genes are ordered for areas, the higher the likelier a hit; by default
        the shift of the statistic. Controls add some, such as Like_rank_shift.
      min_cells: genes edited in fewer cells are left out.
      seed: of the control's draws.

    Returns:
      Verdict, metrics and genes.

    Raises:
      InputError: a table cannot be read or has another form; or hits and other genes are not both
        among the genes that the two share.
    """
    require_whole("seed", seed, 0)
    require_whole("min_cells", min_cells, 1)
    require_type("score", score, str, "give the name of a column")
    compared = compare_lists(statistics, hits, score, min_cells)
    metrics = score_hits(compared.genes, seed)
    verdict = describe_hits(compared, metrics)
    return HitValidation(verdict, metrics, *compared)


def describe_hits(compared: Compared, metrics: pd.DataFrame) -> list[str]:
    """Returns the verdict in one sentence, and then what it rests on."""
    rows, genes = metrics.set_index("protocol"), compared.genes
    judged = [name for name in ("ppv", "roc_auc") if np.isfinite(rows.loc[name, "prediction"])]
    beaten = [name for name in judged if rows.loc[name, "pval"] * len(judged) < SIGNIFICANT]
    head = "Hits are found" if beaten else "No more hits are found"
    than = "more often than among genes of like rank" if beaten else "than among genes of like rank"
    told = ", ".join(
        f"{name} {rows.loc[name, 'prediction']:.3f} against {rows.loc[name, 'like_rank']:.3f} "
        f"(p {rows.loc[name, 'pval']:.2g})"
        for name in judged
    )
    lines = [
        f"{head} {than}: {told}",
        f"{len(genes):,} genes are compared, {genes['hit'].sum():,} of them hits, "
        f"{genes['called'].sum():,} called by {compared.statistic}",
        *(f"genes left out, {reason}: {number:,}" for reason, number in compared.left_out.items()),
    ]
    return lines if genes["called"].any() else [*lines, _LACKS]
