"""Filters of cells by their obs columns, as arguments and as texts of a command."""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.inference.columns import check_columns, end_of_column

# Column -> a value, or values of which a cell must have one.
Filters = Mapping[str, object]
_EXAMPLES = 8
_FORM = "column:value|value"


class FilterText(str):
    """A filter as "column:value|value"; where names and values end, the cells' columns tell."""


def parse_filters(texts: Iterable[str]) -> dict[str, tuple[FilterText, ...]]:
    """Reads texts of the form "column:value|value"; those of one column are put together.

    Raises:
      InputError: a text has another form.
    """
    filters: dict[str, tuple[FilterText, ...]] = {}
    for text in texts:
        column, separator, listed = text.partition(":")
        if not separator or not column.strip() or not listed.strip(" |"):
            raise InputError(f'filter "{text}" must have the form {_FORM}')
        filters[column.strip()] = (*filters.get(column.strip(), ()), FilterText(text))
    return filters


def passing(obs: pd.DataFrame, filters: Filters) -> np.ndarray:
    """Finds the cells that pass all filters; bool [cells].

    Args:
      obs: [cells] per-cell columns.
      filters: column -> value or values (texts, numbers, truth values) of which a cell must have
        one; all columns must pass. Or what `parse_filters` returns: a text that is a value as a
        whole is that value, and is split at "|" otherwise.

    Raises:
      InputError: a column or value does not occur, no cell passes, or `filters` is something else.
    """
    if not isinstance(filters, Mapping):
        raise InputError(
            f"`filters` is {filters!r}, but maps obs columns to values, as in "
            '{"cell_type": ["B", "CD4 T"]}'
        )
    wanted: dict[str, list[str]] = {}
    for name, values in filters.items():
        for column, texts in _resolve(obs, name, values):
            wanted[column] = [*wanted.get(column, []), *texts]
    keep = np.ones(len(obs), bool)
    for column, texts in wanted.items():
        keep &= _has_value(obs, column, texts)
    if not keep.any():
        shown = " and ".join(f"{column}: {'|'.join(texts)}" for column, texts in wanted.items())
        raise InputError(f"no cell passes {shown} together; drop one of the filters")
    return keep


def is_number(values: pd.Series) -> bool:
    """Whether a column holds numbers and not labels."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def label_texts(values: pd.Series) -> pd.Series:
    """Returns the values of a column as texts, missing ones as they are; 1.0 is "1"."""
    return values.astype("object").map(label_text, na_action="ignore")


def split_values(text: str, known: Collection[str], separator: str) -> list[str]:
    """Splits a text into values, the longest known ones first: values may hold the separator."""
    parts, values = text.split(separator), []
    while parts:
        joined = (separator.join(parts[:count]).strip() for count in range(len(parts), 0, -1))
        value = next((each for each in joined if each in known), parts[0].strip())
        taken = value.count(separator) + 1
        values, parts = [*values, *([value] if value else [])], parts[taken:]
    return values


def label_text(value: object) -> str:
    """Returns a value of a column as text; 1.0 is "1"."""
    is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if is_whole else str(value)


def _resolve(obs: pd.DataFrame, column: str, values: object) -> list[tuple[str, list[str]]]:
    """Returns columns with the texts of their values."""
    is_one = isinstance(values, str) or not isinstance(values, Iterable)
    values = [values] if is_one else list(values)
    if not values:
        raise InputError(f'the filter of "{column}" names no value; name one, or leave it out')
    texts = [value for value in values if isinstance(value, FilterText)]
    plain = [label_text(value) for value in values if not isinstance(value, FilterText)]
    if plain:
        check_columns(obs, [column])
    return [*([(column, plain)] if plain else []), *(_read_text(obs, text) for text in texts)]


def _read_text(obs: pd.DataFrame, text: str) -> tuple[str, list[str]]:
    place = end_of_column(text, obs.columns)
    column = text[:place].strip()
    check_columns(obs, [column])
    known = set(label_texts(obs[column].drop_duplicates()).dropna())
    return column, split_values(text[place + 1 :], known, "|")


def _has_value(obs: pd.DataFrame, column: str, texts: list[str]) -> np.ndarray:
    present, wanted = obs[column], texts
    if is_number(present):
        # "1" and "1.0" are the same number.
        try:
            wanted = [float(text) for text in texts]
        except ValueError:
            raise InputError(
                f'column "{column}" holds numbers, but its filter is {"|".join(texts)}'
            ) from None
    else:
        present = label_texts(present)
    known = present.dropna().unique()
    for value, text in zip(wanted, texts, strict=True):
        if value not in known:
            names = sorted(str(each) for each in known)
            shown = ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
            raise InputError(
                f'column "{column}" has no value "{text}"{did_you_mean(text, names)}; it has '
                f"{shown}"
            )
    return present.isin(wanted).to_numpy()
