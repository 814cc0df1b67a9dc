"""How many cells of each label a store keeps, and how many were dropped on the way into it.

A column is one of labels if it holds texts or truth values, at most `MAX_LABELS` different ones.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from geneformer_jax.cells.counts.options import DEFAULT_LIMITS
from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store.cell_columns import CellColumns
from geneformer_jax.cells.store.obs_columns import as_kind, stored_name
from geneformer_jax.cells.store.tables import obs_batches

MAX_LABELS = 50
# Of a label that loses more than this fraction of its cells a warning is given.
WARN_FRACTION = 0.2
NO_VALUE = "no value"
_LABEL_KINDS = ("text", "bool")
# Column -> label -> "kept" and "dropped" -> cells.
LabelCounts = Mapping[str, Mapping[str, Mapping[str, int]]]


def add_values(counts: Counter[str], column: pa.Array) -> None:
    """Adds the values of a column to their counts; missing ones and "" are `NO_VALUE`."""
    for pair in column.value_counts().to_pylist():
        value = pair["values"]
        # NaN is the value that is not itself.
        missing = value is None or value == "" or value != value
        counts[NO_VALUE if missing else str(value)] += pair["counts"]


def count_dropped(
    columns: CellColumns, kinds: Mapping[str, str], dropped: np.ndarray
) -> dict[str, dict[str, int] | None]:
    """Counts the dropped cells of a source by label.

    Args:
      columns: of the source.
      kinds: obs column -> kind, see `obs_columns`.
      dropped: bool [cells].

    Returns:
      Column -> label -> cells; None for a column of more than `MAX_LABELS` values.
    """
    counts: dict[str, Counter[str] | None] = {
        name: Counter() for name, kind in kinds.items() if kind in _LABEL_KINDS
    }
    for start in range(0, len(dropped), DEFAULT_LIMITS.rows):
        rows = start + np.flatnonzero(dropped[start : start + DEFAULT_LIMITS.rows])
        if len(rows):
            _add_rows(counts, columns.of(rows)[1], kinds)
    return counts


def _add_rows(
    counts: dict[str, Counter[str] | None], table: pd.DataFrame, kinds: Mapping[str, str]
) -> None:
    for name in [name for name, known in counts.items() if known is not None]:
        add_values(counts[name], pa.array(as_kind(table[name], kinds[name])))
        counts[name] = _if_labels(counts[name])


def count_by_label(
    folder: Path, keys: Sequence[str], dropped: Sequence[Mapping[str, Mapping[str, int] | None]]
) -> LabelCounts:
    """Puts kept cells beside the dropped ones; empty if no cell was dropped.

    Args:
      folder: of a store, growing or complete.
      keys: of its sources.
      dropped: of each source, see `count_dropped`.
    """
    found = {}
    for name in dict.fromkeys(itertools.chain(*dropped)):
        parts = [each.get(name, {}) for each in dropped]
        lost = None if None in parts else sum(map(Counter, parts), Counter())
        kept = _count_kept(folder, keys, name) if lost else None
        if kept is not None and _if_labels(kept + lost) is not None:
            found[name] = {
                label: {"kept": kept[label], "dropped": lost[label]}
                for label, _ in (kept + lost).most_common()
            }
    return found


def describe_labels(counts: LabelCounts) -> Iterator[str]:
    """Yields lines on the labels of which cells were dropped, and warnings; see `WARN_FRACTION`."""
    for column, labels in counts.items():
        yield f"  kept and left out, by {column}:"
        for label, cells in labels.items():
            if cells["dropped"]:
                share = f"{_lost(cells):.0%} left out"
                yield f"    {label}: {cells['kept']:,} and {cells['dropped']:,} ({share})"
    yield from (f"  WARNING: {warning}" for warning in warnings_of(counts))


def warnings_of(counts: LabelCounts) -> list[str]:
    """Returns a line for each column with labels that lose more than `WARN_FRACTION`."""
    warnings = []
    for column, labels in counts.items():
        heavy = [
            f"{label} ({cells['dropped']:,} of {sum(cells.values()):,})"
            for label, cells in labels.items()
            if _lost(cells) > WARN_FRACTION
        ]
        if heavy:
            warnings.append(
                f"more than {WARN_FRACTION:.0%} of the cells are left out of these labels of "
                f"{column}: {', '.join(heavy)}; see the reasons, each rule can be set by itself"
            )
    return warnings


def _lost(cells: Mapping[str, int]) -> float:
    return cells["dropped"] / sum(cells.values())


def _if_labels(counts: Counter[str]) -> Counter[str] | None:
    return counts if len(counts) <= MAX_LABELS else None


def _count_kept(folder: Path, keys: Sequence[str], name: str) -> Counter[str] | None:
    counts: Counter[str] = Counter()
    for key in keys:
        path = folder / layout.SOURCES / key / layout.OBS
        for batch in obs_batches(path, DEFAULT_LIMITS.rows, [stored_name(name)]):
            add_values(counts, batch.column(0))
            if _if_labels(counts) is None:
                return None
    return counts
