"""Figures of classifiers: ROC, precision-recall, confusion, probabilities, calibration."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import matplotlib.axes
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from geneformer_jax.finetuning.classification.metrics import (
    FALSE_POSITIVE_RATES,
    Roc,
    precision_recall,
)
from geneformer_jax.finetuning.classification.predictions import PROBABILITY, classes_of
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import PALETTE, SEQUENTIAL, STYLE, new_figure

_DASHES = ("-", "--", ":", "-.")
_CHANCE = {"color": "#8a8a8a", "lw": 1, "ls": (0, (2, 3)), "zorder": 0}
_MOST_WRITTEN = 14
SIDES = {
    "loss": ("training", {"lw": 1, "alpha": 0.7, "marker": ".", "ms": 3}),
    "held_out_loss": ("validation", {"lw": 2.2, "marker": "o", "ms": 5}),
}
_CHANCE_NAME = "by chance"
# As many points as can be told apart on a line.
_POINTS = 150
_PROBABILITY_BINS = np.linspace(0, 1, 41)


def roc_figure(rocs: Mapping[str, Roc], title: str = "") -> Figure:
    """Draws the mean ROC curve of each method, and the folds of the first as thin lines."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.4, 5.0)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], **_CHANCE)
        for (name, roc), (dash, colour) in zip(rocs.items(), _lines(), strict=False):
            first = name == next(iter(rocs))
            if first:
                for curve in roc.curves:
                    axes.plot(FALSE_POSITIVE_RATES, curve, color=colour, lw=0.8, alpha=0.35)
            axes.plot(
                FALSE_POSITIVE_RATES,
                roc.mean_curve,
                color=colour,
                ls=dash,
                lw=2.6 if first else 1.6,
                label=f"{name}: {roc.auc:.2f}" + (f" ± {roc.sd:.2f}" if len(roc.folds) > 1 else ""),
                zorder=3 if first else 2,
            )
        axes.set(
            xlabel="false positive rate",
            ylabel="true positive rate",
            title=title,
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.01),
            aspect="equal",
        )
        several = any(len(roc.folds) > 1 for roc in rocs.values())
        _legend(axes, "AUC, mean ± sd over folds" if several else "AUC")
    return figure


def loss_figure(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]], chance: float | None = None
) -> Figure:
    """Draws loss against steps, a colour for each fold.

    Args:
      metrics: fold -> rows of its metrics.jsonl; those with `loss` are of the cells that are
        learned from (thin), those with `held_out_loss` of the validation side (thick).
      chance: loss of the classes' frequencies alone, or None.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 4.2)
        axes = figure.add_subplot()
        for (fold, rows), (_, colour) in zip(metrics.items(), _lines(), strict=False):
            for key, (side, look) in SIDES.items():
                line = [(row["step"], row[key]) for row in rows if key in row]
                if line:
                    label = f"{fold.replace('_', ' ')}, {side}"
                    axes.plot(*zip(*line, strict=True), color=colour, label=label, **look)
        if chance is not None:
            axes.axhline(chance, label="class frequencies alone", **_CHANCE)
        axes.set(xlabel="training step", ylabel="loss (nats)", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def precision_recall_figure(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], fraction: float, title: str = ""
) -> Figure:
    """Draws precision against recall.

    Args:
      curves: name -> (precision, recall).
      fraction: of the class among what is tested, the precision of chance.
      title: above the axes.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.4, 4.6)
        axes = figure.add_subplot()
        axes.axhline(fraction, **_CHANCE)
        for (name, (precision, recall)), (dash, colour) in zip(
            curves.items(), _lines(), strict=False
        ):
            # Beginning at no recall a single example decides; the step shows what is measured.
            axes.step(recall, precision, where="post", color=colour, ls=dash, lw=1.8, label=name)
        axes.set(xlabel="recall", ylabel="precision", title=title)
        axes.set(xlim=(-0.01, 1.01), ylim=(0, 1.02))
        _legend(axes)
    return figure


