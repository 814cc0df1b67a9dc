"""The page on a validation: the answer, one table, figures, and what each number means."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from geneformer_jax.perturbation.layout import REPORT
from geneformer_jax.perturbation.validation.api import Validation
from geneformer_jax.perturbation.validation.figures import (
    directions_chart,
    directions_figure,
    scores_chart,
    scores_figure,
)
from geneformer_jax.perturbation.validation.scoring.calibration import NEGATIVES
from geneformer_jax.perturbation.validation.scoring.compare import (
    CORRELATION,
    LIKE_RANK,
    MEAN,
    PREDICTION,
    SOURCES,
    SPLIT_HALF,
)
from geneformer_jax.perturbation.validation.scoring.verdict import ASKED, NAMES
from geneformer_jax.reporting.figures import Drawing
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.left_out import add_left_out

_MEANINGS = {
    "discrimination_score_cosine": "All measured shifts are ranked by their cosine with the "
    "predicted one: 1 - (rank of the right one, from 0) / their number. About 0.5 by chance.",
    "reciprocal_rank": "1 / (that rank, from 1); its mean is the mean reciprocal rank.",
    "recall_at_K": "Whether the right one is among the first K.",
    "roc_auc": "Area under the ROC curve of telling genes that are expressed differently (t-test "
    "of log counts per 10,000, FDR below 5 %) by 1 - the mean cosine of the gene before and after "
    "the edit. 0.5 by chance.",
    "pr_auc": "Average precision of the same; by chance the fraction of changed genes.",
    CORRELATION: "Pearson's r over genes of the measured |log2 fold change| (pseudobulks with size "
    "factors) and what a linear model of the gene's mean change in the other perturbations and of "
    "its predicted shift says, in perturbations that the model was not fitted to. The mean is the "
    "same without the predicted shift: what gene identity alone says. The difference is what the "
    "prediction adds to it.",
    "..._pert": "The same, less the mean over perturbations: what is specific to one. The mean "
    "itself has no such part.",
    "drf": "Dynamic range fraction: (prediction - negative control) / (second half - negative "
    "control). Undefined where the second half is not for sure above the negative control. Above "
    "1, a prediction without noise beats half of the cells.",
}
_PERTURBATIONS = "perturbations"
_SHORT = {
    PREDICTION: "prediction",
    LIKE_RANK: "like rank",
    MEAN: "mean",
    SPLIT_HALF: "second half",
}
_COLUMNS = {
    "perturbation": "label",
    "symbol": "gene",
    "cells": "measured cells",
    "edited_cells": "edited control cells",
    "coverage": "in sight",
    "mean_rank": "mean rank",
    "changed_genes": "changed genes",
    "cosine": "cosine with measured",
    "split_half_cosine": "cosine of two halves",
    "like_rank": "genes of like rank",
}


def draw(validation: Validation) -> list[Drawing]:
    """Draws the figures."""
    about_scores = (
        "Mean score of the prediction and of what stands in its place, over single perturbations "
        "(faint). It says something of the gene where it lies to the right of the triangle and "
        "the square; the diamond is the most that these cells can show."
    )
    about_directions = (
        "How well the predicted shift of the cell embedding points where the measured one does, "
        "against how well two halves of the measured cells agree. Where halves do not agree (left) "
        "nothing can be told."
    )
    figure = scores_figure(validation.scores, dict(zip(ASKED, ASKED, strict=True)), NAMES)
    directions = directions_figure(validation.perturbations)
    return [
        Drawing("scores", figure, about_scores, scores_chart(validation.scores, ASKED, NAMES)),
        Drawing(
            "directions",
            directions,
            about_directions,
            directions_chart(validation.perturbations),
            _PERTURBATIONS,
        ),
    ]


def write_report(
    folder: Path,
    validation: Validation,
    drawings: Sequence[Drawing],
    files: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Writes report.html into the folder of a run.

    Args:
      folder: of the run.
      validation: verdict and tables.
      drawings: figures.
      files: names of those beside the report.
      provenance: see `describe_run`.
    """
    counts = provenance["counts"]
    report = Report(
        "Predicted against measured perturbations",
        f"{counts['perturbations']:,} perturbations of {counts['perturbed_cells']:,} cells beside "
        f"{counts['control_cells']:,} control cells; predicted by {counts['edits']:,} edits "
        f"({counts['edit']}) of {counts['edited_cells']:,} of these, hidden layer "
        f"{counts['hidden_layer']} of {counts['checkpoint']}.",
    )
    report.conclude(f"{validation.verdict[0]}.")
    report.section("Scores")
    caption = (
        "Means over perturbations, and differences with intervals of 95 % over them. Like rank: "
        "genes of like rank edited in place of the perturbed one. Mean: of the measured "
        "perturbations, for genes without the one at hand. Second half: of the measured "
        "cells, the most that these can show."
    )
    report.table(_readable(validation.summary), caption, "summary.csv")
    for drawing in drawings:
        report.draw(drawing)
    for line in validation.verdict[1:]:
        report.paragraph(f"{line}.")
    _add_perturbations(report, validation.perturbations)
    report.section("What the numbers mean", "Everything is scored against one half of the measured "
                   "cells, and then against the other; the two are averaged. Names are those of "
                   "cell-eval 0.8.2 and scPertEval 0.2.0 where these have them.")  # fmt: skip
    meanings = pd.DataFrame(_MEANINGS.items(), columns=["metric", "meaning"])
    report.table(meanings, "Metrics.")
    _add_left_out(report, validation.left_out)
    add_left_out(report, counts)
    report.files(files)
    report.provenance(provenance)
    report.write(folder / REPORT)


def _readable(summary: pd.DataFrame) -> pd.DataFrame:
    """The table with short headings, and differences with their intervals as texts."""
    shown = {"metric": summary["protocol"], "perturbations": summary["perturbations"]}
    shown |= {_SHORT[source]: summary[source] for source in SOURCES}
    for name in NEGATIVES:
        ends = (summary[f"minus_{name}{end}"] for end in ("", "_low", "_high"))
        shown[f"minus {_SHORT[name]}"] = [
            "" if pd.isna(mean) else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
            for mean, low, high in zip(*ends, strict=True)
        ]
        shown[f"drf over {_SHORT[name]}"] = [
            "undefined" if pd.isna(value) else f"{value:.3f}" for value in summary[f"drf_{name}"]
        ]
    return pd.DataFrame(shown)


def _add_perturbations(report: Report, table: pd.DataFrame) -> None:
    report.section("Perturbations", "In sight: fraction of the drawn control cells that have the "
                   "gene in sight of the model. Mean rank: there, from 0 (first) to 1. Changed "
                   "genes: expressed differently, mean of two halves.")  # fmt: skip
    shown = table.sort_values("cosine", ascending=False)[list(_COLUMNS)].rename(columns=_COLUMNS)
    report.table(
        shown,
        "By the cosine of predicted and measured shift.",
        "perturbations.csv",
        name=_PERTURBATIONS,
        key=_COLUMNS["perturbation"],
    )


def _add_left_out(report: Report, left_out: pd.DataFrame) -> None:
    if len(left_out):
        report.section("Labels that were left out")
        report.table(left_out, "Perturbations, their cells, and why.", "left_out.csv")
