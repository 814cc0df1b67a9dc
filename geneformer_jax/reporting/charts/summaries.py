"""Charts of summaries: heat maps, curves, histograms, bars, dots and strips."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from geneformer_jax.reporting.charts.parts import (
    HEIGHT,
    SHAPES,
    WHEEL,
    WIDTH,
    WITHOUT_SHIFT,
    diverging,
    upright,
    with_choice,
)
from geneformer_jax.reporting.figures import (
    MAIN,
    MISSING_COLOUR,
    PALETTE,
    SEQUENTIAL,
    STRONG,
)

_STRIP = 500


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
    scale = alt.Scale(scheme=SEQUENTIAL) if limit is None else diverging(limit)
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
    chart = alt.layer(*layers).properties(width=WIDTH, height=26 * len(down))
    return with_choice(chart, rows, safe.get(choice, ""), choice)


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
        name="zoom", bind="scales", on=WITHOUT_SHIFT, translate=WITHOUT_SHIFT, zoom=WHEEL
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
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    return with_choice(chart, rows, "choice" if choice else "", choice)


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
    layers = [bars, *(upright(name, at, "low:Q") for name, at in marks.items())]
    return alt.layer(*layers).properties(width=WIDTH, height=260)


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
        .properties(width=WIDTH, height=24 * len(rows))
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
        shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
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
    return alt.layer(*layers).properties(width=WIDTH, height=28 * rows["name"].nunique())


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
    return alt.layer(dots, bars).properties(width=WIDTH, height=24 * len(names))
