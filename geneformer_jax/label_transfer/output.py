"""Transferred labels as AnnData, tables and a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.tables import write_csv
from geneformer_jax.embedding.comparison import MAX_DRAWN_CELLS, draw_rows
from geneformer_jax.embedding.embedder import KEY
from geneformer_jax.embedding.output import report_path
from geneformer_jax.inference.cells import fill_rows
from geneformer_jax.label_transfer.classifiers import CLASSIFIERS
from geneformer_jax.label_transfer.features import COUNTS, EMBEDDING
from geneformer_jax.label_transfer.transfer import DISTANCE, LABEL, TRUSTED, Transferred
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import (
    PALETTE,
    STYLE,
    Drawing,
    new_figure,
    umap_figure,
    umap_positions,
)
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import refresh_index

UNS = "label_transfer"
_CELLS = "cells"
# Fewer cells make no map, and more colours cannot be told apart.
_FEWEST_DRAWN, _MOST_COLOURS = 15, 20
_HEADINGS = (
    "cells_of: which cells are judged, those of the reference each by a model that has not seen "
    "its fold; features: what the classifier sees; macro_f1: mean of the F1 of all labels, rare "
    "ones counting as much as common ones."
)


def as_anndata(
    transferred: Transferred,
    obs: pd.DataFrame,
    embeddings_QD: np.ndarray,
    rows: np.ndarray | None = None,
) -> ad.AnnData:
    """Returns cells with labels and embeddings; see `transfer_labels`.

    Args:
      transferred: labels of the query.
      obs: columns of the cells.
      embeddings_QD: of the query.
      rows: [query] which of the cells are the query; all by default. The others have no label, and
        are not trusted.
    """
    index, labels = obs.index.astype(str), transferred.table
    if rows is not None:
        embeddings_QD = fill_rows(embeddings_QD, rows, len(obs))
        labels = labels.set_axis(rows).reindex(range(len(obs)))
        labels[TRUSTED] = labels[TRUSTED].eq(True)
    kept = [name for name in obs if name not in labels]
    table = pd.concat([obs[kept].set_axis(index), labels.set_axis(index)], axis=1)
    found = {
        "scores": transferred.scores,
        "by_label": transferred.by_label,
        "distance_limit": transferred.limit,
        "verdict": transferred.verdict,
    }
    return ad.AnnData(
        obs=table, obsm={KEY: np.asarray(embeddings_QD, np.float32)}, uns={UNS: found}
    )


def columns_of(labelled: ad.AnnData) -> list[str]:
    """Returns the names of the obs columns that the transfer of labels has added."""
    each = (f"{features} {name}" for features in (EMBEDDING, COUNTS) for name in CLASSIFIERS)
    return [LABEL, DISTANCE, TRUSTED, *(name for name in each if name in labelled.obs)]


def write_tables(transferred: Transferred, output: Path) -> list[Path]:
    """Writes the scores beside an output; returns their paths."""
    tables = {"scores": transferred.scores, "by_label": transferred.by_label}
    paths = {output.with_name(f"{output.stem}.{name}.csv"): each for name, each in tables.items()}
    for path, table in paths.items():
        with atomic_write(path) as aside:
            write_csv(table, aside)
    return list(paths)


def write_report(
    transferred: Transferred,
    embeddings_QD: np.ndarray,
    output: Path,
    provenance: Mapping[str, Any],
    tables: list[Path],
) -> None:
    """Writes the page on an output: the answer first, then scores, cells and labels."""
    report = Report(
        "Labels of a reference, carried over", f"{len(transferred.table):,} cells got a label."
    )
    for sentence in transferred.verdict:
        report.conclude(f"{sentence[0].upper()}{sentence[1:]}.")
    report.section("Which classifier, on what", _HEADINGS)
    report.table(transferred.scores, "Accuracy and macro F1, beside what must be beaten.")
    report.section("Cells of the query")
    counts = transferred.table.groupby(LABEL, observed=True).agg(
        cells=(TRUSTED, "size"), not_trusted=(TRUSTED, lambda trusted: int((~trusted).sum()))
    )
    report.table(counts.reset_index(), "Labels given, and to how many cells too far away.")
    for drawing in _drawings(transferred, embeddings_QD):
        report.draw(drawing)
    drawn = draw_rows(len(transferred.table), MAX_DRAWN_CELLS)
    cells = transferred.table.iloc[drawn].rename_axis("cell").reset_index()
    report.table(
        cells,
        "Cells of the figure. Choose some there to see and download only them.",
        output.name,
        name=_CELLS,
        key="cell",
    )
    report.section("Each label")
    report.table(transferred.by_label, "Precision, recall and F1 of each label.")
    report.files([output, *tables])
    report.provenance(provenance)
    report.write(report_path(output))
    refresh_index(output)


def _drawings(transferred: Transferred, embeddings_QD: np.ndarray) -> list[Drawing]:
    away = transferred.table[DISTANCE]
    counts, edges = np.histogram(away, bins=60)
    words = "mean distance to the nearest cells of the reference", "cells"
    chart = charts.histogram(counts, edges, words, {"limit of trust": float(transferred.limit)})
    caption = "Right of the line no label should be trusted."
    found = [Drawing("distances", distance_figure(away, transferred.limit), caption, chart)]
    drawn = draw_rows(len(embeddings_QD), MAX_DRAWN_CELLS)
    labels = transferred.table[LABEL].iloc[drawn]
    if len(drawn) > _FEWEST_DRAWN and labels.nunique() <= _MOST_COLOURS:
        positions = umap_positions(np.asarray(embeddings_QD[drawn]))
        chart = charts.embedding_map(positions, labels, list(labels.index))
        caption = "Embeddings of the query by the label given."
        figure = umap_figure(positions, labels)
        found.append(Drawing("umap", figure, caption, chart, _CELLS))
    return found


def distance_figure(distances: pd.Series, limit: float) -> Figure:
    """Draws how far cells are from their nearest ones of the reference, and the limit of trust."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 3.2)
        axes = figure.add_subplot()
        axes.hist(distances, bins=60, color=PALETTE[0])
        beyond = f"limit of trust (cells beyond: {(distances > limit).sum():,})"
        axes.axvline(limit, color="#444444", lw=1.5, ls="--", label=beyond)
        axes.set(xlabel="mean distance to the nearest cells of the reference", ylabel="cells")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left")
    return figure
