"""Figures of controls: shifts beside those of genes of like rank, percentiles, coverage, states."""

from collections.abc import Mapping, Sequence

import altair as alt
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import MAIN, MISSING_COLOUR, STRONG, STYLE, new_figure

PERCENTILE = "percentile among genes of like rank and detection"
IN_SIGHT = "fraction of the cells that have the gene in sight"
_DARK = "#222222"
_BAND, _SIDES = (0.05, 0.95), ("start", "goal")
_FRACTIONS = np.linspace(0, 1, 21)
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
            _draw_band(axes, ranks_E, values)
            for chosen, colour, size in ((~differs_E, MAIN, 12), (differs_E, STRONG, 26)):
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
    what = "FDR < 0.05" if colour == STRONG else "other genes"
    return f"{what} ({chosen.sum():,})"


def rank_chart(
    edits: pd.DataFrame, ranks_E: np.ndarray, shifts: tuple[str, np.ndarray], differs_E: np.ndarray
) -> alt.LayerChart:
    """Charts the panel of `rank_figure` that is tested.

    Args:
      edits: with Ensembl_ID and Gene_name, [edits].
      ranks_E, differs_E: as there.
      shifts: (label, [edits]).
    """
    label, values = shifts
    table = edits.assign(rank=ranks_E, shift=values, differs=differs_E)
    words = {"rank": "mean rank of the gene in its cells (0: first, 1: last)", "shift": label}
    groups = ("differs", "FDR < 0.05", "other genes")
    return charts.scatter(
        table, "rank", "shift", words, groups=groups, band=_band(ranks_E, values).reset_index()
    )


def states_chart(
    edits: pd.DataFrame, start_E: np.ndarray, goal_E: np.ndarray, names: Sequence[str]
) -> alt.LayerChart:
    """Charts what `states_figure` draws of edits, with Ensembl_ID and Gene_name."""
    words = {side: f"mean shift towards {name}" for side, name in zip(_SIDES, names, strict=True)}
    table = edits.assign(start=start_E, goal=goal_E)
    return charts.scatter(table, *_SIDES, words, same=True)


def _draw_band(axes: Axes, ranks_E: np.ndarray, values_E: np.ndarray) -> None:
    band = _band(ranks_E, values_E)
    if len(band):
        axes.fill_between(band.index, band["low"], band["high"], color=MISSING_COLOUR, alpha=0.5,
                          lw=0, label="9 of 10 genes of like rank")  # fmt: skip


def _band(ranks_E: np.ndarray, values_E: np.ndarray) -> pd.DataFrame:
    """low and high by rank, within which nine of ten genes of like rank lie."""
    known = np.isfinite(ranks_E) & np.isfinite(values_E)
    values = pd.Series(values_E[known], ranks_E[known]).sort_index()
    windows, places = (
        each.rolling(_BAND_GENES, center=True) for each in (values, values.index.to_series())
    )
    dense = places.max() - places.min() < _BAND_WIDTH
    band = {side: windows.quantile(part) for side, part in zip(("low", "high"), _BAND, strict=True)}
    return pd.DataFrame(band)[dense.to_numpy()].rename_axis("x")


def percentile_figure(percentiles: np.ndarray, figure: FigureBase | None = None) -> Figure:
    """Draws where genes stand among their neighbours, 0 to 1, and how it would be by chance."""
    with matplotlib.rc_context(STYLE):
        figure = figure or new_figure(7.2, 3.2)
        axes = figure.add_subplot()
        counts, _, _ = axes.hist(percentiles, _FRACTIONS, color=MAIN)
        axes.axhline(len(percentiles) / len(counts), color=STRONG, lw=1.5, ls="--",
                     label="if genes were drawn at random")  # fmt: skip
        axes.set(xlabel=PERCENTILE, ylabel="genes")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def fraction_chart(
    fractions: np.ndarray, label: str, marks: Mapping[str, float] = {}
) -> alt.LayerChart:
    """Charts how many genes lie where between 0 and 1, with upright lines by their names."""
    counts, edges = np.histogram(fractions, _FRACTIONS)
    return charts.histogram(counts, edges, (label, "genes"), marks)


def coverage_figure(
    fractions: np.ndarray, minimum: float, figure: FigureBase | None = None
) -> Figure:
    """Draws in which fraction of the cells genes are within the model's sight."""
    with matplotlib.rc_context(STYLE):
        figure = figure or new_figure(7.2, 3.2)
        axes = figure.add_subplot()
        axes.hist(fractions, _FRACTIONS, color=MAIN)
        axes.axvline(minimum, color=STRONG, lw=1.5, ls="--", label=f"{minimum:.0%} of the cells")
        axes.set(xlabel=IN_SIGHT, ylabel="genes")
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
        axes.scatter(start_E, goal_E, s=14, c=MAIN, lw=0, rasterized=True)
        limits = [np.nanmin([start_E, goal_E]), np.nanmax([start_E, goal_E])]
        axes.plot(limits, limits, color=_DARK, lw=0.8, ls=":", label="both alike")
        for draw in (axes.axhline, axes.axvline):
            draw(0, color=MISSING_COLOUR, lw=0.8, zorder=0)
        axes.set(xlabel=f"mean shift towards {names[0]}", ylabel=f"mean shift towards {names[1]}")
        axes.ticklabel_format(scilimits=(-3, 4))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
