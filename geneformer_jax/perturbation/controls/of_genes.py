"""Controls of a goal-state shift that its own tables answer, without another pass of the model."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from geneformer_jax.embedding.states import StateEmbeddings
from geneformer_jax.perturbation.controls.comparisons import (
    ALIKE,
    TOO_FEW,
    correlate,
    say_correlation,
)
from geneformer_jax.perturbation.controls.donors import MIN_DONORS, donor_intervals
from geneformer_jax.perturbation.controls.figures import (
    IN_SIGHT,
    PERCENTILE,
    coverage_figure,
    fraction_chart,
    percentile_figure,
    rank_chart,
    rank_figure,
    states_chart,
    states_figure,
)
from geneformer_jax.perturbation.controls.finding import VERSUS_NULL, Asked, Finding
from geneformer_jax.perturbation.controls.matched_null import (
    MAX_DISTANCE,
    MIN_NEIGHBOURS,
    NEIGHBOURS,
    matched_null,
)
from geneformer_jax.perturbation.controls.within_cells import paired_p_values
from geneformer_jax.perturbation.layout import STATES
from geneformer_jax.perturbation.statistics.rank_sums import false_discovery_rates
from geneformer_jax.perturbation.statistics.shifts import SIGNIFICANT
from geneformer_jax.reporting.figures import Drawing

MIN_COVERAGE = 0.25
_OF_SHIFTS = (
    "Shift of each gene against its rank. Above: minus the mean of all edits of the same cell. "
    "Below: minus genes of like rank in the same cell, which is what is tested."
)
_OF_DIFFERENCE = "Difference of the two cell sets by the rank of the gene, which is what is tested."


def like_rank(asked: Asked) -> Finding:
    """Asks whether a gene shifts cells otherwise than genes of like rank and detection do."""
    within, is_difference = asked.within, asked.mode == VERSUS_NULL
    shifts = np.where(asked.is_compared, within.like_rank.means, np.nan)
    shifts = asked.shifts if is_difference else shifts
    table = matched_null(shifts, within.ranks.means, asked.coverage())
    differs = table["Matched_FDR"].to_numpy() < SIGNIFICANT
    compared = int(table["Matched_FDR"].notna().sum())
    result = (
        f"{differs.sum():,} of {compared:,} genes differ from genes of like rank at "
        f"{SIGNIFICANT:.0%}"
    )
    if left := len(table) - compared:
        result += f"; {left:,} have too few cells or neighbours to tell"
    if not compared:
        result = (
            f"no gene can be compared with genes of like rank: too few cells or neighbours for "
            f"all {len(table):,}"
        )
    if "Sig" in asked.table:
        pooled = (asked.table["Sig"] == 1).sum()
        result += f"; from {asked.compared_with} {pooled:,} of {len(asked.table):,} differ"

    def drawings() -> Iterator[Drawing]:
        centred = np.where(asked.is_compared, within.centred.means, np.nan)
        panels = (("shift minus the cell's mean", centred), ("minus genes of like rank", shifts))
        if is_difference:
            panels = (("test minus null", shifts),)
        ranks = within.ranks.means
        figure = rank_figure(ranks, panels, differs)
        chart = rank_chart(asked.edits, ranks, panels[-1], differs)
        caption = _OF_DIFFERENCE if is_difference else _OF_SHIFTS
        yield Drawing("like_rank", figure, caption, chart, asked.mode)
        percentiles = table["Matched_percentile"].dropna().to_numpy()
        if not len(percentiles):
            return
        caption = (
            "Where each gene stands among genes of like rank and detection. Specific genes would "
            "pile up at both ends."
        )
        chart = fraction_chart(percentiles, PERCENTILE)
        yield Drawing("percentiles", percentile_figure(percentiles), caption, chart)

    what = "the difference" if is_difference else "Like_rank_shift"
    headings = {
        "Matched_genes": f"genes compared with: the {NEIGHBOURS} nearest in mean rank and "
        f"coverage, none further than {MAX_DISTANCE} standard deviations; fewer than "
        f"{MIN_NEIGHBOURS} are too few",
        "Matched_percentile": f"fraction of them whose shift ({what}) is lower",
        "Matched_empirical_pval": "two-sided, from that place; cannot be below 2 / (genes + 1)",
        "Matched_z": "distance from their median, in robust standard deviations of theirs",
        "Matched_FDR": "of Matched_z by Student's distribution, over all genes",
    }
    verdict = "specific genes are found" if differs.any() else "nothing specific to a gene is seen"
    verdict = verdict if compared else "too few cells or genes to tell"
    columns = table.set_axis(within.edits.names)
    return Finding(result, verdict, columns, headings, drawings())


def cells(asked: Asked) -> Finding:
    """Asks how much of the shifts is a matter of cells, and compares genes within cells."""
    within = asked.within
    p_values = np.where(asked.is_compared, paired_p_values(within.like_rank), np.nan)
    rates = false_discovery_rates(p_values)
    few = int((~asked.is_compared).sum())
    result = (
        f"{within.between:.0%} of the variance of shifts lies between cells, whichever gene is "
        f"edited; within cells the mean of {(rates < SIGNIFICANT).sum():,} of "
        f"{np.isfinite(rates).sum():,} genes differs from that of genes of like rank; {few:,} "
        f"genes are in fewer than {asked.min_cells:,} cells and not compared"
    )
    columns = pd.DataFrame(
        {
            "Within_cell_shift": within.centred.means,
            "Like_rank_shift": within.like_rank.means,
            "Paired_pval": p_values,
            "Paired_FDR": rates,
        },
        within.edits.names,
    )
    headings = {
        "Within_cell_shift": "mean over cells of the shift minus the mean of all edits of the cell",
        "Like_rank_shift": "the same minus the mean of the cell's other edits in the same "
        "twentieth of its ranks",
        "Paired_pval": "paired t-test over cells that Like_rank_shift is 0; with many cells this "
        "holds of most genes, so it does not say that a gene is special",
        "Paired_FDR": "the same, adjusted over genes",
    }
    verdict = (
        "compare genes within cells" if within.between > 0.5 else "cells differ less than genes"
    )
    return Finding(result, verdict, columns, headings, iter(()))


def coverage(asked: Asked) -> Finding:
    """Asks in how many of the cells a gene can be edited at all."""
    within, fractions = asked.within, asked.coverage()
    low = fractions < MIN_COVERAGE
    whole = max(asked.chosen_cells, within.cells)
    result = (
        f"{low.sum():,} of {len(low):,} genes are within the model's sight in fewer than "
        f"{MIN_COVERAGE:.0%} of {whole:,} cells"
    )
    columns = pd.DataFrame(
        {"Coverage": fractions, "Mean_rank": within.ranks.means}, within.edits.names
    )
    headings = {
        "Coverage": "fraction of the chosen cells that have the gene within the model's sight",
        "Mean_rank": "mean over these cells of the gene's rank, from 0 (first) to 1 (last)",
    }

    def drawings() -> Iterator[Drawing]:
        caption = "Genes left of the line speak of few cells only."
        chart = fraction_chart(
            fractions, IN_SIGHT, {f"{MIN_COVERAGE:.0%} of the cells": MIN_COVERAGE}
        )
        yield Drawing("coverage", coverage_figure(fractions, MIN_COVERAGE), caption, chart)

    verdict = "look at Coverage before you name a gene" if low.any() else "genes are in most cells"
    return Finding(result, verdict, columns, headings, drawings())


def start(asked: Asked) -> Finding:
    """Asks whether what goes towards the goal goes away from the start."""
    edits, goal = asked.within.edits, asked.means(asked.goal)
    away = asked.means(asked.start)
    both = asked.is_compared & np.isfinite(goal) & np.isfinite(away)
    found = correlate(asked.shifts, away)
    columns = pd.DataFrame({"Shift_to_start": away, "Goal_minus_start": goal - away}, edits.names)
    headings = {
        "Shift_to_start": f"mean shift towards {asked.start}, the state of the perturbed cells",
        "Goal_minus_start": f"shift towards {asked.goal} minus shift towards {asked.start}",
    }
    result = say_correlation(f"shifts towards {asked.goal} and towards {asked.start}", found)
    result += _sizes(asked)
    verdict = (
        TOO_FEW
        if np.isnan(found[0])
        else "no: edits move cells towards both or away from both; read Goal_minus_start"
        if found[0] > ALIKE
        else "in part: read Goal_minus_start"
        if found[0] > 0
        else "yes"
    )

    def drawings() -> Iterator[Drawing]:
        if not both.any():
            return
        caption = f"Only what lies above the line goes to {asked.goal} more than to {asked.start}."
        names = asked.start, asked.goal
        figure = states_figure(away[both], goal[both], names)
        chart = states_chart(asked.edits[both], away[both], goal[both], names)
        yield Drawing("start_and_goal", figure, caption, chart, asked.mode)

    return Finding(result, verdict, columns, headings, drawings())


def donors(asked: Asked) -> Finding:
    """Asks which shifts hold over donors."""
    edits = asked.within.edits
    table = donor_intervals(asked.rows(asked.goal), asked.donors, edits)
    known = table["Shift_low"].notna()
    certain = (table["Shift_low"] > 0) | (table["Shift_high"] < 0)
    result = (
        f"the intervals of {certain.sum():,} of {known.sum():,} genes over "
        f"{asked.donors.nunique():,} donors do not hold 0"
    )
    headings = {
        "Donors": "donors with a cell in which the gene was edited",
        "Shift_low": "lower end of the 95 % interval of Shift_to_goal_end: whole donors are drawn "
        f"again and again; empty with fewer than {MIN_DONORS}",
        "Shift_high": "its upper end",
    }
    verdict = "name genes whose interval does not hold 0"
    return Finding(result, verdict, table, headings, iter(()))


def _sizes(asked: Asked) -> str:
    """Says how many cells the embeddings of the states are of; "" where they were given."""
    path = asked.folder / STATES
    if not path.exists():
        return ""
    table = StateEmbeddings.load(path).table.drop_duplicates("state").set_index("state")
    named = [name for name in (asked.start, asked.goal) if name in table.index]
    sizes = " and ".join(f"{table.loc[name, 'cells']:,} of {name}" for name in named)
    return f"; the states are means of {sizes} cells"
