"""Tables (obs, var) of an AnnData on disk, by column, and the checks that zarr leaves out."""

from collections.abc import Iterator

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem

from geneformer_jax.cells.reading import require_survivable_texts
from geneformer_jax.common.errors import InputError

Group = h5py.Group | zarr.Group
_LEGACY_CATEGORIES = "__categories"


def table_columns(table: Group) -> list[str]:
    """Names of the columns, in the order in which they were written."""
    _require_group(table)
    stored = set(table.keys()) - {_LEGACY_CATEGORIES, table.attrs["_index"]}
    ordered = [str(name) for name in table.attrs.get("column-order", [])]
    named = [name for name in ordered if name in stored]
    return named + sorted(stored - set(named))


def read_texts(table: Group, name: str | None) -> np.ndarray | pd.api.extensions.ExtensionArray:
    """A column, or (None) the index; of numpy's StringDType if it is a plain list of texts.

    Such a list is read at once, without a Python object for each text.
    """
    _require_group(table)
    name = table.attrs["_index"] if name is None else name
    column = table[name]
    if not _is_plain_text(column):
        return read_column(table, name)
    require_survivable_texts(column)
    return column.astype(np.dtypes.StringDType())[:]


def read_column(table: Group, name: str) -> np.ndarray | pd.api.extensions.ExtensionArray:
    """One column: an array, a pandas array with missing values, or a categorical."""
    column = table[name]
    refuse_pickle(column, f"{table.name}/{name}")
    values = _read_element(column)
    if isinstance(column, h5py.Dataset) and "categories" in column.attrs:
        # AnnData before 0.8 kept codes in the column and a reference to their categories.
        categories = _read_element(column.file[column.attrs["categories"]])
        return pd.Categorical.from_codes(values, categories)
    return values


def _read_element(node: Group | h5py.Dataset | zarr.Array) -> object:
    require_survivable_texts(node)
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


def refuse_pickle(node: Group | h5py.Dataset | zarr.Array, name: str) -> None:
    """Raises InputError if reading this element would run a pickle (a zarr filter may)."""
    for array in _zarr_arrays(node):
        if "pickle" in str(array.metadata.to_dict()).lower():
            raise InputError(
                f"{name}: is stored by pickle, which can run code and is never read; write the "
                "store again with AnnData"
            )


def require_chunks(group: Group, name: str, columns: int) -> None:
    """Raises InputError if a chunk of a sparse matrix is missing; zarr would read it as zeros.

    Only the indices of a matrix with one column may really be all zero.
    """
    for part in ("data", "indices", "indptr"):
        array = group[part]
        if not isinstance(array, zarr.Array) or (part == "indices" and columns == 1):
            continue
        stored, needed = array.nchunks_initialized, array.nchunks
        if array.size and stored < needed:
            raise InputError(
                f"{name}: {needed - stored} of {needed} chunks of {part} are missing; the store is "
                "not complete: copy or write it again"
            )


def _zarr_arrays(node: Group | h5py.Dataset | zarr.Array) -> Iterator[zarr.Array]:
    if isinstance(node, zarr.Array):
        yield node
    elif isinstance(node, zarr.Group):
        for _, member in node.members(max_depth=None):
            if isinstance(member, zarr.Array):
                yield member


def _require_group(table: Group) -> None:
    if not hasattr(table, "keys"):
        raise InputError(
            f"{table.name} is one array, as AnnData before 0.7 wrote it; read the file with "
            "anndata and write it again"
        )
