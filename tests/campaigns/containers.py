"""Mutations of arrays and tables in HDF5, NumPy, Arrow and Parquet files."""

import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from tests.campaigns.texts import VALUES

_NUMBERS = (-1, 0, 2**31 - 1, 2**31, 2**62, -(2**62), 0.5, np.nan, np.inf, 1e300)
_DTYPES = ("i1", "u1", "i2", "u2", "i4", ">i4", "i8", "u8", "f2", "f4", ">f8", "c8", "?", "S3")


def mutate_hdf5(file: Path, rng: random.Random) -> str:
    """An array, attribute or name of an HDF5 file is another."""
    with h5py.File(file, "r+") as root:
        nodes: list[str] = []
        root.visit(nodes.append)
        node = rng.choice(sorted(nodes))
        what = rng.choice(["array", "array", "array", "attribute", "remove", "rename", "link"])
        if what == "array":
            arrays = [each for each in sorted(nodes) if isinstance(root[each], h5py.Dataset)]
            return _replace_array(root, rng.choice(arrays), arrays, rng)
        if what == "attribute":
            with_some = [each for each in ("/", *sorted(nodes)) if len(root[each].attrs)]
            return _replace_attribute(root[rng.choice(with_some)], rng) if with_some else "nothing"
        if what == "remove":
            del root[node]
        elif what == "rename":
            root.move(node, f"{node}x")
        else:
            # A name for a group that it lies in: whoever follows all names never ends.
            del root[node]
            root[node] = h5py.SoftLink(rng.choice(["/", f"/{node}", f"/{node.split('/')[0]}"]))
        return f"{what} {node}"


def _replace_array(root: h5py.File, name: str, arrays: list[str], rng: random.Random) -> str:
    values, attributes = root[name][...], dict(root[name].attrs)
    other = rng.choice(arrays)
    what, changed = (
        ("other", root[other][...]) if rng.random() < 0.15 else change_array(values, rng)
    )
    del root[name]
    root[name] = changed
    root[name].attrs.update(attributes)
    return f"{what} {name}" + (f" by {other}" if what == "other" else "")


def _replace_attribute(node: Any, rng: random.Random) -> str:
    name, value = rng.choice(sorted(node.attrs)), rng.choice(VALUES)
    del node.attrs[name]
    if (isinstance(value, int) and abs(value) < 2**63) or isinstance(value, str | float):
        node.attrs[name] = value
    return f"attribute {node.name}@{name} = {str(value)[:20]!r}"


def change_array(values: np.ndarray, rng: random.Random) -> tuple[str, np.ndarray]:
    """Returns what was done, and an array with other values, of another length, shape or type."""
    what = rng.choice(["shuffle", "shorten", "lengthen", "value", "type", "shape", "reverse"])
    if values.ndim == 0 or not values.size:
        what = "shape"
    if what == "shuffle":
        values = np.random.default_rng(rng.randrange(1 << 30)).permutation(values)
    elif what == "reverse":
        values = values[::-1]
    elif what == "shorten":
        values = values[: rng.randrange(len(values))]
    elif what == "lengthen":
        values = np.concatenate([values, values])
    elif what == "value":
        return _with_value(values, rng)
    elif what == "type" and values.dtype.kind in "iufb":
        with np.errstate(all="ignore"):
            return what, values.astype(rng.choice(_DTYPES))
    else:
        what = "shape"
        values = (
            rng.choice([values.reshape(-1, 1), values[None], values.ravel()[:1].reshape(())])
            if values.size
            else values[None]
        )
    return what, values


def _with_value(values: np.ndarray, rng: random.Random) -> tuple[str, np.ndarray]:
    place = rng.randrange(values.size)
    if values.dtype.kind not in "iuf":
        changed = values.astype(object) if values.dtype.kind == "O" else values.copy()
        changed.flat[place] = values.flat[rng.randrange(values.size)] if rng.random() < 0.5 else b""
        return "text", changed
    number = rng.choice(_NUMBERS)
    fits = values.dtype.kind == "f" or (
        isinstance(number, int)
        and np.iinfo(values.dtype).min <= number
        and number <= np.iinfo(values.dtype).max
    )
    changed = values.copy() if fits else values.astype(np.float64)
    with np.errstate(all="ignore"):
        changed.flat[place] = number
    return f"value {number}", changed


def mutate_npy(file: Path, rng: random.Random) -> str:
    """The array of a NumPy file is another."""
    what, changed = change_array(np.load(file), rng)
    np.save(file, changed)
    return what


def mutate_parquet(file: Path, rng: random.Random) -> str:
    """A table of a Parquet file is another."""
    table, what = _mutate_table(pq.read_table(file), rng)
    pq.write_table(table, file, write_page_checksum=rng.random() < 0.5)
    return what


def mutate_arrow(file: Path, rng: random.Random) -> str:
    """A table of an Arrow stream is another."""
    with pa.ipc.open_stream(str(file)) as stream:
        table = stream.read_all()
    table, what = _mutate_table(table, rng)
    with pa.ipc.new_stream(str(file), table.schema) as stream:
        stream.write_table(table)
    return what


def _mutate_table(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    column = rng.randrange(table.num_columns)
    name = table.column_names[column]
    what = rng.choice(["drop", "rename", "rows", "cells", "cells", "cells", "metadata"])
    if what == "drop":
        return table.drop_columns([name]), f"drop {name}"
    if what == "rename":
        others = [*table.column_names, f"{name}x", ""]
        names = list(table.column_names)
        names[column] = rng.choice(others)
        return table.rename_columns(names), f"rename {name} to {names[column]}"
    if what == "rows":
        rows = list(range(table.num_rows))
        rng.shuffle(rows)
        rows = rng.choice([rows, [], rows[::2], rows + rows])
        return table.take(pa.array(rows, pa.int64())), f"{len(rows)} rows"
    if what == "metadata":
        metadata = dict(table.schema.metadata or {b"pandas": b"{}"})
        key = rng.choice(sorted(metadata))
        metadata[key] = rng.choice([b"", b"{}", b"[]", b"null", b"{", b"\xff", metadata[key][:-9]])
        return table.replace_schema_metadata(metadata), f"metadata {key.decode()}"
    values = table[name].to_pylist()
    kinds = {
        "numbers": lambda: pa.array([float(rng.choice(_NUMBERS)) for _ in values]),
        "whole numbers": lambda: pa.array([rng.randrange(-9, 99) for _ in values]),
        "texts": lambda: pa.array([str(each) for each in values]),
        "nulls": lambda: pa.array(
            [None if rng.random() < 0.3 else v for v in values], table[name].type
        ),
        "no type": lambda: pa.nulls(len(values)),
        "lists": lambda: pa.array([[1.5, 2.0]] * len(values)),
        "bytes": lambda: pa.array([b"\xff\xfe"] * len(values)),
        "shorter": lambda: pa.array(
            [v[:-1] if isinstance(v, list | str) else v for v in values], _loose(table[name].type)
        ),
    }
    kind = rng.choice(sorted(kinds))
    changed = kinds[kind]()
    return table.set_column(column, name, changed), f"{kind} as {name}"


def _loose(kind: pa.DataType) -> pa.DataType:
    """The type of lists of any length."""
    return pa.list_(kind.value_type) if pa.types.is_fixed_size_list(kind) else kind
