"""Tables as a report holds them: words for headings, and every value for the page's script."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

# As many genes as a genome has; more would make pages that browsers are slow with.
MAX_ROWS = 20_000
_STILL_ROWS = 100


def table_part(
    table: pd.DataFrame,
    caption: str,
    *,
    whole_in: str = "",
    name: str = "",
    key: str = "",
    words: Mapping[str, str] | None = None,
    meanings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns what the template shows of a table; see `Report.table` for the arguments."""
    shown = table.head(MAX_ROWS)
    if len(shown) < len(table):
        caption += f" The first {len(shown):,} of {len(table):,} rows"
        caption += f"; all are in {whole_in}." if whole_in else "."
    # By position, since two columns may have the same name.
    columns = [shown.iloc[:, i] for i in range(shown.shape[1])]
    headings = [_heading(each, words or {}, meanings or {}) for each in columns]
    data = {
        "name": name,
        "file": name or "table",
        "key": list(shown.columns).index(key) if key else -1,
        "columns": headings,
        "rows": list(zip(*(_values(each) for each in columns), strict=True)),
    }
    still = [_readable_cells(each.head(_STILL_ROWS)) for each in columns]
    rows = list(zip(*still, strict=True))
    return {"caption": caption, "columns": headings, "still": rows, "data": data}


def _heading(
    column: pd.Series, words: Mapping[str, str], meanings: Mapping[str, str]
) -> dict[str, Any]:
    name = str(column.name)
    return {
        "name": name,
        "words": words.get(name, name.replace("_", " ")),
        "meaning": meanings.get(name, ""),
        "number": _is_number(column),
        "whole": pd.api.types.is_integer_dtype(column),
    }


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _values(values: pd.Series) -> list[Any]:
    """Values of a column as JSON has them: missing numbers are null, missing texts are empty."""
    if not _is_number(values):
        return _texts(values)
    if pd.api.types.is_integer_dtype(values) and not values.hasnans:
        return values.tolist()
    return [_number(each) for each in values.to_numpy(np.float64, na_value=np.nan).tolist()]


def _number(value: float) -> float | str | None:
    if np.isnan(value):
        return None
    # JSON has no infinity; JavaScript reads it by this name.
    return value if np.isfinite(value) else repr(value).replace("inf", "Infinity")


def _readable_cells(values: pd.Series) -> list[str]:
    if not _is_number(values):
        return _texts(values)
    whole = pd.api.types.is_integer_dtype(values)
    show: Callable[[float], str] = _readable_whole if whole else _readable
    return [show(each) for each in values.to_numpy(np.float64, na_value=np.nan).tolist()]


def _texts(values: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else str(value) for value in values]


def _readable_whole(number: float) -> str:
    return "" if np.isnan(number) else f"{int(number):,}"


def _readable(number: float) -> str:
    if np.isnan(number):
        return ""
    return f"{number:,.4g}" if abs(number) < 1000 else f"{number:,.0f}"
