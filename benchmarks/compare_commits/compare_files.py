"""Reads whatever a command has written into named arrays, with the libraries that define formats.

A file, a checkpoint or the cells of a store becomes {name of a column, array or key: array}. Text
that holds JSON is taken apart too. Nothing of the project is imported: each side has its own.
"""

import base64
import io
import json
import warnings
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Items = dict[str, np.ndarray]
# Where parquet files tell of their columns once more.
_SCHEMA = ("metadata.ARROW:schema", "metadata.pandas.columns")


def read(path: Path) -> Items:
    """Returns what is in a file, or in a folder that `units` yields as one."""
    if path.is_dir():
        return _checkpoint(path) if _is_checkpoint(path) else _cells(path)
    reader = READERS.get(path.suffix)
    return reader(path) if reader else {"bytes": np.frombuffer(path.read_bytes(), np.uint8)}


def units(folder: Path) -> Iterator[Path]:
    """Yields files, and the folders that are read as a whole: checkpoints, and stores for cells."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            if ".array_record-" not in path.name:
                yield path
        elif _is_checkpoint(path):
            yield path
        else:
            if (path / "dataset_info.json").is_file() and (path / "store.json").is_file():
                yield path
            yield from units(path)


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "_CHECKPOINT_METADATA").is_file()


def _checkpoint(folder: Path) -> Items:
    import jax
    from orbax.checkpoint import v1 as ocp

    with warnings.catch_warnings():
        # Of reading arrays onto the devices that wrote them, which this process has too.
        warnings.simplefilter("ignore", UserWarning)
        loaded = ocp.load_checkpointables(folder)
    items: Items = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded):
        name = jax.tree_util.keystr(path)
        items |= _text(name, leaf) if isinstance(leaf, str) else {name: np.asarray(leaf)}
    return items


def _cells(folder: Path) -> Items:
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(folder).as_data_source("train")
    rows = [source[index] for index in range(len(source))]
    columns = {name: [np.asarray(row[name]) for row in rows] for name in rows[0]}
    items: Items = {}
    for name, values in columns.items():
        items[f"{name}.shape"] = _objects([value.shape for value in values])
        items[name] = np.concatenate([value.ravel() for value in values])
    return items


def _parquet(path: Path) -> Items:
    table = pq.read_table(path)
    items: Items = {"columns": _objects(table.column_names)}
    for name, column in zip(table.column_names, table.columns, strict=True):
        items |= _column(name, column.combine_chunks())
    for key, value in (table.schema.metadata or {}).items():
        items |= _text(f"metadata.{key.decode()}", value.decode())
    return {name: value for name, value in items.items() if not name.startswith(_SCHEMA)}


def _column(name: str, column: pa.Array) -> Items:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    kind = {f"{name}.type": _objects([str(column.type)])}
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        lengths = _objects([None if each is None else len(each) for each in column.to_pylist()])
        return kind | {f"{name}.lengths": lengths} | _column(f"{name}.values", column.flatten())
    plain = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if plain and not column.null_count:
        return kind | {name: column.to_numpy(zero_copy_only=False)}
    return kind | {name: _objects(column.to_pylist())}


def _csv(path: Path) -> Items:
    separator = "\t" if ".tsv" in path.suffixes else ","
    table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    columns = {str(name): table[name].to_numpy(object) for name in table}
    return {"columns": _objects(list(columns))} | columns


def _hdf5(path: Path) -> Items:
    items: Items = {}

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        for key, value in node.attrs.items():
            items.update(_value(f"{name}@{key}", value))
        if isinstance(node, h5py.Dataset):
            text = h5py.check_string_dtype(node.dtype) is not None
            items.update(_value(name, node.asstr()[()] if text else node[()]))

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return items


def _arrays(path: Path) -> Items:
    loaded = np.load(path, allow_pickle=False)
    if path.suffix == ".npy":
        return {"array": loaded}
    with loaded:
        return {name: loaded[name] for name in loaded.files}


def _safetensors(path: Path) -> Items:
    from safetensors.numpy import load_file

    return load_file(path)


def _json(path: Path) -> Items:
    return _flat("", json.loads(path.read_text()))


def _json_lines(path: Path) -> Items:
    return _flat("", [json.loads(line) for line in path.read_text().splitlines()])


def _lines(path: Path) -> Items:
    return {"lines": _objects(path.read_text().splitlines())}


def _picture(path: Path) -> Items:
    return {"pixels": _pixels(path.read_bytes())}


def _pixels(content: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(content))


class _Page(HTMLParser):
    """Cells of tables (numbers exactly, as pages hold them for sorting) and pictures of a page."""

    def __init__(self):
        """Begins with an empty page."""
        super().__init__()
        self.cells: list[list[str]] = []
        self.pictures: list[np.ndarray] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Notes a table, the number of a cell, or a picture."""
        parts = dict(attributes)
        if tag == "table":
            self.cells.append([])
        elif tag in ("td", "th"):
            self._in_cell = "data-value" not in parts
            self.cells[-1].append(parts.get("data-value") or "")
        elif tag == "img":
            self.pictures.append(_pixels(base64.b64decode(parts["src"].partition(",")[2])))

    def handle_endtag(self, tag: str) -> None:
        """Ends a cell."""
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        """Adds to the text of a cell."""
        if self._in_cell:
            self.cells[-1][-1] += data


def _page(path: Path) -> Items:
    page = _Page()
    page.feed(path.read_text())
    tables = {f"table {i}": _objects(cells) for i, cells in enumerate(page.cells)}
    return tables | {f"picture {i}": pixels for i, pixels in enumerate(page.pictures)}


def _value(name: str, value: Any) -> Items:
    if isinstance(value, str):
        return _text(name, value)
    return {name: np.asarray(value)}


def _text(name: str, text: str) -> Items:
    """Text, taken apart if it is JSON."""
    try:
        return _flat(f"{name}.", json.loads(text)) if text[:1] in "{[" else {name: _objects([text])}
    except ValueError:
        return {name: _objects([text])}


def _flat(prefix: str, value: Any) -> Items:
    """Nested lists and dicts as dotted names; a list of plain values is one array."""
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        children = enumerate(value)
    else:
        return {prefix.rstrip("."): _objects(value if isinstance(value, list) else [value])}
    items: Items = {}
    for name, each in children:
        items |= _flat(f"{prefix}{name}.", each)
    return items


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    for index, value in enumerate(values):  # at once, numpy would make axes of tuples
        array[index] = value
    return array


READERS: dict[str, Callable[[Path], Items]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _csv,
    ".h5ad": _hdf5,
    ".h5": _hdf5,
    ".npy": _arrays,
    ".npz": _arrays,
    ".safetensors": _safetensors,
    ".json": _json,
    ".jsonl": _json_lines,
    ".txt": _lines,
    ".log": _lines,
    ".html": _page,
    ".png": _picture,
}
