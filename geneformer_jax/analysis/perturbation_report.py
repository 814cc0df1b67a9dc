"""A report on a perturbation run: what was done, and which edits shift cells most."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geneformer_jax.analysis.figures import PALETTE, STYLE, new_figure
from geneformer_jax.analysis.perturbation_files import REPORT, SHIFTS
from geneformer_jax.analysis.report import Report

_TOLD = {
    "mean_gene_cosine": "mean over the genes left of the cosine of each before and after the edit",
    "cell_cosine": "cosine of the cell's embedding before and after the edit",
    "cls_cosine": "cosine of <cls> before and after the edit",
    "state_shift": "what the edit adds to the cosine of the cell with the state",
    "class_probability_before": "probability of the class before the edit",
    "class_probability_after": "probability of the class after the edit",
}
_NAMED = 8


def write_report(folder: Path, summary: pd.DataFrame, story: Mapping[str, Any]) -> None:
    """Writes report.html into the folder of a run.

    Args:
      folder: of the run.
      summary: mean, sd and n of each edit, measure and state; see `summarise`.
      story: the provenance.
    """
    counts = story["counts"]
    report = Report(
        "In silico perturbation",
        f"{counts['edits']:,} edits ({counts['edit']}) in {counts['cells']:,} cells; layer "
        f"{counts['layer']} of {counts['checkpoint']}.",
    )
    for (measure, state), rows in summary.groupby(["measure", "state"], sort=False):
        ranked = rows.sort_values("mean", ascending=measure != "state_shift", ignore_index=True)
        report.section(f"{measure} {state}".strip(), _TOLD[measure].capitalize() + ".")
        caption = "Every edit by its rank; mean over the cells it was made in."
        report.figure(ranked_figure(ranked, f"{measure} {state}".strip()), caption)
        columns = ["perturbed_symbol", "perturbed", "mean", "sd", "n"]
        shown = ranked[columns].rename(columns={"n": "cells"})
        report.table(shown, "Mean and standard deviation over cells.", f"{SHIFTS}/")
    if counts["left_out"]:
        left = pd.DataFrame(counts["left_out"].items(), columns=["left out", "number"])
        report.section("What was left out")
        report.table(left, "Cells and edits, by reason.")
    report.provenance(story)
    report.write(folder / REPORT)


def ranked_figure(ranked: pd.DataFrame, name: str) -> Figure:
    """Draws the means of edits in their order, the first few by name.

    Args:
      ranked: columns `mean` and `perturbed_symbol`, the strongest edits first.
      name: of the measure.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7, 4)
        axes = figure.subplots()
        rank = np.arange(1, len(ranked) + 1)
        axes.plot(rank, ranked["mean"], "o", markersize=3, color=PALETTE[0])
        for place, row in enumerate(ranked.head(_NAMED).itertuples()):
            axes.annotate(
                row.perturbed_symbol,
                (place + 1, row.mean),
                xytext=(8, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
            )
        axes.set_xlabel("rank of the edit")
        axes.set_ylabel(f"{name}, mean over cells")
    return figure
