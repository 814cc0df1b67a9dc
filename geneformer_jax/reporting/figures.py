"""Figures in one style: colour-blind-safe, labelled, readable at the size they are shown at.

Figures are built without pyplot, so that nothing is left open and no display is needed.
"""

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write

if TYPE_CHECKING:
    import altair as alt

# Twelve colours chosen by search, for light and dark pages: any two stay at least 28 CIELAB units
# apart, to normal, protanope and deuteranope eyes alike, and 20 CIEDE2000 units to normal ones, to
# which CIELAB makes blues look more different than they are (a test recomputes this).
PALETTE = (
    "#00899d",
    "#d86200",
    "#8962ff",
    "#d8d814",
    "#9d004e",
    "#76b1ff",
    "#9debc4",
    "#9d1400",
    "#ffc476",
    "#76279d",
    "#76ebff",
    "#d86262",
)
# Beyond twelve categories the colours come round again under another marker.
MARKERS = ("o", "^", "s", "D", "P", "X")
MISSING_COLOUR = "#b8b8b8"
# What a figure is about, and what is to be seen first in it.
MAIN, STRONG = "#3c78a5", "#e13c00"
# Of matplotlib; Vega knows the same ones.
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
_MAX_CATEGORIES = len(PALETTE) * len(MARKERS)
# Letters that are drawn at the usual resolution.
_LONGEST_LABEL = 200

STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "savefig.bbox": "tight",
    "figure.facecolor": "white",
}


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, sized in inches; make it within `rc_context(STYLE)`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


class Drawing(NamedTuple):
    """A figure for files and a report.

    Attributes:
      name: end of the files' names.
      figure: the picture.
      caption: what it shows.
      chart: of `reporting.charts`, to explore in a report; None for the picture alone.
      table: name of the report's table whose rows the points of the chart stand for.
    """

    name: str
    figure: Figure
    caption: str
    chart: "alt.TopLevelMixin | None" = None
    table: str = ""


def save_figure(figure: Figure, stem: Path | str) -> list[Path]:
    """Writes `figure` as stem.png (200 dots per inch) and stem.pdf, each whole or not at all."""
    written = []
    for suffix in ("png", "pdf"):
        path = Path(f"{stem}.{suffix}")
        with atomic_write(path) as aside:
            aside.write_bytes(picture(figure, suffix))
        written.append(path)
    return written


def picture(figure: Figure, suffix: str) -> bytes:
    """Returns a figure as a file of a format that matplotlib writes, with 200 dots per inch."""
    # A PDF without a date is the same file each time it is drawn.
    metadata = {"CreationDate": None} if suffix == "pdf" else None
    # In memory: where a disk fails, matplotlib's PDF writer ends in another error that hides it.
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format=suffix, dpi=dots_per_inch(figure, 200), metadata=metadata)
    return file.getvalue()


def dots_per_inch(figure: Figure, usual: float) -> float:
    """Returns fewer than the usual ones where labels of thousands of letters make a figure huge."""
    texts = [each.get_text() for each in figure.findobj(Text)]
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    texts += [label.get_text() for axis in axes for label in axis.get_ticklabels()]
    longest = max(map(len, texts), default=0)
    return min(usual, usual * _LONGEST_LABEL / longest) if longest else usual


