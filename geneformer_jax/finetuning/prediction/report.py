"""The page on predictions: how sure they are, what they are of, and whether they are right."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.embedding.output import report_path
from geneformer_jax.finetuning.classification.predictions import PROBABILITY
from geneformer_jax.finetuning.prediction.tables import PREDICTED
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.corpus_figures import bar_chart, bar_figure
from geneformer_jax.reporting.figures import histogram_figure
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import refresh_index
from geneformer_jax.reporting.left_out import add_left_out

_UNSURE, _BINS = 0.5, np.linspace(0, 1, 41)


def write_prediction_report(
    predicted: ad.AnnData | pd.DataFrame,
    output: Path,
    lines: Iterable[str],
    provenance: Mapping[str, Any],
) -> Path:
    """Writes NAME.report.html beside an output.

    Args:
      predicted: from `predict_cells` or `predict_genes`.
      output: the file of the predictions.
      lines: on how they agree with known labels.
      provenance: of the run.

    Returns:
      Path of the report.
    """
    of_cells = isinstance(predicted, ad.AnnData)
    table, unit = (predicted.obs, "cells") if of_cells else (predicted, "genes")
    report = Report("Predictions", f"{len(table):,} {unit}.")
    for line in lines:
        report.conclude(f"{line[0].upper()}{line[1:]}.")
    for column in (name for name in table if name.startswith(PREDICTED)):
        _add_output(report, table, column, unit)
    report.section(f"All {unit}")
    shown = table.rename_axis(table.index.name or unit.removesuffix("s")).reset_index()
    report.table(shown, f"Predictions of {unit}.", output.name, name=unit)
    add_left_out(report, {"cells_cut": 0, **provenance["counts"]})
    report.files([output])
    report.provenance(provenance)
    report.write(report_path(output))
    refresh_index(output)
    return report_path(output)


def _add_output(report: Report, table: pd.DataFrame, column: str, unit: str) -> None:
    name = column.removeprefix(f"{PREDICTED}_") if column != PREDICTED else unit
    report.section(f"Predicted: {name}")
    if pd.api.types.is_numeric_dtype(table[column]):
        counts, edges = np.histogram(table[column].dropna(), 60)
        words = f"predicted {name}", unit
        chart = charts.histogram(counts, edges, words)
        caption = f"How {unit} are distributed over predicted values."
        report.figure(histogram_figure(counts, edges, words), caption, chart)
        return
    sizes = table[column].value_counts()
    figure = bar_figure(sizes, unit)
    report.figure(figure, f"How many {unit} were predicted to be what.", bar_chart(sizes, unit))
    probability = next((each for each in (f"{PROBABILITY}{name}", PROBABILITY.rstrip("_"))
                        if each in table), None)  # fmt: skip
    if probability is None:
        return
    values = table[probability].dropna()
    unsure = float((values < _UNSURE).mean()) if len(values) else 0.0
    report.conclude(
        f"{name}: {unsure:.1%} of the {unit} have a probability below {_UNSURE:g}, so that their "
        "labels are guesses."
    )
    report.paragraph(
        "A probability says how sure the model is among the classes it knows; what is "
        "none of these gets one of them all the same."
    )
    counts, edges = np.histogram(values, _BINS)
    words = "probability of the predicted class", unit
    chart = charts.histogram(counts, edges, words)
    report.figure(histogram_figure(counts, edges, words), "How sure the predictions are.", chart)
