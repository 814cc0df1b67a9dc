"""What a comparison with hits writes: tables, curves and a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import describe_run, write_provenance
from geneformer_jax.common.tables import write_csv
from geneformer_jax.common.workdir import as_json, is_finished
from geneformer_jax.perturbation.layout import REPORT
from geneformer_jax.perturbation.validation.hits.api import HitValidation, validate_hits
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import MAIN, STRONG, STYLE, new_figure, save_figure
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import refresh_index

_MEANINGS = {
    "ppv": "Positive predictive value: fraction of the called genes that are hits.",
    "npv": "Negative predictive value: fraction of the other genes that are none.",
    "sensitivity": "Fraction of the hits that are called.",
    "specificity": "Fraction of the others that are not called.",
    "roc_auc": "Area under the ROC curve of the order of all genes; 0.5 by chance.",
    "pr_auc": "Average precision of that order; by chance the fraction of hits.",
    "spearman": "Rank correlation with the scores of the screen.",
}
_HEADINGS = {
    "protocol": "metric",
    "like_rank": "genes of like rank",
    "like_rank_low": "lower end",
    "like_rank_high": "upper end",
    "cells": "number of cells alone",
}


def write_hits(
    output: Path,
    statistics: str,
    hits: str,
    configuration: Mapping[str, Any],
    **how: Any,
) -> None:
    """Compares, and writes a folder; nothing is done if this command wrote it already.

    Args:
      output: folder to write.
      statistics, hits, how: see `validate_hits`.
      configuration: the command, for the provenance.

    Raises:
      InputError: see `validate_hits`; or something else is at the output.
    """
    command = as_json({name: value for name, value in configuration.items() if name != "output"})
    if is_finished(output, command):
        logger.info(f"{output} is complete and was written by this command: nothing to do")
        return
    found = validate_hits(statistics, hits, **how)
    counts = {
        "statistic": found.statistic,
        "genes": len(found.genes),
        "hits": int(found.genes["hit"].sum()),
        "called": int(found.genes["called"].sum()),
        "left_out": found.left_out,
    }
    provenance = describe_run("validate", command, [statistics, hits], counts)
    with atomic_write(output) as folder:
        folder.mkdir()
        _write_files(folder, found, provenance)
    refresh_index(output)
    for line in found.verdict:
        logger.info(line)
    logger.info(f"tables and report: {output}")


def _write_files(folder: Path, found: HitValidation, provenance: Mapping[str, Any]) -> None:
    names = ("metrics", "genes")
    for name in names:
        write_csv(getattr(found, name), folder / f"{name}.csv")
    figure = curves_figure(found.genes)
    files = [f"{name}.csv" for name in names]
    files += [path.name for path in save_figure(figure, folder / "curves")]
    write_provenance(folder, provenance)
    report = Report("Predicted genes beside the hits of a screen", f"{found.verdict[1]}.")
    report.conclude(f"{found.verdict[0]}.")
    report.section("Scores")
    caption = (
        "Each metric of the prediction, and its mean and 95 % when hits are dealt out anew among "
        "genes of like rank, which is what must be beaten; pval: one-sided, from these draws; drf: "
        "(prediction - like rank) / (1 - like rank), for a list has no second half; and the areas "
        "when genes are ordered by the number of cells that have them, without any model."
    )
    report.table(found.metrics.rename(columns=_HEADINGS), caption, "metrics.csv")
    report.figure(figure, "Left: hits found against others taken for hits, as more genes are "
                  "called. Right: fraction of the called that are hits. Dashed: by chance. The "
                  "point: the genes that the statistic calls.",
                  curves_chart(found.genes))  # fmt: skip
    for line in found.verdict[2:]:
        report.paragraph(f"{line}.")
    report.section("Genes", "")
    shown = found.genes.sort_values("score", ascending=False)
    report.table(shown, "By the score of the statistic.", "genes.csv", name="genes")
    report.section("What the numbers mean")
    meanings = pd.DataFrame(_MEANINGS.items(), columns=["metric", "meaning"])
    report.table(meanings, "Metrics.")
    report.files(files)
    report.provenance(provenance)
    report.write(folder / REPORT)


def curves_chart(genes: pd.DataFrame) -> alt.LayerChart:
    """Charts the curves of `curves_figure`, one of them at a time."""
    hits, scores = genes["hit"].to_numpy(bool), genes["score"].to_numpy()
    false, true, _ = roc_curve(hits, scores)
    precision, recall, _ = precision_recall_curve(hits, scores)
    curves = {
        "ROC: sensitivity by 1 - specificity": ((false, true), ((0, 1), (0, 1))),
        "PPV by sensitivity": ((recall[:-1], precision[:-1]), ((0, 1), (hits.mean(),) * 2)),
    }
    parts = [
        pd.DataFrame({"x": x, "y": y, "line": line, "curve": name})
        for name, both in curves.items()
        for line, (x, y) in zip(("statistic", "by chance"), both, strict=True)
    ]
    labels = {"x": "", "y": ""}
    return charts.lines(
        pd.concat(parts), "x", "y", "line", labels, choice="curve", dashed=["by chance"]
    )


def curves_figure(genes: pd.DataFrame) -> Figure:
    """Draws ROC and precision-recall curves of the order of genes.

    Args:
      genes: with `hit`, `score` and `called`.
    """
    hits, scores = genes["hit"].to_numpy(bool), genes["score"].to_numpy()
    called = genes["called"].to_numpy(bool)
    false, true, _ = roc_curve(hits, scores)
    precision, recall, _ = precision_recall_curve(hits, scores)
    sensitivity, chance = (hits & called).sum() / hits.sum(), hits.mean()
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.4, 3.9)
        left, right = figure.subplots(1, 2)
        left.plot(false, true, color=MAIN)
        left.plot([0, 1], [0, 1], color="#222222", lw=0.8, ls="--")
        left.set(xlabel="1 - specificity", ylabel="sensitivity")
        # The last point is of no gene at all.
        right.plot(recall[:-1], precision[:-1], color=MAIN)
        right.axhline(chance, color="#222222", lw=0.8, ls="--")
        right.set(xlabel="sensitivity", ylabel="PPV", ylim=(0, 1.02))
        if called.any():
            look = {"color": STRONG, "s": 50, "zorder": 3}
            left.scatter((called & ~hits).sum() / (~hits).sum(), sensitivity, **look)
            right.scatter(sensitivity, np.mean(hits[called]), **look)
    return figure
