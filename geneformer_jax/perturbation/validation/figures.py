"""Figures of a validation: scores beside their controls, and each perturbation's direction."""

from collections.abc import Mapping, Sequence

import altair as alt
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geneformer_jax.perturbation.validation.scoring.compare import (
    LIKE_RANK,
    MEAN,
    PREDICTION,
    SPLIT_HALF,
)
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import MAIN, MISSING_COLOUR, STRONG, STYLE, new_figure

_LOOKS = {
    LIKE_RANK: ("v", "#777777"),
    MEAN: ("s", MAIN),
    PREDICTION: ("o", STRONG),
    SPLIT_HALF: ("D", "#222222"),
}
_APART = 0.18
_NAMED = 10


def scores_figure(
    scores: pd.DataFrame, questions: Mapping[str, str], names: Mapping[str, str]
) -> Figure:
    """Draws the mean score of each source for some metrics, over dots of single perturbations.

    Args:
      scores: rows of `compare.score`.
      questions: metric -> label of its row.
      names: source -> label.
    """
    asked = [protocol for protocol in questions if (scores["protocol"] == protocol).any()]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.6, 1.1 + 0.95 * len(asked))
        axes = figure.add_subplot()
        for place, (source, (marker, colour)) in enumerate(_LOOKS.items()):
            heights = np.arange(len(asked)) + (place - 1.5) * _APART
            own = scores[scores["source"] == source]
            groups = [own.loc[own["protocol"] == each, "value"].to_numpy() for each in asked]
            for height, values in zip(heights, groups, strict=True):
                axes.scatter(values, np.full(len(values), height), s=9, c=colour, alpha=0.25,
                             lw=0, rasterized=True)  # fmt: skip
            means = [values.mean() if len(values) else np.nan for values in groups]
            axes.scatter(means, heights, s=64, c=colour, marker=marker, edgecolors="white",
                         label=names[source], zorder=3)  # fmt: skip
        axes.set_yticks(np.arange(len(asked)), [questions[each] for each in asked])
        axes.invert_yaxis()
        axes.set(xlabel="score (higher is better)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=2)
    return figure


def scores_chart(
    scores: pd.DataFrame, asked: Sequence[str], names: Mapping[str, str]
) -> alt.LayerChart:
    """Charts the mean score of each source for some metrics; see `scores_figure`."""
    shown = scores[scores["protocol"].isin(asked)]
    means = shown.groupby(["protocol", "source"], sort=False)["value"].mean().reset_index()
    means["source"] = means["source"].map(names)
    label = "mean score (higher is better)"
    return charts.dots(means, "value", "protocol", label, series="source")


def directions_chart(perturbations: pd.DataFrame) -> alt.LayerChart:
    """Charts what `directions_figure` draws; the points' keys are perturbations."""
    words = {"split_half_cosine": "cosine of the measured shifts of two halves",
             "cosine": "cosine of predicted and measured shift"}  # fmt: skip
    return charts.scatter(
        perturbations, *words, words, key="perturbation", name="symbol", same=True
    )


def directions_figure(perturbations: pd.DataFrame) -> Figure:
    """Draws for each perturbation how well its predicted shift points where the measured one does.

    Args:
      perturbations: with `symbol`, `cosine` and `split_half_cosine`.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(6.4, 4.8)
        axes = figure.add_subplot()
        x, y = perturbations["split_half_cosine"], perturbations["cosine"]
        for draw in (axes.axhline, axes.axvline):
            draw(0, color=MISSING_COLOUR, lw=0.8, zorder=0)
        axes.scatter(x, y, s=26, c=MAIN, lw=0, rasterized=True)
        axes.axline((0, 0), slope=1, color="#222222", lw=0.8, ls=":", label="both alike")
        for row in perturbations.nlargest(_NAMED, "cosine").itertuples():
            axes.annotate(row.symbol, (row.split_half_cosine, row.cosine), (4, 3),
                          textcoords="offset points", fontsize=9)  # fmt: skip
        axes.set(
            xlabel="cosine of the measured shifts of two halves",
            ylabel="cosine of predicted and measured shift",
        )
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
