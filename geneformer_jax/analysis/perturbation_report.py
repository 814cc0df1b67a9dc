"""A report on a perturbation run: what was done, and which edits shift cells most."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geneformer_jax.analysis.perturbation_files import OUTPUTS, REPORT, SHIFTS
from geneformer_jax.analysis.shift_figures import ranked_figure
from geneformer_jax.reporting.html import Report

_TOLD = {
    "mean_gene_cosine": "mean over the genes left of the cosine of each before and after the edit",
    "cell_cosine": "cosine of the cell's embedding before and after the edit",
    "cls_cosine": "cosine of <cls> before and after the edit",
    "state_shift": "what the edit adds to the cosine of the cell with the state",
    "class_probability_before": "probability of the class before the edit",
    "class_probability_after": "probability of the class after the edit",
}


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
        named = ranked.assign(Gene_name=ranked["perturbed_symbol"].astype(str))
        labels = f"{measure} {state}".strip() + ", mean over cells", "one cell only"
        report.figure(ranked_figure(named, "mean", ranked["n"] == 1, labels), caption)
        # One cell has no deviation; 0 would look like a very certain one.
        ranked["sd"] = ranked["sd"].where(ranked["n"] > 1)
        columns = ["perturbed_symbol", "perturbed", "mean", "sd", "n"]
        shown = ranked[columns].rename(columns={"n": "cells"})
        report.table(shown, "Mean and standard deviation over cells.", f"{SHIFTS}/")
    if counts["left_out"]:
        left = pd.DataFrame(counts["left_out"].items(), columns=["left out", "number"])
        report.section("What was left out")
        report.table(left, "Cells and edits, by reason.")
    report.files(path for path in folder.iterdir() if path.name in OUTPUTS)
    report.provenance(story)
    report.write(folder / REPORT)
