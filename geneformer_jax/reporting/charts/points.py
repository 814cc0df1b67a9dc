"""Charts of points that stand for cells or edits, which can be chosen in the chart or its table."""

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from geneformer_jax.reporting.charts.parts import category_scales, explorable, thinned
from geneformer_jax.reporting.figures import (
    MAIN,
    MISSING_COLOUR,
    SEQUENTIAL,
    STRONG,
)

_LOWEST_RATE = 1e-300


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
        table["value"], scales = category_scales(values)
        colour = {
            "color": alt.Color("value:N", title=name, scale=scales[0]),
            "shape": alt.Shape("value:N", title=name, scale=scales[1]),
        }
        shown = alt.Tooltip("value:N", title=name)
    size = float(np.clip(40_000 / max(len(table), 1), 5, 45))
    axes = [alt.X("x:Q", title=f"{axis} 1"), alt.Y("y:Q", title=f"{axis} 2")]
    plain = [each.axis(labels=False, ticks=False, grid=False) for each in axes]
    tooltip = [alt.Tooltip("key:N", title="cell"), shown]
    return explorable(table, *plain, tooltip, size=size, height=460, **colour)


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
    return explorable(
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
    return explorable(
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
    chart = explorable(
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
