"""Obs columns that an analysis names: whether its cells have them.

Imports no JAX: commands ask before they load it, and before counts are read.
"""

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path

from geneformer_jax.cells.formats.open import obs_columns_of
from geneformer_jax.cells.formats.paths import as_path, is_counts
from geneformer_jax.cells.store.layout import STORE, obs_kinds
from geneformer_jax.common.errors import InputError, did_you_mean


def check_columns(known: Iterable[str], columns: Iterable[str]) -> None:
    """Raises InputError if a column is not among the known ones, or those of a table."""
    known = list(known)
    for column in columns:
        if column not in known:
            raise InputError(
                f'the cells have no obs column "{column}"{did_you_mean(column, known)}; they carry '
                f"{', '.join(map(str, known)) or 'none'} (tokenize carries the columns named by "
                "`obs`)"
            )


def require_columns(cells: Path | str, columns: Iterable[str], filters: Iterable[str] = ()) -> None:
    """Refuses columns that a store or a file of counts lacks; of other cells nothing is known yet.

    Args:
      cells: path of them.
      columns: to look for; an empty name is none.
      filters: texts of the form "column:value"; others are refused where they are read.

    Raises:
      InputError: a column is not there.
    """
    columns, filters = [name for name in columns if name], [each for each in filters if ":" in each]
    known = _columns_of(as_path(cells)) if columns or filters else None
    if known is not None:
        named = (text[: end_of_column(text, known)].strip() for text in filters)
        check_columns(known, [*columns, *named])


def end_of_column(text: str, known: Collection[str]) -> int:
    """Returns where the column ends in "column:value".

    Names of columns may hold colons: the longest name that is known is meant, or else the shortest.
    """
    places = [place for place, letter in enumerate(text) if letter == ":"]
    return next((each for each in reversed(places) if text[:each].strip() in known), places[0])


def _columns_of(cells: Path) -> list[str] | None:
    """Returns the obs columns of a store or of counts; None for what is neither, or damaged."""
    # What else is wrong is told where the cells are opened.
    with contextlib.suppress(InputError, OSError, ValueError, KeyError):
        if (cells / STORE).is_file():
            return list(obs_kinds(cells))
        if is_counts(cells):
            return obs_columns_of(cells)
    return None
