"""Folders of `datasets.save_to_disk`, read and written with that library (the extra `datasets`).

Its releases since 2.14 can load what is written here, whichever of them is installed.
"""

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from geneformer_jax.common.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

SHARD_BYTES = 500_000_000
_STATE_FILE = "state.json"
_INFO_FILE = "dataset_info.json"
_SPLITS_FILE = "dataset_dict.json"
# Arrow streams end with an empty message. Without this check a stream that was cut between two
# messages reads as a shorter, whole one.
_END_OF_STREAM = bytes(4)


def is_dataset_folder(path: Path) -> bool:
    """Whether `path` is a folder of `datasets.save_to_disk`, whole or of several splits."""
    return (path / _STATE_FILE).is_file() or (path / _SPLITS_FILE).is_file()


def open_dataset_folder(folder: Path) -> "Dataset":
    """Opens a dataset; its rows stay on disk until they are read.

    Raises:
      InputError: the library is not installed, the folder holds no dataset or several, or is
        damaged or cut off.
    """
    if not (folder / _STATE_FILE).is_file():
        splits = [path.name for path in folder.iterdir() if (path / _STATE_FILE).is_file()]
        if splits:
            raise InputError(f"{folder} holds the splits {', '.join(sorted(splits))}; name one")
        raise InputError(
            f"{folder} is no dataset (it has no {_STATE_FILE}); name a .dataset folder"
        )
    library = _import_datasets()
    try:
        dataset = library.Dataset.load_from_disk(str(folder), keep_in_memory=False)
        # Releases before 2.0 saved a selection as indices, which later ones do not read.
        is_selection = bool(_read_json(folder / _STATE_FILE).get("_indices_data_files"))
    # What it raises for files that are missing, damaged or newer than itself is not documented.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise InputError(
            f"{folder} is damaged, not whole, or newer than datasets {library.__version__} reads "
            f"({reason}); get the whole dataset, or update datasets"
        ) from error
    if is_selection:
        raise InputError(f"{folder} holds no rows of its own; save the dataset again")
    for file in dataset.cache_files:
        _check_end(Path(file["filename"]))
    return dataset


def iterate_record_batches(
    dataset: "Dataset", columns: list[str], rows: int
) -> Iterator[pa.RecordBatch]:
    """Yields some columns of all rows in order, at most `rows` at a time.

    Every batch is checked, so that damaged files raise pyarrow's errors and nothing else.
    """
    for table in dataset.select_columns(columns).with_format("arrow").iter(rows):
        table.validate(full=True)
        yield from table.combine_chunks().to_batches()


def write_dataset_folder(
    folder: Path,
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    cells: int,
    tokens_bytes: int,
    description: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes rows as `datasets.save_to_disk` does; memory holds one batch.

    The library's own writer of rows describes list columns in the words of its release, which older
    releases refuse. Here rows are written without a description, which all infer from the types,
    and the library writes the files beside them.

    Args:
      folder: a new folder.
      batches: all rows, in order.
      schema: of the batches.
      cells: number of rows, at least one.
      tokens_bytes: size of the largest column, from which the number of shards follows.
      description: what the library keeps as the description of the data set.
      shard_bytes: about how large a shard may become.

    Raises:
      InputError: the library is not installed.
    """
    library = _import_datasets()
    folder.mkdir()
    shards = min(cells, tokens_bytes // shard_bytes + 1)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    rows, digest = _RowQueue(batches), hashlib.sha256()
    for shard, name in enumerate(names):
        first, last = cells * shard // shards, cells * (shard + 1) // shards
        with pa.ipc.new_stream(str(folder / name), schema) as stream:
            for batch in rows.take(last - first):
                stream.write_batch(batch)
                digest.update(batch.serialize())
    # The library names its cached results by it: datasets with other rows need another one.
    fingerprint = digest.hexdigest()[:16]
    state, info = _describe(library, schema.empty_table(), fingerprint)
    _write_json(folder / _STATE_FILE, state | {"_data_files": [{"filename": n} for n in names]})
    _write_json(folder / _INFO_FILE, info | {"description": description, "features": None})


def _describe(
    library: ModuleType, table: pa.Table, fingerprint: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what the library writes beside the rows of a dataset: its state and its info."""
    dataset = library.Dataset(library.table.InMemoryTable(table), fingerprint=fingerprint)
    # It shows a bar for these no rows, and the way to hide it differs between its releases.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        dataset.save_to_disk(folder, num_shards=1)
        return _read_json(Path(folder, _STATE_FILE)), _read_json(Path(folder, _INFO_FILE))


class _RowQueue:
    """Returns rows of batches in numbers that do not follow the batches' borders."""

    def __init__(self, batches: Iterable[pa.RecordBatch]):
        self._batches = iter(batches)
        self._rest: pa.RecordBatch | None = None

    def take(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows:
            batch = self._rest if self._rest is not None else next(self._batches)
            yield batch.slice(0, rows)
            self._rest = batch.slice(rows) if batch.num_rows > rows else None
            rows -= min(rows, batch.num_rows)


def _import_datasets() -> ModuleType:
    # Nothing here is looked up on the hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            'a .dataset folder needs the library datasets: pip install "geneformer_jax[datasets]"; '
            "a .parquet file needs nothing more"
        ) from error
    return datasets


def _check_end(file: Path) -> None:
    with file.open("rb") as content:
        content.seek(max(file.stat().st_size - len(_END_OF_STREAM), 0))
        if content.read() != _END_OF_STREAM:
            raise InputError(f"{file} is cut off (it has no end mark); get the whole file")


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
