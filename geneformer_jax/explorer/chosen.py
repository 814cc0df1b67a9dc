"""Which points of a chart a reader chose by dragging a rectangle with shift held down."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import pandas as pd

_BRUSH = "brush"
_HOW = "Drag in the figure with shift held down to choose; the wheel with ctrl zooms."


def chosen_keys(chart: alt.LayerChart, selections: Mapping[str, Any]) -> list[str] | None:
    """Returns the keys of the points within the rectangle; None if there is no rectangle.

    Args:
      chart: of `reporting.charts`, with points that have keys.
      selections: name -> field -> (one end, other end), as the page reports them.
    """
    rectangle = selections.get(_BRUSH) or {}
    if not rectangle:
        return None
    points = chart.layer[0].data if chart.data is alt.Undefined else chart.data
    for field, (first, last) in rectangle.items():
        points = points[points[field].between(min(first, last), max(first, last))]
    return points["key"].tolist()


def chosen_rows(table: pd.DataFrame, key: str, chart: Any) -> tuple[pd.DataFrame, str]:
    """Returns the rows of the points that are chosen, or all, and says how many these are.

    Args:
      table: rows.
      key: column with the points' keys.
      chart: in the page.
    """
    keys = chosen_keys(chart, chart.selections)
    if keys is None:
        return table, f"{len(table):,} rows. {_HOW}"
    chosen = table[table[key].astype(str).isin(keys)]
    return chosen, f"{len(chosen):,} of {len(table):,} rows are chosen."
