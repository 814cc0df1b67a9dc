"""The page on a perturbation: what was measured of each edit, and what that rests on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geneformer_jax.common.log import logger
from geneformer_jax.common.tables import write_csv
from geneformer_jax.perturbation.layout import GENES_LEFT_OUT, OUTPUTS, REPORT, SHIFTS
from geneformer_jax.perturbation.statistics.accuracy.resolution import describe_resolution
from geneformer_jax.perturbation.statistics.accuracy.screen_accuracy import (
    describe_accuracy,
    describe_poor,
)
from geneformer_jax.perturbation.statistics.figures import ranked_figure
from geneformer_jax.perturbation.statistics.modes.result import MIN_CELLS
from geneformer_jax.perturbation.statistics.tables import STATE_SHIFT
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.left_out import add_left_out

_MEASURES = {
    "mean_gene_cosine": "mean over the genes left of the cosine of each before and after the edit",
    "cell_cosine": "cosine of the cell's embedding before and after the edit",
    "cls_cosine": "cosine of <cls> before and after the edit",
    "state_shift": "what the edit adds to the cosine of the cell with the state",
    "class_probability_shift": "what the edit adds to the probability of the class",
    "class_probability_before": "probability of the class before the edit",
    "class_probability_after": "probability of the class after the edit",
}
_WORDS = {
    "mean_gene_cosine": "cosine of genes",
    "cell_cosine": "cosine of the cell",
    "cls_cosine": "cosine of <cls>",
    "state_shift": "shift towards",
    "class_probability_shift": "shift of the probability of",
    "class_probability_before": "probability before, of",
    "class_probability_after": "probability after, of",
}
_HEADINGS = {"perturbed_symbol": "gene", "perturbed": "gene id", "n": "cells"}
_PARTS = ["reranking", "removal", "exact"]


def write_report(folder: Path, summary: pd.DataFrame, provenance: Mapping[str, Any]) -> None:
    """Writes report.html into the folder of a run.

    Args:
      folder: of the run.
      summary: mean, sd and n of each edit, measure and state, see `summarise`; of a screen also
        what `with_parts` adds.
      provenance: see `describe_run`.
    """
    counts = provenance["counts"]
    report = Report(
        "In silico perturbation",
        f"{counts['edits']:,} edits ({counts['edit']}) in {counts['cells']:,} cells; hidden "
        f"layer {counts['hidden_layer']} of {counts['checkpoint']}.",
    )
    if "screen" in counts:
        for line in describe_poor(pd.DataFrame(counts["screen"]["accuracy"])):
            report.paragraph(line)
    report.slot()
    if "screen" in counts:
        _add_screen(report, counts["screen"])
    by_rank = {(row["measure"], row["state"]): row for row in counts["variance_by_rank"]}
    for key, rows in summary.groupby(["measure", "state"], sort=False):
        _add_measure(report, *key, rows, by_rank.get(key))
    add_left_out(report, counts, "Cells and edits")
    _add_missing_genes(report, folder, counts)
    report.files(path for path in folder.iterdir() if path.name in OUTPUTS)
    report.provenance(provenance)
    report.write(folder / REPORT)


def _add_screen(report: Report, screen: Mapping[str, Any]) -> None:
    accuracy = pd.DataFrame(screen["accuracy"])
    lines = [
        f"{screen['exact']:,} of these edits are exact and {screen['estimated']:,} are estimates, "
        f"from {screen['split_points']} split points in each cell.",
        *describe_accuracy(accuracy),
    ]
    if accuracy.empty and screen["estimated"]:
        lines.append("How good the estimates are was not measured; `settle` does that.")
    report.section("A screen", lines[0])
    for line in lines[1:]:
        report.paragraph(line)
    if not accuracy.empty:
        report.table(accuracy, "Estimates beside exact shifts of edits drawn at random; intervals "
                     "of 95 % by bootstrap over edits.")  # fmt: skip


def _add_measure(
    report: Report, measure: str, state: str, rows: pd.DataFrame, by_rank: Mapping[str, Any] | None
) -> None:
    name = f"{measure} {state}".strip()
    words = f"{_WORDS[measure]} {state}".strip()
    report.section(f"{words[0].upper()}{words[1:]}", f"{_MEASURES[measure].capitalize()}.")
    if problem := describe_resolution(rows):
        logger.warning(f"{name}: {problem}")
        report.paragraph(f"{problem[0].upper()}{problem[1:]}.")
    if by_rank is not None and by_rank["explained"] is not None:
        report.paragraph(describe_by_rank(by_rank))
    ranked = rows.sort_values("mean", ascending=not measure.endswith("_shift"), ignore_index=True)
    caption = "Every edit by its rank; mean over the cells it was made in."
    caption += charts.describe_thinned(len(ranked))
    named = ranked.assign(
        Gene_name=ranked["perturbed_symbol"].astype(str), Ensembl_ID=ranked["perturbed"]
    )
    alone, labels = ranked["n"] == 1, (f"{words}, mean over cells", "one cell only")
    chart = charts.ranked(named, "mean", alone, labels, "n")
    report.figure(ranked_figure(named, "mean", alone, labels), caption, chart, name)
    # One cell has no deviation; 0 would look like a very certain one.
    ranked["sd"] = ranked["sd"].where(ranked["n"] > 1)
    parts = [part for part in _PARTS if part in ranked and ranked[part].notna().any()]
    # An edit of a few cells has an extreme mean by chance.
    ranked = ranked.sort_values("n", key=lambda cells: cells < MIN_CELLS, kind="stable")
    columns = ["perturbed_symbol", "perturbed", "mean", "sd", "n", *parts]
    shown = ranked[columns]
    caption = f"Mean and standard deviation over cells; edits in fewer than {MIN_CELLS} come last."
    if parts:
        caption += (
            " reranking and removal add up to the mean: what comes from all later genes moving up "
            "by one position (interpolated in large cells), and what from the gene being gone."
        )
    if "exact" in parts:
        caption += " exact: fraction of the cells in which the shift is exact, not estimated."
    report.table(shown, caption, f"{SHIFTS}/", name=name, key="perturbed", words=_HEADINGS)


def describe_by_rank(by_rank: Mapping[str, Any]) -> str:
    """Returns the sentence on a row of `variance_by_rank`."""
    measure, state = by_rank["measure"], by_rank["state"]
    of = f" towards {state}" if measure == STATE_SHIFT else f" ({f'{measure} {state}'.strip()})"
    return (
        f"{by_rank['explained']:.0%} of the variance of the shifts{of} within cells is explained "
        "by rank alone, in each cell by a curve of its own: by where the gene stands in the cell, "
        "whichever gene it is."
    )


def _add_missing_genes(report: Report, folder: Path, counts: Mapping[str, Any]) -> None:
    if counts["genes_left_out"]:
        missing = pd.DataFrame(counts["genes_left_out"])
        write_csv(missing, folder / GENES_LEFT_OUT, sep="\t")
        report.section("Listed genes that were left out")
        report.table(missing, "Genes and the reason of each.", GENES_LEFT_OUT)