def umap_positions(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """Lays out embeddings [cells, D] in the plane with UMAP; returns float32 [cells, 2].

    The same embeddings and seed give the same layout. 15 neighbours, as the field's default.

    Raises:
      InputError: there are fewer than four cells, of which no neighbourhoods can be made.
    """
    cells = len(embeddings)
    if cells < 4:
        raise InputError(f"a UMAP needs at least 4 cells, but there are {cells}; give more cells")
    # Imported here because it compiles for seconds, which only a figure should have to wait for.
    from umap import UMAP

    # Spectral start positions need more cells than dimensions to solve for.
    init = "spectral" if cells > 16 else "random"
    layout = UMAP(
        n_neighbors=min(15, cells - 1), random_state=seed, n_jobs=1, init=init
    ).fit_transform(embeddings)
    return np.asarray(layout, np.float32)


def umap_figure(
    positions: np.ndarray, values: pd.Series, title: str = "", axes: Axes | None = None
) -> Figure:
    """Draws cells at their UMAP positions, coloured by a column of obs.

    Args:
      positions: [cells, 2], from `umap_positions`.
      values: one value per cell, in the same order. Numbers get a colour bar; anything else counts
        as categories, listed with their number of cells. Cells without a value are grey.
      title: above the axes.
      axes: to draw on; those of a new figure by default.

    Raises:
      InputError: more categories than a reader can distinguish.
    """
    if len(values) != len(positions):
        raise InputError(f"{len(values)} values for {len(positions)} cells; they must match")
    with matplotlib.rc_context(STYLE):
        axes = axes or new_figure(7.2, 4.8).add_subplot()
        size = float(np.clip(20_000 / max(len(positions), 1), 2, 22))
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            _scatter_numbers(axes.figure, axes, positions, values, size)
        else:
            _scatter_categories(axes, positions, values, size)
        axes.set(xlabel="UMAP 1", ylabel="UMAP 2", title=title, xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
    return axes.figure


def loss_curve_figure(
    metrics: Iterable[Mapping[str, Any]], baselines: Mapping[str, float] | None = None
) -> Figure:
    """Draws masked-gene loss against training steps.

    Args:
      metrics: rows of a metrics.jsonl. Rows with `step` and `loss` are training, rows with `step`
        and `held_out_loss` are evaluation; one row may be both, other rows are passed over.
      baselines: name -> held-out loss of a predictor without a model, drawn as horizontal lines.
    """
    rows = list(metrics)
    training = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    held_out = [(row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 4.2)
        axes = figure.add_subplot()
        if training:
            axes.plot(
                *zip(*training, strict=True), color=PALETTE[0], lw=1, alpha=0.7, label="training"
            )
        if held_out:
            axes.plot(
                *zip(*held_out, strict=True),
                color=PALETTE[1],
                lw=2,
                marker="o",
                ms=4,
                label="held out",
            )
        dashes = itertools.cycle(["--", ":", "-."])
        for (name, loss), dash in zip((baselines or {}).items(), dashes, strict=False):
            axes.axhline(loss, color="#444444", lw=1.5, ls=dash, label=name)
        axes.set(xlabel="training step", ylabel="masked-gene loss (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def histogram_figure(counts: np.ndarray, edges: np.ndarray, labels: tuple[str, str]) -> Figure:
    """Draws how many values lie in each bin.

    Args:
      counts: [bins].
      edges: [bins + 1].
      labels: of the horizontal axis and of what is counted.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 3.2)
        axes = figure.add_subplot()
        axes.stairs(counts, edges, fill=True, color=MAIN)
        axes.set(xlabel=labels[0], ylabel=labels[1])
    return figure


def _scatter_numbers(
    figure: Figure, axes: Any, positions: np.ndarray, values: pd.Series, size: float
) -> None:
    numbers = values.to_numpy(float, na_value=np.nan)
    known = np.isfinite(numbers)
    axes.scatter(*positions[~known].T, s=size, c=MISSING_COLOUR, lw=0, rasterized=True)
    points = axes.scatter(
        *positions[known].T, s=size, c=numbers[known], cmap=SEQUENTIAL, lw=0, rasterized=True
    )
    figure.colorbar(points, ax=axes, label=str(values.name or ""), shrink=0.8)


def _scatter_categories(axes: Any, positions: np.ndarray, values: pd.Series, size: float) -> None:
    codes, names = categories(values)
    handles = []
    for code, (name, (marker, colour)) in enumerate(zip(names, _looks(), strict=False)):
        chosen = codes == code
        # Rare categories are drawn above common ones, which would hide them.
        zorder = 2 + 1 / (1 + chosen.sum())
        axes.scatter(
            *positions[chosen].T,
            s=size,
            c=colour,
            marker=marker,
            lw=0,
            alpha=0.9,
            zorder=zorder,
            rasterized=True,
        )
        handles.append(_handle(f"{name} ({chosen.sum():,})", marker, colour))
    missing = codes < 0
    if missing.any():
        axes.scatter(
            *positions[missing].T, s=size, c=MISSING_COLOUR, lw=0, zorder=1, rasterized=True
        )
        handles.append(_handle(f"no value ({missing.sum():,})", "o", MISSING_COLOUR))
    axes.legend(
        handles=handles,
        title=str(values.name or ""),
        alignment="left",
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        ncols=1 + len(handles) // 19,
        handletextpad=0.2,
    )


def categories(values: pd.Series) -> tuple[np.ndarray, Sequence[str]]:
    """Returns (category of each cell, -1 where it has none; names in their order, or sorted)."""
    values = values.astype("category")
    if not values.cat.ordered:
        values = values.cat.reorder_categories(sorted(values.cat.categories, key=str))
    values = values.cat.remove_unused_categories()
    names = [str(name) for name in values.cat.categories]
    if len(names) > _MAX_CATEGORIES:
        raise InputError(
            f"column {values.name} has {len(names):,} different values, but at most "
            f"{_MAX_CATEGORIES} can be distinguished in a figure; name another column"
        )
    return values.cat.codes.to_numpy(), names


def _looks() -> Iterable[tuple[str, str]]:
    return itertools.product(MARKERS, PALETTE)


def _handle(label: str, marker: str, colour: str) -> Line2D:
    return Line2D([], [], ls="", marker=marker, ms=7, mfc=colour, mec="none", label=label)