def confusion_figure(matrix: pd.DataFrame, title: str = "") -> Figure:
    """Draws a confusion matrix: colour is the fraction of each true class, numbers are counts."""
    counts = matrix.to_numpy()
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.6 + 0.55 * len(matrix)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(size + 1.6, size)
        axes = figure.add_subplot()
        image = axes.imshow(fractions, cmap=SEQUENTIAL, vmin=0, vmax=1)
        places = range(len(matrix))
        axes.set_xticks(places, matrix.columns, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(
            places, [f"{n} ({c:,})" for n, c in zip(matrix.index, counts.sum(1), strict=True)]
        )
        if len(matrix) <= _MOST_WRITTEN:
            for row, column in itertools.product(places, places):
                colour = "white" if fractions[row, column] < 0.55 else "#1d2330"
                text = f"{counts[row, column]:,}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        axes.set(xlabel="predicted class", ylabel="true class (members)", title=title)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    return figure


def probability_figure(predictions: pd.DataFrame, title: str = "") -> Figure:
    """Draws how the probabilities of members of each true class are distributed.

    Two classes: histograms of the probability of the second. More: for each class a box (quartiles,
    whiskers at 5 and 95 %) of the probability that its own members were given for it.
    """
    classes = classes_of(predictions)
    truth = predictions["label"].astype(str)
    of = [classes[1]] * 2 if len(classes) == 2 else classes
    values = {
        f"{name} ({(truth == name).sum():,})": predictions.loc[truth == name, PROBABILITY + each]
        for name, each in zip(classes, of, strict=True)
        if (truth == name).any()
    }
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.4, max(4.0, 1.4 + 0.32 * len(values)))
        axes = figure.add_subplot()
        draw = _histograms if len(classes) == 2 else _boxes
        draw(axes, {name: each.to_numpy(np.float64) for name, each in values.items()})
        what = f"probability of {classes[1]}" if len(classes) == 2 else "probability of that class"
        axes.set(xlabel=what, title=title, xlim=(-0.01, 1.01))
    return figure


def _histograms(axes: matplotlib.axes.Axes, values: Mapping[str, np.ndarray]) -> None:
    for (name, each), colour in zip(values.items(), PALETTE, strict=False):
        axes.hist(
            each,
            _PROBABILITY_BINS,
            weights=np.full(len(each), 1 / len(each)),
            histtype="stepfilled",
            color=(colour, 0.35),
            edgecolor=colour,
            lw=1.6,
            label=name,
        )
    axes.set_ylabel("fraction of the true class")
    _legend(axes, "true class")


def _boxes(axes: matplotlib.axes.Axes, values: Mapping[str, np.ndarray]) -> None:
    boxes = axes.boxplot(
        list(values.values()),
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        widths=0.6,
        patch_artist=True,
        medianprops={"color": "#1d2330", "lw": 1.6},
    )
    for box in boxes["boxes"]:
        box.set(facecolor=(PALETTE[0], 0.25), edgecolor=PALETTE[0])
    axes.set_yticks(range(1, len(values) + 1), list(values))
    axes.invert_yaxis()
    axes.set_ylabel("true class (members)")


