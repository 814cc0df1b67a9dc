"""Figures of a corpus report."""

import textwrap

import altair as alt
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geneformer_jax.cells.store.label_counts import NO_VALUE
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.corpus_summary import CorpusSummary
from geneformer_jax.reporting.figures import MAIN, MISSING_COLOUR, STRONG, STYLE, new_figure

_BARS = 25
_LABEL_WIDTH = 36
_LENGTH_BINS = 64
_POINTS = 200
# Number of cells of Genecorpus-30M -> number of genes found in at least as many.
_GENECORPUS_DETECTIONS = {1: 25_424, 101: 22_735, 1_001: 21_167}


def bar_figure(counts: pd.Series, unit: str = "cells") -> Figure:
    """Draws counts (name -> number) as horizontal bars in their order, the first 25 by name.

    The others are put together in one grey bar, as is `NO_VALUE`.
    """
    shown = _first_bars(counts)
    labels = [_wrapped(str(name)) for name in shown.index]
    grey = [name == NO_VALUE or i >= _BARS for i, name in enumerate(shown.index)]
    figure, axes = _new_axes(7.2, 0.9 + 0.3 * len(shown))
    positions = np.arange(len(shown))
    colours = [MISSING_COLOUR if each else MAIN for each in grey]
    bars = axes.barh(positions, shown.to_numpy(), color=colours, height=0.72)
    fraction = shown / max(counts.sum(), 1)
    axes.bar_label(
        bars, [f"{n:,} ({s:.1%})" for n, s in zip(shown, fraction, strict=True)], padding=4
    )
    axes.set_yticks(positions, labels)
    axes.invert_yaxis()
    axes.margins(x=0.25, y=0.01)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(unit)
    axes.tick_params(axis="y", length=0)
    return figure


def bar_chart(counts: pd.Series, unit: str = "cells") -> alt.Chart:
    """Charts what `bar_figure` draws."""
    return charts.bars(_first_bars(counts), unit)


def _first_bars(counts: pd.Series) -> pd.Series:
    """The first counts by name, and the others in one."""
    shown, rest = counts.head(_BARS), counts.iloc[_BARS:]
    if len(rest):
        shown = pd.concat([shown, pd.Series({f"{len(rest):,} others": rest.sum()})])
    return shown


def length_figure(summary: CorpusSummary) -> Figure:
    """Draws how many cells have how many tokens; cells at the limit are a bar of their own."""
    counts, limit = summary.length_counts, summary.max_length
    below, edges = _lengths(summary)
    median = _median_length(summary)
    figure, axes = _new_axes(7.2, 3.8)
    axes.bar(edges[:-1], below, width=np.diff(edges), align="edge", color=MAIN)
    axes.bar(
        limit,
        counts[limit],
        width=limit / _LENGTH_BINS,
        align="edge",
        color=STRONG,
        label=f"at the limit of {limit:,} ({counts[limit] / summary.cells:.1%} of cells)",
    )
    axes.axvline(median, color="#222222", lw=1.2, ls="--", label=f"median {median:,}")
    axes.set(xlabel="tokens in a cell", ylabel="cells", xlim=(0, limit * 1.04))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    return figure


def length_chart(summary: CorpusSummary) -> alt.LayerChart:
    """Charts what `length_figure` draws; cells at the limit are the last bar."""
    below, edges = _lengths(summary)
    width = summary.max_length / _LENGTH_BINS
    counts = np.append(below, summary.length_counts[summary.max_length])
    median = _median_length(summary)
    return charts.histogram(
        counts, np.append(edges, edges[-1] + width), ("tokens in a cell", "cells"),
        {f"median {median:,}": median},
    )  # fmt: skip


def _lengths(summary: CorpusSummary) -> tuple[np.ndarray, np.ndarray]:
    """Cells in bins of lengths below the limit, and the edges of the bins."""
    limit = summary.max_length
    edges = np.unique(np.linspace(0, limit, _LENGTH_BINS + 1).round().astype(int))
    return np.add.reduceat(summary.length_counts[:limit], edges[:-1]), edges


def _median_length(summary: CorpusSummary) -> int:
    counts = summary.length_counts
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))


def detection_figure(summary: CorpusSummary) -> Figure:
    """Draws the number of genes found in at least n cells, beside Genecorpus-30M."""
    cells, genes = _detections(summary)
    # A short run-up to the first step, which would otherwise begin as a bare vertical line.
    cells, genes = np.append(0.7, cells), np.append(genes[:1], genes)
    figure, axes = _new_axes(7.2, 3.8)
    axes.step(cells, genes, where="pre", color=MAIN, lw=2, label="this corpus")
    axes.plot(
        *zip(*_GENECORPUS_DETECTIONS.items(), strict=True),
        marker="D",
        ls="",
        ms=7,
        color=STRONG,
        label="Genecorpus-30M (27.4 million cells)",
    )
    axes.set_xscale("log")
    axes.set(xlabel="cells", ylabel="genes found in at least that many cells", ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color="#e3e6ec", lw=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    return figure


def detection_chart(summary: CorpusSummary) -> alt.LayerChart:
    """Charts what `detection_figure` draws."""
    cells, genes = _detections(summary)
    kept = np.unique(np.linspace(0, len(cells) - 1, _POINTS).astype(int)) if len(cells) else []
    ours = pd.DataFrame({"cells": cells[kept], "genes": genes[kept], "corpus": "this corpus"})
    theirs = pd.DataFrame(_GENECORPUS_DETECTIONS.items(), columns=["cells", "genes"])
    labels = {"genes": "genes found in at least that many cells"}
    rows = pd.concat([ours, theirs.assign(corpus="Genecorpus-30M")])
    return charts.lines(rows, "cells", "genes", "corpus", labels, log="x", points=True)


def _detections(summary: CorpusSummary) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of cells, and of genes found in at least as many."""
    found = np.sort(summary.cells_per_gene[summary.cells_per_gene > 0])
    cells, first = np.unique(found, return_index=True)
    return cells, len(found) - first


def _wrapped(label: str) -> str:
    return textwrap.fill(label, _LABEL_WIDTH, max_lines=2, placeholder=" …")


def _new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width, height)
        return figure, figure.add_subplot()
