"""Figures of perturbation shifts: volcano, ranks, background, mixture, pairs, affected genes."""

from collections.abc import Mapping, Sequence

import altair as alt
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import norm

from geneformer_jax.perturbation.layout import JOINT
from geneformer_jax.perturbation.statistics.mixture import Mixture
from geneformer_jax.perturbation.statistics.shifts import SIGNIFICANT
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import (
    DIVERGING,
    MAIN,
    MISSING_COLOUR,
    STRONG,
    STYLE,
    new_figure,
)

_DARK = "#222222"
_NAMED = 16
# Height of a name, of the height of the axes.
_LINE = 0.052
_MOST_PAIRED = 40
_LOWEST_RATE = 1e-300
_NAME_LETTERS = 24


def volcano_figure(
    table: pd.DataFrame,
    shift: str,
    rate: str,
    labels: Mapping[str, str],
    axes: Axes | None = None,
) -> Figure:
    """Draws effect against significance, the significant edits coloured and the first ones named.

    Args:
      table: a ranked table with Gene_name, Sig and the two columns.
      shift: column of the horizontal axis.
      rate: column of p-values or FDR, drawn as -log10; edits without one are left out.
      labels: of the axes, by column.
      axes: to draw on; those of a new figure by default.
    """
    shown = table[table[rate].notna() & table[shift].notna()]
    height = -np.log10(np.maximum(shown[rate].to_numpy(float), _LOWEST_RATE))
    significant = shown["Sig"].to_numpy() == 1
    with matplotlib.rc_context(STYLE):
        axes = axes or new_figure(7.2, 4.8).add_subplot()
        x = shown[shift].to_numpy(float)
        for chosen, colour, name in (
            (~significant, MISSING_COLOUR, "not significant"),
            (significant, STRONG, "FDR < 0.05"),
        ):
            words = f"{name} ({chosen.sum():,})"
            axes.scatter(x[chosen], height[chosen], s=16, c=colour, lw=0, label=words,
                         rasterized=True)  # fmt: skip
        axes.axvline(0, color=_DARK, lw=0.8, ls=":")
        axes.set(xlabel=labels[shift], ylabel=labels[rate])
        # Room for the names at either side.
        axes.margins(x=0.42)
        threshold = -np.log10(SIGNIFICANT)
        axes.axhline(threshold, color=_DARK, lw=0.8, ls=":")
        top = 1.08 * max(height.max(initial=0), threshold)
        axes.set_ylim(-0.03 * top, top)
        axes.ticklabel_format(axis="x", scilimits=(-3, 4))
        axes.locator_params(axis="x", nbins=6)
        candidates = significant if significant.any() else np.ones(len(x), bool)
        for side, place in ((x < 0, 0.01), (x >= 0, 0.99)):
            named = np.flatnonzero(candidates & side)
            named = named[np.lexsort((-np.abs(x[named]), -height[named]))][: _NAMED // 2]
            _name_points(axes, x[named], height[named], shown["Gene_name"].iloc[named], place)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return axes.figure


def ranked_figure(
    table: pd.DataFrame,
    shift: str,
    chosen: pd.Series,
    labels: Sequence[str],
    axes: Axes | None = None,
) -> Figure:
    """Draws all edits by the rank of their shift; the lowest and highest eight are named.

    Args:
      table: with Gene_name and the column `shift`.
      shift: column of the vertical axis.
      chosen: bool [rows], which to colour.
      labels: of the vertical axis and of the coloured ones.
      axes: to draw on; those of a new figure by default.
    """
    known = table[shift].notna()
    shown = table[known].assign(chosen=chosen[known]).sort_values(shift, kind="stable")
    ranks, values = np.arange(1, len(shown) + 1), shown[shift].to_numpy(float)
    coloured = shown["chosen"].to_numpy(bool)
    with matplotlib.rc_context(STYLE):
        axes = axes or new_figure(7.2, 4.8).add_subplot()
        # In one go: drawn after the others, few coloured points would hide most of them.
        axes.scatter(ranks, values, s=14, c=np.where(coloured, STRONG, MAIN), lw=0,
                     rasterized=True)  # fmt: skip
        for colour, label, count in (
            (MAIN, "other", (~coloured).sum()),
            (STRONG, labels[1], coloured.sum()),
        ):
            axes.scatter([], [], s=18, c=colour, lw=0, label=f"{label} ({count:,})")
        axes.set(xlabel="rank", ylabel=labels[0])
        axes.margins(y=0.08)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        # Cosines lie close to 1, of which ticks must not be the differences.
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
        half = min(_NAMED // 2, len(shown) // 2)
        named = np.r_[0:half, len(shown) - half : len(shown)]
        _name_points(axes, ranks[named], values[named], shown["Gene_name"].iloc[named], 1.05)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return axes.figure


def background_figure(
    background: np.ndarray, values: Mapping[str, np.ndarray], labels: Sequence[str]
) -> Figure:
    """Draws the cells of some edits as dots below the distribution they are compared with.

    Args:
      background: [N] shifts that edits are compared with.
      values: name of an edit -> its shifts, one per cell; a bar marks the mean.
      labels: of the horizontal axis and of the background.
    """
    # Single far cells may lie outside, so that the bulk can be seen; means never do.
    means = [each.mean() for each in values.values()]
    outermost = [*np.quantile(background, [0.002, 0.998]), *means]
    low, high = min(outermost), max(outermost)
    pad = 0.04 * (high - low or 1.0)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 2.2 + 0.32 * len(values))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.6, 0.32 * len(values)))
        bins = np.linspace(low - pad, high + pad, 61)
        above.hist(background, bins, color=MISSING_COLOUR)
        above.set(ylabel="shifts")
        above.set_title(labels[1], loc="left")
        above.yaxis.set_major_formatter("{x:,.0f}")
        rng = np.random.default_rng(0)
        for row, each in enumerate(values.values()):
            shown = each if len(each) <= 500 else rng.choice(each, 500, replace=False)
            jitter = row + rng.uniform(-0.22, 0.22, len(shown))
            below.scatter(shown, jitter, s=10, c=MAIN, alpha=0.7, lw=0, rasterized=True)
            below.plot([means[row]] * 2, [row - 0.38, row + 0.38], color=STRONG, lw=2.2)
        names = [f"{_short(name)} ({len(each):,})" for name, each in values.items()]
        below.set_yticks(range(len(values)), names)
        below.set(xlabel=labels[0], xlim=(low - pad, high + pad), ylim=(len(values) - 0.4, -0.6))
        below.tick_params(axis="y", length=0)
        below.ticklabel_format(axis="x", scilimits=(-3, 4))
        for axes in (above, below):
            axes.axvline(background.mean(), color=_DARK, lw=1, ls=":")
    return figure


