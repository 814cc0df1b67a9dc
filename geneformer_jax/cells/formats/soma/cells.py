"""The cells of an experiment: which of them pass a filter, and their obs columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneformer_jax.cells.counts.gene_table import no_column
from geneformer_jax.cells.formats.soma.library import first_sentence
from geneformer_jax.common.errors import InputError

if TYPE_CHECKING:
    import tiledbsoma

JOIN_ID, CELL_ID, _DATA_SET = "soma_joinid", "obs_id", "dataset_id"
_NO_COLUMN = re.compile(r"Column (.+) does not exist in schema")
_WRONG_TYPE = "incompatible function arguments"
_EXAMPLE = """'is_primary_data == True and tissue == "blood"'"""
_LISTED = 5


def obs_columns(obs: tiledbsoma.DataFrame) -> list[str]:
    """Names of the per-cell columns; the ids of cells are none."""
    return [name for name in obs.keys() if name != CELL_ID]  # noqa: SIM118


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """The cells of an experiment that pass a filter.

    Attributes:
      ids: int64 [cells] their join ids, ascending.
      total: number of cells of the experiment.
      dropped: data set -> (cells dropped, cells of it), of those that lose some; empty where obs
        has no column `dataset_id`.
    """

    ids: np.ndarray
    total: int
    dropped: Mapping[str, tuple[int, int]]

    def describe(self) -> str:
        """How many cells are dropped, for a line of the log; the data sets that lose most."""
        lost = self.total - len(self.ids)
        most = sorted(self.dropped.items(), key=lambda item: (-item[1][0], item[0]))
        named = [f"{lost:,} of {all_:,} of {name}" for name, (lost, all_) in most[:_LISTED]]
        more = [f"and {len(most) - _LISTED:,} more data sets"] if len(most) > _LISTED else []
        by_data_set = f" ({_DATA_SET}: {', '.join([*named, *more])})" if named else ""
        return f"`obs_filter` drops {lost:,} of {self.total:,} cells{by_data_set}"


def choose_rows(path: Path, obs: tiledbsoma.DataFrame, value_filter: str | None) -> ChosenRows:
    """Finds the cells that pass a filter.

    Args:
      path: of the experiment, for messages.
      obs: its table of cells.
      value_filter: in SOMA's own words; None for all cells.

    Raises:
      InputError: the filter names no column, cannot be understood, or keeps no cell.
    """
    parts = [np.empty(0, np.int64)]
    chosen, kept = _tally(_tables(path, obs, value_filter), parts)
    ids = np.concatenate(parts)
    ids.sort()
    if value_filter is None:
        return ChosenRows(ids, chosen, {})
    total, every = _tally(_tables(path, obs, None))
    if not chosen:
        raise InputError(
            f"{path}: none of its {total:,} cells passes `obs_filter` {value_filter}; check its "
            "values, or leave it out"
        )
    lost = {name: (n - kept[name], n) for name, n in every.items() if n > kept[name]}
    return ChosenRows(ids, total, lost)


def _tally(
    tables: Iterable[pa.Table], parts: list[np.ndarray] | None = None
) -> tuple[int, Counter[str]]:
    """Counts cells, and those of each data set; appends their join ids to `parts` if given."""
    total, by_data_set = 0, Counter()
    for table in tables:
        total += len(table)
        if parts is not None:
            parts.append(table[JOIN_ID].to_numpy())
        for each in pc.value_counts(table[_DATA_SET]) if _DATA_SET in table.column_names else ():
            by_data_set[str(each["values"])] += each["counts"].as_py()
    return total, by_data_set


def _tables(path: Path, obs: tiledbsoma.DataFrame, value_filter: str | None) -> Iterable[pa.Table]:
    columns = [JOIN_ID, *([_DATA_SET] if _DATA_SET in obs.keys() else [])]  # noqa: SIM118
    if value_filter is None:
        return obs.read(column_names=columns)
    try:
        return obs.read(column_names=columns, value_filter=value_filter)
    except Exception as error:
        # The library's errors on a filter are of many kinds, syntax errors of Python among them.
        raise _wrong_filter(path, obs, value_filter, first_sentence(error)) from error


def _wrong_filter(
    path: Path, obs: tiledbsoma.DataFrame, value_filter: str, reason: str
) -> InputError:
    if unknown := _NO_COLUMN.search(reason):
        return no_column(path, "obs", unknown[1], list(obs.keys()))
    if _WRONG_TYPE in reason:
        reason = "a value is not of its column's type"
    return InputError(
        f"{path}: `obs_filter` {value_filter} is not understood ({reason}); write it as {_EXAMPLE}"
    )


def read_cells(
    obs: tiledbsoma.DataFrame, columns: Sequence[str], ids: np.ndarray
) -> dict[str, object]:
    """Reads columns of some cells.

    Args:
      obs: the table of cells.
      columns: of it.
      ids: int64 [cells] ascending join ids.

    Returns:
      column -> [cells] values in the order of `ids`; categories stay such.

    Raises:
      ValueError: a cell is not there any more.
    """
    wanted = list(dict.fromkeys([JOIN_ID, *columns]))
    table = obs.read(coords=(as_coordinates(ids),), column_names=wanted).concat()
    found = table[JOIN_ID].to_numpy()
    order = np.argsort(found)
    if not np.array_equal(found[order], ids):
        raise ValueError("the table of cells has been changed while it was read")
    ordered = table.take(pa.array(order))
    return {name: ordered[name].to_pandas().array for name in columns}


def as_coordinates(ids: np.ndarray) -> slice | np.ndarray:
    """A range where ids are consecutive, which is read much faster than single cells."""
    if len(ids) and ids[-1] - ids[0] == len(ids) - 1:
        return slice(int(ids[0]), int(ids[-1]))
    return ids
