"""Pieces of the explorer's page. What results say is shown as text, whatever it looks like."""

import html
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import altair as alt
import marimo as mo
import pandas as pd
import pyarrow as pa

from geneformer_jax.common.errors import InputError

T = TypeVar("T")
_ROWS = 10


def text(*words: str) -> mo.Html | None:
    """Shows each text as a paragraph; None without any."""
    shown = "".join(f"<p>{html.escape(each)}</p>" for each in words if each)
    return mo.Html(shown) if shown else None


def heading(words: str) -> mo.Html:
    """Shows a heading."""
    style = "font-size: 1.25rem; font-weight: 600; margin: 0.5rem 0 0"
    return mo.Html(f'<h2 style="{style}">{html.escape(words)}</h2>')


def stack(*parts: mo.Html | None) -> mo.Html:
    """Shows one part below the other, without those that are not there."""
    return mo.vstack([each for each in parts if each is not None])


def tried(make: Callable[..., T], *given: Any) -> tuple[T | None, str]:
    """Returns (result, ""), or (None, why there is none); nothing is made of None."""
    if None in given:
        return None, ""
    try:
        return make(*given), ""
    except InputError as error:
        return None, str(error)
    except (OSError, pa.ArrowException) as error:
        return None, f"A file cannot be read: {' '.join(str(error).split())[:200]}"


def choice(label: str, options: Mapping[str, Any] | Collection[str]) -> mo.ui.dropdown:
    """A list to choose one of, at first the first.

    Args:
      label: of our own words, as markup in it has an effect.
      options: names, or name -> value.
    """
    known = options if isinstance(options, Mapping) else list(options)
    first = next(iter(known), None)
    return mo.ui.dropdown(known, first, label=label, allow_select_none=not known)


def chart(specification: alt.LayerChart) -> mo.ui.altair_chart:
    """A chart that tells which of its points are chosen."""
    # Beside the chart, a legend would leave a phone no room for the chart.
    columns = alt.ExprRef("width < 500 ? 1 : 4")
    below = specification.configure_legend(orient="bottom", columns=columns, labelLimit=320)
    return mo.ui.altair_chart(below, chart_selection=False, legend_selection=False)


def _readable(number: float) -> str:
    return "" if pd.isna(number) else f"{number:.4g}"


def rows(
    table: pd.DataFrame,
    words: Mapping[str, str] | None = None,
    meanings: Mapping[str, str] | None = None,
    *,
    choose: bool = False,
) -> mo.ui.table:
    """A table to search and sort, ten rows at a time.

    Args:
      table: its index is not shown.
      words: headings by column.
      meanings: by column, shown when a heading is pointed at.
      choose: whether one row can be chosen.
    """
    named = {name: (words or {}).get(name, str(name)) for name in table}
    numbers = [named[name] for name in table if pd.api.types.is_float_dtype(table[name])]
    return mo.ui.table(
        table.rename(columns=named).reset_index(drop=True),
        selection="single" if choose else None,
        page_size=_ROWS,
        show_column_summaries=False,
        show_data_types=False,
        format_mapping=dict.fromkeys(numbers, _readable),
        header_tooltip={
            named[name]: each for name, each in (meanings or {}).items() if name in named
        },
    )
