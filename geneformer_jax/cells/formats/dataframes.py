"""Tables (obs, var) of an AnnData on disk, by column, and the checks that zarr leaves out.

Ids and four columns of a million cells are read in blocks in 33 MB of memory; anndata's `read_elem`
takes 906 MB, its `read_elem_lazy` 341 MB, and both take 1.4 times as long (benchmarks/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.matrix import unwritten_chunks
from geneformer_jax.common.errors import InputError

if TYPE_CHECKING:
    import zarr

    Group = h5py.Group | zarr.Group
    Table = "Group | OldTable"

_LEGACY_CATEGORIES = "__categories"
_ALL = slice(None)
_ROW_PARTS = ("codes", "values")


class OldColumn:
    """A field of a table as AnnData before 0.7 wrote it."""

    def __init__(self, records: h5py.Dataset, name: str, categories: h5py.Dataset | None):
        """Takes the table, the name of the field, and what its codes mean, if it has codes."""
        self._records, self._name = records, name
        codes = records.dtype[name].kind in "iu"
        self._categories = categories if codes else None
        self.attrs: dict[str, object] = {}
        self.shape = records.shape
        self.dtype = records.dtype[name] if self._categories is None else np.dtype(object)

    def __getitem__(self, rows: slice) -> np.ndarray | pd.Categorical:
        """Values of some rows; texts as str."""
        values = self._records.fields(self._name)[rows]
        if self._categories is None:
            return _decoded(values)
        return pd.Categorical.from_codes(values, np.atleast_1d(_decoded(self._categories[()])))


class OldTable:
    """A table of AnnData before 0.7: one array of records, whose first field is the index."""

    def __init__(self, records: h5py.Dataset, root: h5py.Group):
        """Takes the table and the AnnData, which keeps categories under `uns`."""
        self._records, self._uns = records, root.get("uns", {})
        self.name = records.name
        names = list(records.dtype.names)
        self.attrs = {"_index": names[0], "column-order": names[1:]}

    def keys(self) -> list[str]:
        """Names of all columns."""
        return list(self._records.dtype.names)

    def __contains__(self, name: str) -> bool:
        return name in self._records.dtype.names

    def __getitem__(self, name: str) -> OldColumn:
        return OldColumn(self._records, name, self._uns.get(f"{name}_categories"))


def _decoded(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "OS":
        return values
    return np.vectorize(lambda v: v.decode() if isinstance(v, bytes) else v, otypes=[object])(
        values
    )


def table_of(root: Group, name: str, path: Path) -> Table:
    """The table of an AnnData in a file, such as "obs" or "raw/var".

    Raises:
      InputError: it is no table.
    """
    table = root[name]
    if hasattr(table, "keys"):
        return table
    if table.dtype.names is None:
        raise InputError(
            f"{path}: {name} is one array, but a table of columns is needed; write it again"
        )
    return OldTable(table, root)


def table_columns(table: Table) -> list[str]:
    """Names of the columns, in the order in which they were written."""
    index = table.attrs["_index"]
    hidden = {_LEGACY_CATEGORIES, index}
    ordered = [str(name) for name in table.attrs.get("column-order", [])]
    named = [name for name in ordered if name not in hidden and name in table]
    # A column called "a/b" lies in a group "a".
    outer = {name.split("/")[0] for name in [index, *named]}
    return named + sorted(set(table.keys()) - hidden - outer - set(named))


def index_name(table: Table) -> str:
    """Name of the column that is the index."""
    return table.attrs["_index"]


def column_shape(table: Table, name: str) -> tuple[int, ...]:
    """The shape of a column, however it is stored."""
    return tuple(_stored_rows(table[name]).shape)


def rows_per_chunk(table: Table, name: str) -> int:
    """How many rows of a column are stored together."""
    chunks = getattr(_stored_rows(table[name]), "chunks", None)
    return chunks[0] if chunks else 1


def is_text_column(table: Table, name: str) -> bool:
    """Whether a column holds texts, maybe with missing ones or as categories."""
    column = table[name]
    if isinstance(column, h5py.Dataset) and "categories" in column.attrs:
        column = column.file[column.attrs["categories"]]
    if hasattr(column, "keys"):
        part = next((part for part in ("categories", "values") if part in column), None)
        return part is not None and is_text_column(column, part)
    return column.dtype.kind in "OSTU"


def read_texts(
    table: Table, name: str, rows: slice = _ALL
) -> np.ndarray | pd.api.extensions.ExtensionArray:
    """Rows of a column; of numpy's StringDType if it is a plain list of texts.

    Raises:
      UnicodeDecodeError: such a list holds bytes that are no text. h5py copies them as they are,
        and numpy makes other letters of them in a type of fixed width.
    """
    column = table[name]
    if not _is_plain_text(column):
        return read_column(table, name, rows)
    texts = column.astype(np.dtypes.StringDType())[rows]
    # For the error alone.
    texts.tolist()
    return texts


def read_column(
    table: Table, name: str, rows: slice = _ALL
) -> np.ndarray | pd.api.extensions.ExtensionArray:
    """Rows of one column: an array, a pandas array with missing values, or a categorical."""
    column = table[name]
    check_no_pickle(column, f"{table.name}/{name}")
    if isinstance(column, h5py.Dataset) and "categories" in column.attrs:
        # AnnData before 0.8 kept codes in the column and a reference to their categories.
        categories = _read_element(column.file[column.attrs["categories"]])
        return pd.Categorical.from_codes(column[rows], categories)
    kind = str(column.attrs.get("encoding-type", ""))
    if kind in _MASKED:
        return _MASKED[kind](_rows_of(column["values"], rows), column["mask"][rows])
    if kind == "categorical":
        # Categories differ: a chunk of them is not left out for being all empty, unless it is one.
        stored = _stored_rows(column["categories"])
        if math.prod(stored.shape) > 1 and _chunks_missing(stored):
            raise ValueError(f"chunks of the categories of {name} are missing")
        categories, ordered = _read_element(column["categories"]), bool(column.attrs["ordered"])
        return pd.Categorical.from_codes(column["codes"][rows], categories, ordered=ordered)
    return _rows_of(column, rows)


def _rows_of(
    column: Group | h5py.Dataset | zarr.Array, rows: slice
) -> np.ndarray | pd.api.extensions.ExtensionArray:
    if _is_plain_text(column):
        return column.asstr()[rows]
    if _is_zarr_array(column) and column.dtype.kind in "TUO":
        return np.asarray(column[rows], object)
    if isinstance(column, OldColumn):
        return column[rows]
    if not hasattr(column, "keys") and column.dtype.kind in "biuf":
        return column[rows]
    values = _read_element(column)[rows]
    if isinstance(values, np.ndarray) and values.dtype.kind == "V":
        raise ValueError(f"{column.name} holds records, but a column has one value per row")
    return values


def _nullable_texts(values: np.ndarray, mask: np.ndarray) -> pd.api.extensions.ExtensionArray:
    return pd.array(np.where(mask, pd.NA, values), dtype="string")


# How AnnData stores columns of which some values are missing.
_MASKED = {
    "nullable-integer": pd.arrays.IntegerArray,
    "nullable-boolean": pd.arrays.BooleanArray,
    "nullable-string-array": _nullable_texts,
}


def _stored_rows(column: Group | h5py.Dataset | zarr.Array) -> h5py.Dataset | zarr.Array:
    """The array that has an entry for each row."""
    parts = [name for name in _ROW_PARTS if hasattr(column, "keys") and name in column]
    return column[parts[0]] if parts else column


def _read_element(node: Group | h5py.Dataset | zarr.Array) -> object:
    # anndata takes half a second to import, which only columns of rarer kinds should wait for.
    from anndata.io import read_elem

    try:
        return read_elem(node)
    except Exception as error:
        # What anndata raises on an unknown encoding has no public name and no base but Exception.
        raise ValueError(str(error)) from error


def _is_plain_text(node: Group | h5py.Dataset | zarr.Array) -> bool:
    """Whether HDF5 texts can be read at once, without a Python object for each."""
    if not isinstance(node, h5py.Dataset) or node.ndim != 1:
        return False
    text = h5py.check_string_dtype(node.dtype)
    return text is not None and text.length is None


def check_no_pickle(node: Group | h5py.Dataset | zarr.Array, name: str) -> None:
    """Raises InputError if reading this element would run a pickle (a zarr filter may)."""
    for array in _zarr_arrays(node):
        if "pickle" in str(array.metadata.to_dict()).lower():
            raise InputError(
                f"{name}: is stored by pickle, which can run code and is never read; write the "
                "store again with AnnData"
            )


def require_written(table: Table, name: str, path: Path) -> None:
    """Raises InputError where names, such as those of cells, were never all written.

    What HDF5 and zarr hold no chunk of they read as empty texts, as many as a shape asks for: a
    damaged one may ask for more than any memory holds.
    """
    names = _stored_rows(table[name])
    if missing := _chunks_missing(names):
        raise InputError(
            f"{path}: {missing} chunks of {table.name}/{name} are missing; it is not complete: "
            "copy or write it again"
        )


def _chunks_missing(array: h5py.Dataset | zarr.Array) -> int:
    """How many chunks (of a sharded array, shards) were never written."""
    if isinstance(array, h5py.Dataset):
        return unwritten_chunks(array)
    if isinstance(array, OldColumn) or not array.size or array.chunks is None:
        return 0
    parts = array.shards or array.chunks
    grid = [-(-length // part) for length, part in zip(array.shape, parts, strict=True)]
    needed = math.prod(grid)
    # Zarr's own `nchunks_initialized` looks for each of them in a list, however many there are.
    stored = _stored_keys(array)
    if len(stored) < needed:
        return needed - len(stored)
    return sum(array.metadata.encode_chunk_key(at) not in stored for at in np.ndindex(*grid))


def _stored_keys(array: zarr.Array) -> set[str]:
    """Names of what is stored of an array, beside its description."""
    from zarr.core.sync import sync

    async def below() -> set[str]:
        place = array.store_path
        return {key async for key in place.store.list_prefix(place.path)}

    keys = {key.removeprefix(array.store_path.path).lstrip("/") for key in sync(below())}
    return {key for key in keys if not key.startswith(".z") and not key.endswith("zarr.json")}


def require_chunks(group: Group, name: str, shape: tuple[int, int]) -> None:
    """Raises InputError if a chunk of a sparse matrix is missing; zarr would read it as zeros.

    Args:
      group: of the matrix.
      name: for the message.
      shape: (number of compressed rows or columns, length of each). Only where each has one entry
        at most, may indices really be all zero.
    """
    for part in ("data", "indices", "indptr"):
        array = group[part]
        may_be_zero = part == "indices" and (shape[1] == 1 or array.shape[0] <= shape[0])
        if not _is_zarr_array(array) or may_be_zero:
            continue
        if missing := _chunks_missing(array):
            raise InputError(
                f"{name}: {missing} chunks of {part} are missing; the store is "
                "not complete: copy or write it again"
            )


def _zarr_arrays(node: Group | h5py.Dataset | zarr.Array) -> Iterator[zarr.Array]:
    if _is_zarr_array(node):
        yield node
    elif not isinstance(node, _NOT_ZARR):
        yield from (member for _, member in node.members(max_depth=None) if _is_zarr_array(member))


# What else a node can be: zarr itself is imported for its stores alone.
_NOT_ZARR = (h5py.Dataset, h5py.Group, OldColumn)


def _is_zarr_array(node: object) -> bool:
    return not isinstance(node, _NOT_ZARR) and not hasattr(node, "keys")