def calibration_figure(curves: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Draws accuracy against probability of the predicted class, from `calibration_curve`s."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.4, 4.8)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], **_CHANCE)
        for (name, curve), (dash, colour) in zip(curves.items(), _lines(), strict=False):
            axes.plot(
                curve["confidence"], curve["accuracy"], color=colour, ls=dash, lw=1.4, label=name
            )
            sizes = 8 + 70 * curve["rows"] / curve["rows"].sum()
            axes.scatter(curve["confidence"], curve["accuracy"], s=sizes, color=colour, zorder=3)
        axes.set(
            xlabel="probability of the predicted class",
            ylabel="accuracy",
            title=title,
            xlim=(-0.01, 1.02),
            ylim=(-0.01, 1.02),
            aspect="equal",
        )
        _legend(axes, "method (size: fraction of rows)")
    return figure


def roc_chart(rocs: Mapping[str, Roc]) -> alt.LayerChart:
    """Charts the mean ROC curve of each method."""
    parts = [
        pd.DataFrame({"x": FALSE_POSITIVE_RATES, "y": roc.mean_curve,
                      "method": f"{name}: {roc.auc:.2f}"})
        for name, roc in rocs.items()
    ]  # fmt: skip
    parts.append(pd.DataFrame({"x": [0, 1], "y": [0, 1], "method": _CHANCE_NAME}))
    labels = {"x": "false positive rate", "y": "true positive rate", "method": "AUC"}
    return charts.lines(pd.concat(parts), "x", "y", "method", labels, dashed=[_CHANCE_NAME])


def precision_recall_chart(
    predictions: Mapping[str, pd.DataFrame], classes: Sequence[str]
) -> alt.LayerChart:
    """Charts precision against recall of each method, for the class that the reader picks.

    Args:
      predictions: method -> its predictions.
      classes: in the order of the choice.
    """
    parts = []
    for name in classes:
        for method, each in predictions.items():
            precision, recall = precision_recall(each, name)
            kept = np.unique(np.linspace(0, len(recall) - 1, _POINTS).astype(int))
            parts.append(pd.DataFrame({"recall": recall[kept], "precision": precision[kept],
                                       "method": method, "class": name}))  # fmt: skip
        fraction = float((next(iter(predictions.values()))["label"].astype(str) == name).mean())
        parts.append(pd.DataFrame({"recall": [0, 1], "precision": fraction, "method": _CHANCE_NAME,
                                   "class": name}))  # fmt: skip
    return charts.lines(
        pd.concat(parts), "recall", "precision", "method", {}, choice="class", dashed=[_CHANCE_NAME]
    )


def confusion_chart(matrix: pd.DataFrame) -> alt.LayerChart:
    """Charts a confusion matrix: colour is the fraction of each true class, texts are counts."""
    fractions = matrix.div(matrix.sum(axis=1).clip(lower=1), axis=0)
    names = ["true class", "predicted class"]
    cells = pd.DataFrame({"fraction": fractions.stack(), "count": matrix.stack()})
    cells = cells.rename_axis(names).reset_index()
    cells["words"] = cells["count"].map("{:,}".format)
    return charts.heat_map(
        cells, (names[1], names[0]), "fraction", {"fraction": "fraction of the true class"},
        further=["count"], text="words",
    )  # fmt: skip


def calibration_chart(curves: Mapping[str, pd.DataFrame]) -> alt.LayerChart:
    """Charts accuracy against probability of the predicted class, from `calibration_curve`s."""
    parts = [curve.assign(method=name) for name, curve in curves.items()]
    parts.append(pd.DataFrame({"confidence": [0, 1], "accuracy": [0, 1], "method": "right"}))
    labels = {"confidence": "probability of the predicted class", "accuracy": "accuracy"}
    return charts.lines(
        pd.concat(parts), "confidence", "accuracy", "method", labels, dashed=["right"], points=True
    )


def loss_chart(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> alt.LayerChart | None:
    """Charts loss against steps, of folds and their sides; None without any. See `loss_figure`."""
    lines = [
        {"step": row["step"], "loss": row[key], "line": f"{fold.replace('_', ' ')}, {side}"}
        for fold, rows in metrics.items()
        for key, (side, _) in SIDES.items()
        for row in rows
        if key in row
    ]
    if not lines:
        return None
    labels = {"step": "training step", "loss": "loss (nats)"}
    return charts.lines(pd.DataFrame(lines), "step", "loss", "line", labels)


def _lines() -> itertools.product:
    """Dash and colour of each line, as many as anyone will draw."""
    return itertools.product(_DASHES, PALETTE)


def _legend(axes: matplotlib.axes.Axes, title: str = "") -> None:
    axes.legend(title=title, alignment="left", loc="center left", bbox_to_anchor=(1.01, 0.5))
