"""Charts to explore: hover, zoom and choose, as Vega-Lite specifications built with Altair.

One function for each kind; each takes a table and returns a chart, which knows nothing of pages.
Points stand for rows of a table of which they carry the key, so that what is chosen in one can be
shown in the other. Colours are those of `figures`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from geneformer_jax.reporting.figures import (
    MAIN,
    MISSING_COLOUR,
    PALETTE,
    SEQUENTIAL,
    STRONG,
    categories,
)

# A browser draws so many smoothly.
MAX_POINTS = 20_000
# Points with a name at either side, of so many that could have one.
_NAMED, _CANDIDATES = 6, 200
_STRIP = 500
_WIDTH, _HEIGHT = "container", 380
_SHAPES = ("circle", "triangle-up", "square", "diamond", "cross", "triangle-down")
_LOWEST_RATE = 1e-300
# What `figures.DIVERGING` is called here, reversed.
_DIVERGING = "redblue"
_WITH_SHIFT = "[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!"
_WITHOUT_SHIFT = "[pointerdown[!event.shiftKey], window:pointerup] > window:pointermove!"
# The rest of a page must go on scrolling when the pointer is over a figure.
_WHEEL = "wheel![event.ctrlKey || event.metaKey]"


def embedding_map(
    positions: np.ndarray, values: pd.Series, cells: Sequence[str], axis: str = "UMAP"
) -> alt.LayerChart:
    """Charts cells in the plane, coloured by a column of obs; its points' keys are cell ids.

    Args:
      positions: [cells, 2].
      values: one value per cell. Numbers get a colour bar; anything else counts as categories.
      cells: [cells] ids.
      axis: name of the axes.

    Raises:
      InputError: more categories than a reader can distinguish.
    """
    name = str(values.name or "value")
    table = pd.DataFrame({"key": list(map(str, cells)), "x": positions[:, 0], "y": positions[:, 1]})
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        table["value"] = values.to_numpy(float, na_value=np.nan)
        colour = {"color": alt.Color("value:Q", title=name, scale=alt.Scale(scheme=SEQUENTIAL))}
        shown = alt.Tooltip("value:Q", title=name, format=".4~g")
    else:
        table["value"], scales = _category_scales(values)
        colour = {
            "color": alt.Color("value:N", title=name, scale=scales[0]),
            "shape": alt.Shape("value:N", title=name, scale=scales[1]),
        }
        shown = alt.Tooltip("value:N", title=name)
    size = float(np.clip(40_000 / max(len(table), 1), 5, 45))
    axes = [alt.X("x:Q", title=f"{axis} 1"), alt.Y("y:Q", title=f"{axis} 2")]
    plain = [each.axis(labels=False, ticks=False, grid=False) for each in axes]
    tooltip = [alt.Tooltip("key:N", title="cell"), shown]
    return _explorable(table, *plain, tooltip, size=size, height=460, **colour)


def volcano(
    table: pd.DataFrame, shift: str, rate: str, labels: Mapping[str, str], cells: str = ""
) -> alt.LayerChart:
    """Charts effect against significance, the significant edits coloured; keys are Ensembl_ID.

    Args:
      table: with Gene_name, Ensembl_ID, Sig and the other columns.
      shift: column of the horizontal axis.
      rate: column of p-values or FDR, charted as -log10; edits without one are left out.
      labels: of the axes, by column.
      cells: column of the number of cells; "" without.
    """
    known = table[table[rate].notna() & table[shift].notna()]
    rows = _edits(known, shift, cells).assign(
        rate=known[rate].to_numpy(float),
        height=-np.log10(np.maximum(known[rate].to_numpy(float), _LOWEST_RATE)),
        group=np.where(known["Sig"] == 1, "FDR < 0.05", "not significant"),
    )
    rows = thinned(rows, rows["shift"].abs() * rows["height"])
    tooltip = [*_edit_tooltip(cells), alt.Tooltip("rate:Q", title="FDR", format=".3~g")]
    named = rows[rows["group"] == "FDR < 0.05"].sort_values("height", ascending=False)
    return _explorable(
        rows,
        alt.X("shift:Q", title=labels[shift]),
        alt.Y("height:Q", title=labels[rate]),
        tooltip,
        named=named,
        color=_two_colours(rows["group"], "FDR < 0.05", "not significant", MISSING_COLOUR),
    )


def ranked(
    table: pd.DataFrame,
    shift: str,
    chosen: pd.Series,
    labels: Sequence[str],
    cells: str = "",
    rate: str = "",
) -> alt.LayerChart:
    """Charts all edits by the rank of their shift; keys are Ensembl_ID.

    Args:
      table: with Gene_name, Ensembl_ID and the column `shift`.
      shift: column of the vertical axis.
      chosen: bool [rows], which to colour.
      labels: of the vertical axis and of the coloured ones.
      cells: column of the number of cells; "" without.
      rate: column of FDR; "" without.
    """
    known = table[shift].notna()
    rows = _edits(table[known], shift, cells).assign(
        group=np.where(chosen[known], labels[1], "other")
    )
    if rate:
        rows["rate"] = table.loc[known, rate].to_numpy(float)
    rows = rows.sort_values("shift", kind="stable", ignore_index=True)
    rows["rank"] = np.arange(1, len(rows) + 1)
    rows = thinned(rows, (rows["rank"] - rows["rank"].median()).abs())
    tooltip = [*_edit_tooltip(cells), alt.Tooltip("rank:Q", format=",")]
    if rate:
        tooltip.append(alt.Tooltip("rate:Q", title="FDR", format=".3~g"))
    named = rows.reindex((rows["rank"] - rows["rank"].median()).abs().sort_values()[::-1].index)
    return _explorable(
        rows,
        alt.X("rank:Q", title="rank", axis=alt.Axis(format=",d")),
        alt.Y("shift:Q", title=labels[0]),
        tooltip,
        named=named,
        color=_two_colours(rows["group"], labels[1], "other", MAIN),
    )


def scatter(
    table: pd.DataFrame,
    x: str,
    y: str,
    labels: Mapping[str, str],
    *,
    key: str = "Ensembl_ID",
    name: str = "Gene_name",
    groups: tuple[str, str, str] | None = None,
    same: bool = False,
    band: pd.DataFrame | None = None,
) -> alt.LayerChart:
    """Charts two columns of a table against each other.

    Args:
      table: one row a point.
      x, y: columns.
      labels: of the axes, by column.
      key: column of the points' keys.
      name: column of what they are called.
      groups: (bool column, name of the coloured ones, name of the others).
      same: whether to draw the line on which both are alike.
      band: x, low, high of what to shade.
    """
    known = table[table[x].notna() & table[y].notna()]
    rows = pd.DataFrame({
        "key": known[key].astype(str), "name": known[name].astype(str),
        "x": known[x].astype(float), "y": known[y].astype(float),
    })  # fmt: skip
    colour: alt.Color | alt.ColorValue = alt.value(MAIN)
    if groups:
        rows["group"] = np.where(known[groups[0]], groups[1], groups[2])
        colour = _two_colours(rows["group"], groups[1], groups[2], MAIN)
    rows = thinned(rows, rows["y"].abs())
    tooltip = [alt.Tooltip("name:N"), alt.Tooltip("key:N", title=key.replace("_", " ")),
               alt.Tooltip("x:Q", title=labels[x], format=".4~g"),
               alt.Tooltip("y:Q", title=labels[y], format=".4~g")]  # fmt: skip
    chart = _explorable(
        rows,
        alt.X("x:Q", title=labels[x]),
        alt.Y("y:Q", title=labels[y]),
        tooltip,
        color=colour,
    )
    if same and len(rows):
        ends = [min(rows["x"].min(), rows["y"].min()), max(rows["x"].max(), rows["y"].max())]
        diagonal = alt.Chart(pd.DataFrame({"x": ends, "y": ends})).mark_line(
            strokeDash=[4, 3], color=MISSING_COLOUR
        )
        chart = alt.layer(diagonal.encode(x="x:Q", y="y:Q"), chart)
    if band is not None and len(band):
        area = alt.Chart(band).mark_area(opacity=0.35, color=MISSING_COLOUR)
        chart = alt.layer(area.encode(x="x:Q", y="low:Q", y2="high:Q"), chart)
    return chart


def heat_map(
    table: pd.DataFrame,
    axes: tuple[str, str],
    value: str,
    labels: Mapping[str, str],
    *,
    choice: str = "",
    further: Sequence[str] = (),
    limit: float | None = None,
    text: str = "",
) -> alt.LayerChart:
    """Charts a value for each pair of rows and columns, as of layers and heads.

    Args:
      table: one row a field.
      axes: (column across, column down), in the order in which their values appear.
      value: what to colour by.
      labels: words for columns.
      choice: column of which the reader picks one value to look at; "" without.
      further: columns shown when a field is pointed at.
      limit: the colours diverge about 0 up to this; None for a scale without a middle.
      text: column written into the fields; "" for none.
    """
    fields = [*axes, value, *further, *([choice] if choice else []), *([text] if text else [])]
    safe = {name: f"f{i}" for i, name in enumerate(dict.fromkeys(fields))}
    rows = table[list(safe)].rename(columns=safe).reset_index(drop=True)
    for name in (*axes, *([choice] if choice else [])):
        rows[safe[name]] = rows[safe[name]].astype(str)
    across, down = ([*dict.fromkeys(rows[safe[each]])] for each in axes)
    scale = alt.Scale(scheme=SEQUENTIAL) if limit is None else _diverging(limit)
    words = {name: labels.get(name, name.replace("_", " ")) for name in safe}
    base = alt.Chart(rows).encode(
        x=alt.X(f"{safe[axes[0]]}:N", title=words[axes[0]], sort=across),
        y=alt.Y(f"{safe[axes[1]]}:N", title=words[axes[1]], sort=down),
        tooltip=[
            alt.Tooltip(f"{safe[name]}:{'N' if name in axes else 'Q'}", title=words[name],
                        **({} if name in axes else {"format": ".4~g"}))
            for name in (*axes, value, *further)
        ],
    )  # fmt: skip
    squares = base.mark_rect().encode(
        color=alt.Color(f"{safe[value]}:Q", title=words[value], scale=scale)
    )
    layers = [squares]
    if text:
        middle = 0.6 * limit if limit else None
        test = f"abs(datum.{safe[value]}) > {middle}" if middle else "false"
        layers.append(
            base.mark_text(fontSize=11).encode(
                text=f"{safe[text]}:N",
                color=alt.condition(test, alt.value("white"), alt.value("black")),
            )
        )
    chart = alt.layer(*layers).properties(width=_WIDTH, height=26 * len(down))
    return _with_choice(chart, rows, safe.get(choice, ""), choice)


def lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    series: str,
    labels: Mapping[str, str],
    *,
    choice: str = "",
    log: Sequence[str] = (),
    dashed: Sequence[str] = (),
    interval: tuple[str, str] | None = None,
    points: bool = False,
) -> alt.LayerChart:
    """Charts a line for each series, such as losses by step or curves of classifiers.

    Args:
      table: one row a point, in the order of the line.
      x, y: columns.
      series: column of the lines' names.
      labels: of the axes, by column.
      choice: column of which the reader picks one value to look at; "" without.
      log: of "x" and "y", which axes are logarithmic.
      dashed: names of lines to draw dashed and grey: what others are compared with.
      interval: columns of the lower and the upper end about each point.
      points: whether to mark the points.
    """
    ends = {"low": interval[0], "high": interval[1]} if interval else {}
    picked = {"x": x, "y": y, "series": series, **ends, **({"choice": choice} if choice else {})}
    rows = pd.DataFrame({field: table[name].to_numpy() for field, name in picked.items()})
    rows["series"] = rows["series"].astype(str)
    rows["order"] = np.arange(len(rows))
    names = list(dict.fromkeys(rows["series"]))
    plain = [name for name in names if name not in dashed]
    colour = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(plain)}
    scale = alt.Scale(domain=names, range=[colour.get(name, MISSING_COLOUR) for name in names])
    dashes = alt.Scale(domain=names, range=[[5, 4] if name in dashed else [1, 0] for name in names])
    kinds = {
        axis: alt.Scale(type="log") if axis in log else alt.Scale(zero=False, nice=False)
        for axis in "xy"
    }
    zoom = alt.selection_interval(
        name="zoom", bind="scales", on=_WITHOUT_SHIFT, translate=_WITHOUT_SHIFT, zoom=_WHEEL
    )
    faded = alt.selection_point(name="legend", fields=["series"], bind="legend")
    base = alt.Chart(rows).encode(
        x=alt.X("x:Q", title=labels.get(x, x), scale=kinds["x"]),
        y=alt.Y("y:Q", title=labels.get(y, y), scale=kinds["y"]),
        color=alt.Color("series:N", title=labels.get(series, None), scale=scale, sort=names),
        opacity=alt.condition(faded, alt.value(1), alt.value(0.15)),
        tooltip=[alt.Tooltip("series:N", title=labels.get(series, series)),
                 alt.Tooltip("x:Q", title=labels.get(x, x), format=".4~g"),
                 alt.Tooltip("y:Q", title=labels.get(y, y), format=".4~g")],
    )  # fmt: skip
    drawn = base.mark_line(point=points, strokeWidth=2).encode(
        order="order:Q",
        strokeDash=alt.StrokeDash(
            "series:N", title=labels.get(series, None), scale=dashes, sort=names
        ),
    )
    layers = [drawn.add_params(zoom, faded)]
    if interval:
        layers.append(base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q"))
    chart = alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT)
    return _with_choice(chart, rows, "choice" if choice else "", choice)


def loss_curves(
    metrics: Iterable[Mapping[str, Any]], baselines: Mapping[str, float] | None = None
) -> alt.LayerChart:
    """Charts masked-gene loss against training steps; for the arguments see `loss_curve_figure`."""
    sides = {"loss": "training", "held_out_loss": "held out"}
    rows = [{"step": row["step"], "loss": row[key], "line": side}
            for row in metrics for key, side in sides.items() if key in row]  # fmt: skip
    table = pd.DataFrame(rows, columns=["step", "loss", "line"])
    ends = [table["step"].min(), table["step"].max()] if rows else [0, 1]
    flat = [
        pd.DataFrame({"step": ends, "loss": loss, "line": name})
        for name, loss in (baselines or {}).items()
    ]
    labels = {"step": "training step", "loss": "masked-gene loss (nats)"}
    ordered = table.sort_values(["line", "step"], ascending=[False, True], kind="stable")
    return lines(
        pd.concat([ordered, *flat]), "step", "loss", "line", labels, dashed=list(baselines or {})
    )


def histogram(
    counts: np.ndarray, edges: np.ndarray, labels: tuple[str, str], marks: Mapping[str, float] = {}
) -> alt.LayerChart:
    """Charts how many values lie in each bin.

    Args:
      counts: [bins].
      edges: [bins + 1].
      labels: of the horizontal axis and of what is counted.
      marks: name -> where to draw an upright line.
    """
    rows = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts})
    across = alt.X("low:Q", title=labels[0], bin="binned", scale=alt.Scale(zero=False))
    bars = alt.Chart(rows).mark_bar(color=MAIN).encode(
        x=across, x2="high:Q", y=alt.Y("count:Q", title=labels[1]),
        tooltip=[alt.Tooltip("low:Q", title="from", format=".4~g"),
                 alt.Tooltip("high:Q", title="to", format=".4~g"),
                 alt.Tooltip("count:Q", title=labels[1], format=",")],
    )  # fmt: skip
    layers = [bars, *(_upright(name, at, "low:Q") for name, at in marks.items())]
    return alt.layer(*layers).properties(width=_WIDTH, height=260)


def bars(counts: pd.Series, unit: str = "cells") -> alt.Chart:
    """Charts counts (name -> number) as horizontal bars in their order."""
    rows = pd.DataFrame({"name": counts.index.astype(str), "count": counts.to_numpy()})
    rows["percent"] = rows["count"] / max(rows["count"].sum(), 1)
    return (
        alt.Chart(rows)
        .mark_bar(color=MAIN)
        .encode(
            x=alt.X("count:Q", title=unit),
            y=alt.Y("name:N", title=None, sort=list(rows["name"])),
            tooltip=[
                alt.Tooltip("name:N"),
                alt.Tooltip("count:Q", title=unit, format=","),
                alt.Tooltip("percent:Q", format=".1%"),
            ],
        )
        .properties(width=_WIDTH, height=24 * len(rows))
    )


def dots(
    table: pd.DataFrame,
    value: str,
    name: str,
    label: str,
    *,
    series: str = "",
    interval: tuple[str, str] | None = None,
    further: Sequence[str] = (),
) -> alt.LayerChart:
    """Charts values as dots in a line for each name, such as scores of several methods.

    Args:
      table: one row a dot.
      value: column across.
      name: column of the lines, in the order in which they appear.
      label: of the axis.
      series: column that colours and shapes the dots; "" for none.
      interval: columns of the lower and the upper end about each dot.
      further: columns shown when a dot is pointed at.
    """
    picked = {"name": name, "value": value, **({"series": series} if series else {})}
    picked |= {"low": interval[0], "high": interval[1]} if interval else {}
    picked |= {f"more{i}": each for i, each in enumerate(further)}
    rows = pd.DataFrame({field: table[each].to_numpy() for field, each in picked.items()})
    tooltip = [alt.Tooltip("name:N", title=name.replace("_", " "))]
    if series:
        tooltip.append(alt.Tooltip("series:N", title=series.replace("_", " ")))
    tooltip.append(alt.Tooltip("value:Q", title=label, format=".4~g"))
    tooltip += [alt.Tooltip(f"more{i}:Q", title=each.replace("_", " "), format=",.6~g")
                for i, each in enumerate(further)]  # fmt: skip
    colour: dict[str, object] = {"color": alt.value(MAIN)}
    if series:
        names = list(dict.fromkeys(rows["series"]))
        shapes = [_SHAPES[i % len(_SHAPES)] for i in range(len(names))]
        colour = {
            "color": alt.Color("series:N", title=None, sort=names,
                               scale=alt.Scale(domain=names, range=list(PALETTE[: len(names)]))),
            "shape": alt.Shape("series:N", title=None, sort=names,
                               scale=alt.Scale(domain=names, range=shapes)),
        }  # fmt: skip
    base = alt.Chart(rows).encode(
        y=alt.Y("name:N", title=None, sort=list(dict.fromkeys(rows["name"])),
                axis=alt.Axis(grid=True)),
        tooltip=tooltip,
    )  # fmt: skip
    across = alt.X("value:Q", title=label, scale=alt.Scale(zero=False))
    layers = [base.mark_point(filled=True, size=90, opacity=0.9).encode(x=across, **colour)]
    if interval:
        rule = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
        layers.insert(0, rule)
    return alt.layer(*layers).properties(width=_WIDTH, height=28 * rows["name"].nunique())


def strips(values: Mapping[str, np.ndarray], label: str) -> alt.LayerChart:
    """Charts single values of several things, a line of dots for each, with a bar at each mean.

    Args:
      values: name -> its values; at most 500, drawn at random, are shown of each. The first is what
        others are compared with.
      label: of the axis.
    """
    rng = np.random.default_rng(0)
    names = [f"{name} ({len(each):,})" for name, each in values.items()]
    drawn = [
        each if len(each) <= _STRIP else rng.choice(each, _STRIP, replace=False)
        for each in values.values()
    ]
    rows = pd.DataFrame(
        {"name": np.repeat(names, list(map(len, drawn))), "value": np.concatenate(drawn)}
    )
    rows["jitter"] = rng.uniform(-8, 8, len(rows))
    means = pd.DataFrame({"name": names, "value": [float(each.mean()) for each in values.values()]})
    across = alt.X("value:Q", title=label, scale=alt.Scale(zero=False))
    down = alt.Y("name:N", title=None, sort=names)
    shown = alt.Tooltip("value:Q", title=label, format=".4~g")
    colour = alt.condition(alt.datum.name == names[0], alt.value(MISSING_COLOUR), alt.value(MAIN))
    dots = alt.Chart(rows).mark_circle(size=22, opacity=0.7).encode(
        x=across, y=down, color=colour, yOffset=alt.YOffset("jitter:Q", scale=None), tooltip=shown
    )  # fmt: skip
    bars = alt.Chart(means).mark_tick(color=STRONG, thickness=3, height=20).encode(
        x=across, y=down, tooltip=[alt.Tooltip("name:N"), shown]
    )  # fmt: skip
    return alt.layer(dots, bars).properties(width=_WIDTH, height=24 * len(names))


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


def _explorable(
    rows: pd.DataFrame,
    x: alt.X,
    y: alt.Y,
    tooltip: Sequence[alt.Tooltip],
    *,
    size: float = 40,
    height: int = _HEIGHT,
    named: pd.DataFrame | None = None,
    **colour: object,
) -> alt.LayerChart:
    """Points to zoom, choose and ring; `shown` holds the keys of ringed ones."""
    ranges = [_range(rows[_field(each)]) for each in (x, y)]
    x, y = (each.scale(alt.Scale(domain=span, nice=False, zero=False))
            for each, span in zip((x, y), ranges, strict=True))  # fmt: skip
    base = alt.Chart(rows).encode(x=x, y=y)
    zoom = alt.selection_interval(
        name="zoom", bind="scales", on=_WITHOUT_SHIFT, translate=_WITHOUT_SHIFT, zoom=_WHEEL
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
    return alt.layer(*layers).add_params(shown).properties(width=_WIDTH, height=height)


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


def _edits(table: pd.DataFrame, shift: str, cells: str) -> pd.DataFrame:
    rows = pd.DataFrame({
        "key": table["Ensembl_ID"].astype(str), "name": table["Gene_name"].astype(str),
        "shift": table[shift].astype(float),
    })  # fmt: skip
    return rows.assign(n=table[cells]) if cells else rows


def _edit_tooltip(cells: str) -> list[alt.Tooltip]:
    tooltip = [alt.Tooltip("name:N", title="gene"), alt.Tooltip("key:N", title="gene id"),
               alt.Tooltip("shift:Q", format=".4~g")]  # fmt: skip
    return [*tooltip, alt.Tooltip("n:Q", title="cells", format=",")] if cells else tooltip


def _two_colours(groups: pd.Series, strong: str, other: str, colour: str) -> alt.Color:
    counts = groups.value_counts()
    labels = " ".join(
        f"datum.value == '{name}' ? '{name} ({counts.get(name, 0):,})' :"
        for name in (strong, other)
    )
    scale = alt.Scale(domain=[strong, other], range=[STRONG, colour])
    legend = alt.Legend(labelExpr=f"{labels} datum.value", orient="top")
    return alt.Color("group:N", title=None, scale=scale, legend=legend)


def _category_scales(values: pd.Series) -> tuple[np.ndarray, tuple[alt.Scale, alt.Scale]]:
    """Names of the cells' categories with their numbers; scales of colours and of shapes."""
    codes, names = categories(values)
    words = [f"{name} ({(codes == code).sum():,})" for code, name in enumerate(names)]
    looks = [(PALETTE[i % len(PALETTE)], _SHAPES[i // len(PALETTE)]) for i in range(len(words))]
    if (codes < 0).any():
        words.append(f"no value ({(codes < 0).sum():,})")
        looks.append((MISSING_COLOUR, _SHAPES[0]))
    colours, shapes = zip(*looks, strict=True)
    scales = (alt.Scale(domain=words, range=list(each)) for each in (colours, shapes))
    return np.array(words)[codes], tuple(scales)


def _diverging(limit: float) -> alt.Scale:
    return alt.Scale(scheme=_DIVERGING, domain=[-limit, limit], domainMid=0, reverse=True)


def _with_choice(
    chart: alt.LayerChart, rows: pd.DataFrame, field: str, name: str
) -> alt.LayerChart:
    if not field:
        return chart
    options = list(dict.fromkeys(rows[field].tolist()))
    if len(options) < 2:
        return chart
    drop_down = alt.binding_select(options=options, name=f"{name.replace('_', ' ')}: ")
    picked = alt.param(name="picked", value=options[0], bind=drop_down)
    return chart.transform_filter(f"datum.{field} == picked").add_params(picked)


def _upright(name: str, at: float, across: str) -> alt.LayerChart:
    field = across.partition(":")[0]
    base = alt.Chart(pd.DataFrame({field: [at], "words": [name]})).encode(x=across)
    rule = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.5)
    return rule + base.mark_text(align="left", dx=4, baseline="top").encode(
        text="words:N", y=alt.value(0)
    )
