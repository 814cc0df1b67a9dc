"""Figures of controls: shifts beside those of genes of like rank, percentiles, coverage, states."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from geneformer_jax.reporting.figures import MISSING_COLOUR, PALETTE, STYLE, new_figure

_MAIN, _STRONG, _DARK = PALETTE[11], PALETTE[8], "#222222"
_BAND = (0.05, 0.95)
# The band is drawn where so many neighbours in rank lie within this width.
_BAND_GENES, _BAND_WIDTH = 51, 0.2


def rank_figure(
    ranks_E: np.ndarray,
    shifts: Sequence[tuple[str, np.ndarray]],
    differs_E: np.ndarray,
    figure: FigureBase | None = None,
) -> Figure:
    """Draws shifts against rank, with the band that nine of ten genes of like rank lie in.

    Args:
      ranks_E: mean rank of each gene, from 0 (first) to 1.
      shifts: (label, [edits]) of the panels, from the top.
      differs_E: bool [edits], which to colour.
      figure: to draw into; a new one by default.
    """
    with matplotlib.rc_context(STYLE):
        figure = figure or new_figure(7.2, 3.1 * len(shifts))
        panels = np.atleast_1d(figure.subplots(len(shifts), 1, sharex=True))
        for axes, (label, values) in zip(panels, shifts, strict=True):
            _band(axes, ranks_E, values)
            for chosen, colour, size in ((~differs_E, _MAIN, 12), (differs_E, _STRONG, 26)):
                drawn = chosen & np.isfinite(ranks_E) & np.isfinite(values)
                axes.scatter(ranks_E[drawn], values[drawn], s=size, c=colour, lw=0,
                             rasterized=True, label=_counted(colour, drawn))  # fmt: skip
            axes.axhline(0, color=_DARK, lw=0.8, ls=":")
            axes.set(ylabel=label)
            axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        panels[-1].set(xlabel="mean rank of the gene in its cells (0: first, 1: last)")
        panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=2)
    return figure


def _counted(colour: str, chosen: np.ndarray) -> str:
    what = "FDR < 0.05" if colour == _STRONG else "other genes"
    return f"{what} ({chosen.sum():,})"


def _band(axes: Axes, ranks_E: np.ndarray, values_E: np.ndarray) -> None:
    known = np.isfinite(ranks_E) & np.isfinite(values_E)
    values = pd.Series(values_E[known], ranks_E[known]).sort_index()
    windows, places = (
        each.rolling(_BAND_GENES, center=True) for each in (values, values.index.to_series())
    )
    dense = places.max() - places.min() < _BAND_WIDTH
    if not dense.any():
        return
    low, high = (windows.quantile(part).where(dense) for part in _BAND)
    axes.fill_between(values.index, low, high, color=MISSING_COLOUR, alpha=0.5, lw=0,
                      label="9 of 10 genes of like rank")  # fmt: skip


def percentile_figure(percentiles: np.ndarray, figure: FigureBase | None = None) -> Figure:
    """Draws where genes stand among their neighbours, 0 to 1, and how it would be by chance."""
    with matplotlib.rc_context(STYLE):
        figure = figure or new_figure(7.2, 3.2)
        axes = figure.add_subplot()
        counts, _, _ = axes.hist(percentiles, np.linspace(0, 1, 21), color=_MAIN)
        axes.axhline(len(percentiles) / len(counts), color=_STRONG, lw=1.5, ls="--",
                     label="if genes were drawn at random")  # fmt: skip
        axes.set(xlabel="percentile among genes of like rank and detection", ylabel="genes")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def coverage_figure(
    fractions: np.ndarray, minimum: float, figure: FigureBase | None = None
) -> Figure:
    """Draws in which fraction of the cells genes are within the model's sight."""
    with matplotlib.rc_context(STYLE):
        figure = figure or new_figure(7.2, 3.2)
        axes = figure.add_subplot()
        axes.hist(fractions, np.linspace(0, 1, 21), color=_MAIN)
        axes.axvline(minimum, color=_STRONG, lw=1.5, ls="--", label=f"{minimum:.0%} of the cells")
        axes.set(xlabel="fraction of the cells that have the gene in sight", ylabel="genes")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def states_figure(
    start_E: np.ndarray,
    goal_E: np.ndarray,
    names: Sequence[str],
    figure: FigureBase | None = None,
) -> Figure:
    """Draws each gene's shift towards the start (horizontal) and towards the goal."""
    with matplotlib.rc_context(STYLE):
        figure = figure or new_figure(5.6, 5.0)
        axes = figure.add_subplot()
        axes.scatter(start_E, goal_E, s=14, c=_MAIN, lw=0, rasterized=True)
        limits = [np.nanmin([start_E, goal_E]), np.nanmax([start_E, goal_E])]
        axes.plot(limits, limits, color=_DARK, lw=0.8, ls=":", label="both alike")
        for draw in (axes.axhline, axes.axvline):
            draw(0, color=MISSING_COLOUR, lw=0.8, zorder=0)
        axes.set(xlabel=f"mean shift towards {names[0]}", ylabel=f"mean shift towards {names[1]}")
        axes.ticklabel_format(scilimits=(-3, 4))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
