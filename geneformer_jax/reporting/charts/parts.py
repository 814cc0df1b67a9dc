"""What charts have in common: scales, choosing and zooming, names of points, thinning."""

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from geneformer_jax.reporting.figures import (
    MISSING_COLOUR,
    PALETTE,
    STRONG,
    categories,
)

# A browser draws so many smoothly.
MAX_POINTS = 20_000
# Points with a name at either side, of so many that could have one.
_NAMED, _CANDIDATES = 6, 200
WIDTH, HEIGHT = "container", 380
SHAPES = ("circle", "triangle-up", "square", "diamond", "cross", "triangle-down")
# What `figures.DIVERGING` is called here, reversed.
_DIVERGING = "redblue"
_WITH_SHIFT = "[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!"
WITHOUT_SHIFT = "[pointerdown[!event.shiftKey], window:pointerup] > window:pointermove!"
# The rest of a page must go on scrolling when the pointer is over a figure.
WHEEL = "wheel![event.ctrlKey || event.metaKey]"


def thinned(table: pd.DataFrame, importance: pd.Series, most: int = MAX_POINTS) -> pd.DataFrame:
    """Returns at most `most` rows in their order: the outermost fifth of them, the rest at random.

    Args:
      table: rows.
      importance: number of each row; the highest are kept.
      most: number of rows.
    """
    if len(table) <= most:
        return table
    order = np.argsort(-importance.to_numpy(), kind="stable")
    kept, others = order[: most // 5], order[most // 5 :]
    drawn = np.random.default_rng(0).choice(others, most - len(kept), replace=False)
    return table.iloc[np.sort(np.concatenate([kept, drawn]))]


def describe_thinned(rows: int) -> str:
    """Says that a chart shows some of so many rows; "" if it shows all."""
    if rows <= MAX_POINTS:
        return ""
    return (
        f" The figure to explore shows {MAX_POINTS:,} of {rows:,}: the outermost, and others drawn "
        "at random; the picture file beside it shows all."
    )


def explorable(
    rows: pd.DataFrame,
    x: alt.X,
    y: alt.Y,
    tooltip: Sequence[alt.Tooltip],
    *,
    size: float = 40,
    height: int = HEIGHT,
    named: pd.DataFrame | None = None,
    **colour: object,
) -> alt.LayerChart:
    """Points to zoom, choose and ring; `shown` holds the keys of ringed ones."""
    ranges = [_range(rows[_field(each)]) for each in (x, y)]
    x, y = (each.scale(alt.Scale(domain=span, nice=False, zero=False))
            for each, span in zip((x, y), ranges, strict=True))  # fmt: skip
    base = alt.Chart(rows).encode(x=x, y=y)
    zoom = alt.selection_interval(
        name="zoom", bind="scales", on=WITHOUT_SHIFT, translate=WITHOUT_SHIFT, zoom=WHEEL
    )
    brush = alt.selection_interval(name="brush", on=_WITH_SHIFT, translate=_WITH_SHIFT, zoom=False)
    points = base.mark_point(filled=True, size=size, opacity=0.85).encode(tooltip=tooltip, **colour)
    rings = (
        base.transform_filter("indexof(shown, datum.key) >= 0")
        .mark_point(size=160, filled=False, strokeWidth=2, stroke=STRONG)
        .encode(tooltip=tooltip)
    )
    layers = [points.add_params(zoom, brush), rings]
    if named is not None:
        layers += _names(named, x, y, ranges)
    shown = alt.param(name="shown", value=[])
    return alt.layer(*layers).add_params(shown).properties(width=WIDTH, height=height)


def _names(
    rows: pd.DataFrame, x: alt.X, y: alt.Y, ranges: Sequence[Sequence[float]]
) -> list[alt.Chart]:
    """Names of the first points at either side of the middle that leave each other room."""
    up, room = _field(y), 0.05 * (ranges[1][1] - ranges[1][0])
    is_right = rows[_field(x)] > sum(ranges[0]) / 2
    layers = []
    for side, align in ((rows[~is_right], "left"), (rows[is_right], "right")):
        kept: list[int] = []
        for place, height in enumerate(side[up].head(_CANDIDATES)):
            if len(kept) < _NAMED and all(abs(height - side[up].iloc[i]) > room for i in kept):
                kept.append(place)
        if kept:
            words = alt.Chart(side.iloc[kept]).mark_text(
                align=align, dx=7 if align == "left" else -7, fontStyle="italic"
            )
            layers.append(words.encode(x=x, y=y, text="name:N"))
    return layers


def _range(values: pd.Series) -> list[float]:
    """From the lowest to the highest value, with some room."""
    if values.empty:
        return [0.0, 1.0]
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or 1.0
    return [low - room, high + room]


def _field(channel: alt.X | alt.Y) -> str:
    return str(channel.shorthand).partition(":")[0]


def category_scales(values: pd.Series) -> tuple[np.ndarray, tuple[alt.Scale, alt.Scale]]:
    """Names of the cells' categories with their numbers; scales of colours and of shapes."""
    codes, names = categories(values)
    words = [f"{name} ({(codes == code).sum():,})" for code, name in enumerate(names)]
    looks = [(PALETTE[i % len(PALETTE)], SHAPES[i // len(PALETTE)]) for i in range(len(words))]
    if (codes < 0).any():
        words.append(f"no value ({(codes < 0).sum():,})")
        looks.append((MISSING_COLOUR, SHAPES[0]))
    colours, shapes = zip(*looks, strict=True)
    scales = (alt.Scale(domain=words, range=list(each)) for each in (colours, shapes))
    return np.array(words)[codes], tuple(scales)


def diverging(limit: float) -> alt.Scale:
    """Returns the scale of numbers between -limit and limit, white at 0."""
    return alt.Scale(scheme=_DIVERGING, domain=[-limit, limit], domainMid=0, reverse=True)


def with_choice(chart: alt.LayerChart, rows: pd.DataFrame, field: str, name: str) -> alt.LayerChart:
    """Returns the chart with a control that shows the rows of one value of a field at a time."""
    if not field:
        return chart
    options = list(dict.fromkeys(rows[field].tolist()))
    if len(options) < 2:
        return chart
    drop_down = alt.binding_select(options=options, name=f"{name.replace('_', ' ')}: ")
    picked = alt.param(name="picked", value=options[0], bind=drop_down)
    return chart.transform_filter(f"datum.{field} == picked").add_params(picked)


def upright(name: str, at: float, across: str) -> alt.LayerChart:
    """Returns a named upright line."""
    field = across.partition(":")[0]
    base = alt.Chart(pd.DataFrame({field: [at], "words": [name]})).encode(x=across)
    rule = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.5)
    return rule + base.mark_text(align="left", dx=4, baseline="top").encode(
        text="words:N", y=alt.value(0)
    )
