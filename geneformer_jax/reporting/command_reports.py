"""Reports on what commands made that is no analysis: pretraining, vocabularies, conversions."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.provenance import FILE_NAME, read_provenance
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import (
    Drawing,
    histogram_figure,
    loss_curve_figure,
    save_figure,
)
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import refresh_index

REPORT, LOSS = "report.html", "loss"


def report_beside(output: Path) -> Path:
    """Where the report on an output lies that cannot hold one."""
    return output.with_name(f"{output.name}.report.html")


def write_pretraining_report(
    workdir: Path,
    metrics: Sequence[Mapping[str, Any]],
    scores: pd.DataFrame | None,
    lines: Iterable[str],
    baselines: Mapping[str, float],
) -> Path:
    """Writes report.html and the figure of the loss into the folder of a run.

    Args:
      workdir: of the run.
      metrics: rows of its metrics.jsonl, see `loss_curve_figure`.
      scores: of the model and of baselines on held-out cells; None if there are none.
      lines: what to conclude from them.
      baselines: name -> held-out loss.

    Returns:
      Path of the report.
    """
    steps = max((row["step"] for row in metrics if "step" in row), default=0)
    report = Report("Pretraining", f"{steps:,} steps of masked gene prediction.")
    for line in lines:
        report.conclude(f"{line[0].upper()}{line[1:]}.")
    figure = loss_curve_figure(metrics, baselines)
    save_figure(figure, workdir / LOSS)
    caption = "Masked-gene loss by training step, beside predictors that have no model."
    report.section("Loss")
    report.draw(Drawing(LOSS, figure, caption, charts.loss_curves(metrics, baselines)))
    if scores is not None:
        report.section("Held-out cells")
        report.table(scores, "Masked genes of cells that were not trained on.", name="held_out")
    report.files(path for path in workdir.iterdir() if path.name != REPORT)
    report.provenance(read_provenance(workdir))
    report.write(workdir / REPORT)
    refresh_index(workdir)
    return workdir / REPORT


def write_vocabulary_report(folder: Path) -> Path:
    """Writes the report on a new vocabulary beside its folder; returns its path."""
    vocabulary, provenance = GeneVocabulary.load(folder), read_provenance(folder)
    medians = np.asarray(vocabulary.medians, float)
    report = Report(
        f"Vocabulary {folder.name}",
        f"{len(vocabulary.gene_ids):,} {vocabulary.species} genes; vocabulary "
        f"{vocabulary.hash[:12]}.",
    )
    counts = provenance.get("counts", {})
    told = f"{len(vocabulary.gene_ids):,} genes have a median"
    if "cells" in counts:
        told += f", over {counts['cells']:,} cells"
    report.conclude(f"{told}. Cells are to be tokenised with this vocabulary, and so are those "
                    "that a model trained on them is used on.")  # fmt: skip
    genes = pd.DataFrame({
        "symbol": vocabulary.symbols, "gene_id": vocabulary.gene_ids, "median": medians,
    })  # fmt: skip
    positive = np.log10(medians[medians > 0])
    binned, edges = np.histogram(positive, 60)
    report.section("Genes")
    words = "log10 of the median of the non-zero counts per 10,000", "genes"
    report.draw(_histogram("medians", binned, edges, words, "Medians of the genes."))
    report.table(
        genes.sort_values("median", ascending=False, ignore_index=True),
        "Genes by their median, which their counts are divided by before they are ranked.",
        "genes.parquet",
        name="genes",
        words={"symbol": "gene", "gene_id": "gene id"},
    )
    if rows := counts.get("sources"):
        report.section("Sources")
        report.table(pd.DataFrame(rows).astype(str), "What was read of each file.", name="sources")
    return _finish(report, folder, provenance)


def write_conversion_report(target: Path, lines: Sequence[str], facts: Mapping[str, Any]) -> Path:
    """Writes the report on a conversion beside its target.

    Args:
      target: that was written.
      lines: what was done, a sentence each.
      facts: source and target, for the provenance where the target has none of its own.

    Returns:
      Path of the report.
    """
    report = Report(f"Converted to {target.name}", f"{lines[0]}.")
    for line in lines[1:]:
        report.conclude(f"{line[0].upper()}{line[1:]}.")
    own = (target / FILE_NAME).is_file()
    return _finish(report, target, read_provenance(target) if own else facts)


def _finish(report: Report, output: Path, provenance: Mapping[str, Any]) -> Path:
    report.files([output])
    report.provenance(provenance)
    path = report_beside(output)
    report.write(path)
    refresh_index(output)
    return path


def _histogram(
    name: str, counts: np.ndarray, edges: np.ndarray, words: tuple[str, str], caption: str
) -> Drawing:
    figure = histogram_figure(counts, edges, words)
    return Drawing(name, figure, caption, charts.histogram(counts, edges, words))