def mixture_bins(edits: int) -> int:
    """Number of bars for so many edits."""
    return min(60, max(12, edits // 8))


def mixture_figure(means: np.ndarray, fitted: Mixture, label: str) -> Figure:
    """Draws the mean shifts of edits [edits] and the two components fitted to them."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 3.8)
        axes = figure.add_subplot()
        counts, edges, _ = axes.hist(
            means, mixture_bins(len(means)), color=MISSING_COLOUR, label="edits"
        )
        x = np.linspace(edges[0], edges[-1], 400)
        area = counts.sum() * (edges[1] - edges[0])
        names, colours = ("impact", "no impact"), (STRONG, MAIN)
        for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
            density = norm.pdf(x, fitted.means[i], fitted.deviations[i]) * fitted.weights[i]
            words = f"{name}: mean {fitted.means[i]:.4g}, {fitted.weights[i]:.0%} of edits"
            axes.plot(x, area * density, color=colour, lw=2, label=words)
        # A component much narrower than a bar would squeeze the bars to the floor.
        axes.set_ylim(0, 1.25 * counts.max())
        axes.set(xlabel=label, ylabel="edits")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def strongest_pairs(table: pd.DataFrame, column: str) -> pd.DataFrame | None:
    """Returns a column of a table of pairs as a matrix of genes by genes, named by symbols.

    Of more than 40 genes those of the strongest pairs are taken. Pairs never edited are NaN.

    Args:
      table: of `combinations`.
      column: the values.

    Returns:
      The matrix, or None where there are no pairs of at least three genes on both sides, as with
      one anchor, where a ranked figure shows it all.
    """
    pairs = table[table["Ensembl_ID"].str.count(r"\+") == 1]
    ids = pairs["Ensembl_ID"].str.split(JOINT, regex=False, expand=True)
    symbols = pairs["Gene_name"].str.split(JOINT, regex=False, expand=True)
    if len(pairs) < 3 or min(ids[0].nunique(), ids[1].nunique()) < 2:
        return None
    strength = pd.concat([pairs[column].abs().set_axis(ids[side]) for side in (0, 1)])
    genes = strength.groupby(level=0).max().nlargest(_MOST_PAIRED).index.sort_values()
    names = dict(zip(pd.concat([ids[0], ids[1]]), pd.concat([symbols[0], symbols[1]]), strict=True))
    matrix = pd.DataFrame(np.nan, genes, genes)
    for first, second, value in zip(ids[0], ids[1], pairs[column], strict=True):
        if first in genes and second in genes:
            matrix.loc[first, second] = matrix.loc[second, first] = value
    words = [_short(names[gene]) for gene in genes]
    return matrix.set_axis(words, axis=0).set_axis(words, axis=1)


def pairs_figure(matrix: pd.DataFrame, label: str) -> Figure:
    """Draws a matrix of `strongest_pairs`; 0 is white, pairs never edited are grey.

    Args:
      matrix: [genes, genes].
      label: of the colour bar.
    """
    limit = _limit(matrix)
    side = max(4.0, 0.24 * len(matrix) + 1.6)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(side + 1.4, side)
        axes = figure.add_subplot()
        colours = matplotlib.colormaps[DIVERGING].with_extremes(bad="#dddddd")
        image = axes.imshow(matrix, cmap=colours, vmin=-limit, vmax=limit, interpolation="none")
        ticks = range(len(matrix))
        axes.set_xticks(ticks, matrix.columns, rotation=90, fontsize=9, fontstyle="italic")
        axes.set_yticks(ticks, matrix.index, fontsize=9, fontstyle="italic")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label=label, shrink=0.7)
    return figure


def pairs_chart(matrix: pd.DataFrame, label: str) -> alt.LayerChart:
    """Charts what `pairs_figure` draws; pairs never edited are left out."""
    names = {"gene": matrix.index, "other gene": matrix.columns}
    pairs = pd.DataFrame(
        [(down, across, matrix.iloc[i, j]) for i, down in enumerate(matrix.index)
         for j, across in enumerate(matrix.columns)],
        columns=[*names, "value"],
    )  # fmt: skip
    return charts.heat_map(
        pairs.dropna(), ("other gene", "gene"), "value", {"value": label}, limit=_limit(matrix)
    )


def _limit(matrix: pd.DataFrame) -> float:
    return float(np.nanmax(np.abs(matrix.to_numpy()))) or 1.0


def affected_figure(table: pd.DataFrame, edit: str, max_genes: int) -> Figure:
    """Draws the genes that one edit moves farthest: mean over cells and standard deviation.

    Args:
      table: rows of `aggregate_gene_shifts` of this edit.
      edit: its symbol.
      max_genes: genes to show.
    """
    shown = table.nsmallest(max_genes, "Cosine_sim_mean")
    rows = np.arange(len(shown))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 1.2 + 0.26 * len(shown))
        axes = figure.add_subplot()
        mean, spread = shown["Cosine_sim_mean"], shown["Cosine_sim_stdev"]
        axes.hlines(rows, mean - spread, np.minimum(mean + spread, 1), color=MISSING_COLOUR, lw=3)
        axes.plot(mean, rows, "o", color=STRONG, ms=6)
        names = [
            f"{_short(name)} ({cells:,})"
            for name, cells in zip(shown["Affected_gene_name"], shown["N_Detections"], strict=True)
        ]
        axes.set_yticks(rows, names)
        axes.set(
            ylim=(len(shown) - 0.4, -0.6),
            xlabel="cosine similarity of the gene before and after (mean, standard deviation)",
            title=f"Genes that editing {_short(edit)} moves farthest (cells)",
        )
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#e3e6ec", lw=0.8)
        axes.set_axisbelow(True)
    return figure


def _name_points(
    axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], column: float
) -> None:
    """Writes the names of points below each other, joined to them by thin lines.

    `column` is where they stand, as a fraction of the width: in the right half of the axes they end
    there, elsewhere they begin there. Call it when the limits of the axes are set.
    """
    low, high = axes.get_ylim()
    wanted = (np.asarray(y, float) - low) / (high - low)
    places = _apart(wanted)
    align = "right" if 0.5 < column < 1 else "left"
    for name, point, place in zip(names, zip(x, y, strict=True), places, strict=True):
        axes.annotate(
            _short(name),
            point,
            (column, place),
            textcoords="axes fraction",
            fontsize=9,
            fontstyle="italic",
            ha=align,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": "#9a9fab",
                "lw": 0.6,
                "shrinkB": 2,
                "relpos": (1.0 if column < 0.5 else 0.0, 0.5),
            },
            annotation_clip=False,
        )


def _apart(wanted: np.ndarray) -> np.ndarray:
    """The nearest heights, as fractions of the axes, at which lines of text do not overlap."""
    order = np.argsort(-wanted, kind="stable")
    places = wanted.copy()
    ceiling = 1.0
    for point in order:
        places[point] = min(wanted[point], ceiling)
        ceiling = places[point] - _LINE
    floor = 0.02
    for point in order[::-1]:
        places[point] = max(places[point], floor)
        floor = places[point] + _LINE
    return places


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LETTERS else name[: _NAME_LETTERS - 1] + "…"
