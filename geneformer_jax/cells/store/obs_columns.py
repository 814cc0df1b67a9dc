"""Obs columns of a store: their kinds in obs tables and in store records.

A column is text, int, float or bool. Categories become text. A whole-number or truth column with
missing values becomes float or text, so that "missing" stays apart from zero and false.

Columns may have any name. In files, where some names are taken, a column of such a name stands
behind a prefix (`stored_name`) and gets its own name back when it is read (`original_name`).
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from geneformer_jax.cells.counts.source import CELL_ID
from geneformer_jax.cells.store.records import TOKENS, ByteRows

# Names that records need for themselves.
TAKEN = (TOKENS, CELL_ID)
# The kind of a column that a source lacks, and what others become beside it.
MISSING = "missing"
_WITH_GAPS = {"text": "text", "int": "float", "float": "float", "bool": "text"}
_PREFIX = "obs:"
_ARROW = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
NUMPY_TYPES = {"int": np.int64, "float": np.float64, "bool": np.bool_}


def stored_name(name: str, taken: Iterable[str] = TAKEN) -> str:
    """Returns the name of an obs column in a file where some names are taken.

    Different columns get different names, whatever they are called; see `original_name`.
    """
    return _PREFIX + name if _without_prefixes(name) in taken else name


def original_name(stored: str, taken: Iterable[str] = TAKEN) -> str:
    """Returns the obs column that `stored_name` gave this name."""
    return stored.removeprefix(_PREFIX) if _without_prefixes(stored) in taken else stored


def _without_prefixes(name: str) -> str:
    while name.startswith(_PREFIX):
        name = name.removeprefix(_PREFIX)
    return name


def kind_of(column: pd.Series) -> str:
    """Returns "text", "int", "float" or "bool": how a per-cell column is kept."""
    if pd.api.types.is_bool_dtype(column):
        return "text" if column.hasnans else "bool"
    if pd.api.types.is_integer_dtype(column):
        return "float" if column.hasnans else "int"
    return "float" if pd.api.types.is_float_dtype(column) else "text"


def common_kind(kinds: Iterable[str]) -> str:
    """Returns the kind that can hold columns of all these kinds."""
    kinds = set(kinds)
    if MISSING in kinds:
        kinds = {_WITH_GAPS[kind] for kind in kinds - {MISSING}} or {MISSING}
    if len(kinds) == 1:
        return kinds.pop()
    return "float" if kinds == {"int", "float"} else "text"


def as_kind(column: pd.Series, kind: str) -> np.ndarray:
    """Returns a column's values as `kind`; missing text is None, a missing number NaN."""
    if kind == "text":
        missing = column.isna().to_numpy()
        values = column.astype(str).to_numpy(dtype=object)
        values[missing] = None
        return values
    if kind == "float":
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.to_numpy(dtype=NUMPY_TYPES[kind])


def as_bytes(column: pa.Array, kind: str) -> ByteRows:
    """Returns a column of the obs table as records keep it; missing text is empty."""
    if kind != "text":
        return ByteRows.of_numbers(column.to_numpy(zero_copy_only=False))
    _, offsets, content = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return ByteRows(np.frombuffer(content or b"", np.uint8), bounds.astype(np.int64))


def arrow_schema(kinds: Mapping[str, str]) -> pa.Schema:
    """The obs table's columns: the cell id and the obs columns, by their stored names."""
    columns = ((stored_name(name), _ARROW[kind]) for name, kind in kinds.items())
    return pa.schema([(CELL_ID, pa.string()), *columns])
