"""Writing a cell store: each source by itself, then all joined into one TFDS dataset.

While a store grows, every source has a folder of its own under `sources/`, written aside and
renamed when it is whole. Joining moves the shards up and writes what lies beside them. Shards are
numbered in the order in which their sources joined, so that a later source never moves an earlier
one.
"""

import contextlib
import errno
import io
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from geneformer_jax.cells import cell_store
from geneformer_jax.cells.carried_columns import (
    CELL_ID,
    arrow_schema,
    as_bytes,
    as_kind,
    common_kind,
    tfds_features,
)
from geneformer_jax.cells.cell_store import checksum, shard_name
from geneformer_jax.cells.rank_encoding import RankEncodings
from geneformer_jax.cells.records import TOKENS, ByteRows, encode_records
from geneformer_jax.cells.repeated_ids import hash_ids, refuse_repeated_ids
from geneformer_jax.cells.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import (
    fsync_tree,
    fsync_tree_entry,
    remove,
    require_new_folder,
    write_aside,
)
from geneformer_jax.common.provenance import write_provenance

SHARD_BYTES = 1 << 28
_ROWS_PER_GROUP = 1 << 16
_OPTIONS = "group_size:1,uncompressed"
_ORDER = "order.json"
_VERSION = "1.0.0"
_BAD = ".skipped.json"
_SYSTEM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


class SourceWriter:
    """Writes the cells of one source into a folder of their own; see `write_source`."""

    def __init__(self, folder: Path, obs_kinds: Mapping[str, str], shard_bytes: int):
        self._folder, self._kinds, self._shard_bytes = folder, dict(obs_kinds), shard_bytes
        self._shards: list[dict[str, Any]] = []
        self._writer: ArrayRecordWriter | None = None
        self._in_shard = self._bytes_in_shard = 0
        self._lengths: list[np.ndarray] = []
        self._genes: list[np.ndarray | None] = []
        self._tables: list[pa.RecordBatch] = []
        self._schema = arrow_schema(self._kinds)
        self._obs = pq.ParquetWriter(folder / cell_store.OBS, self._schema)

    @property
    def cells(self) -> int:
        """Number of cells written so far."""
        return sum(len(each) for each in self._lengths)

    def write(self, encodings: RankEncodings, cell_ids: np.ndarray, obs: pd.DataFrame) -> None:
        """Adds cells: their tokens, ids and per-cell columns (one row per cell, in order)."""
        kinds = {CELL_ID: "text", **self._kinds}
        columns = {CELL_ID: np.asarray(cell_ids, dtype=object)}
        columns |= {name: as_kind(obs[name], kind) for name, kind in self._kinds.items()}
        table = pa.record_batch(columns, schema=self._schema)
        self._tables.append(table)
        if sum(map(len, self._tables)) >= _ROWS_PER_GROUP:
            self._write_tables()
        features = {TOKENS: ByteRows.of_tokens(encodings.tokens, encodings.offsets)}
        features |= {name: as_bytes(table[name], kind) for name, kind in kinds.items()}
        with _system_errors(self._folder):
            self._write_records(encode_records(features))
        self._lengths.append(encodings.lengths)
        self._genes.append(encodings.genes)

    def finish(self, story: Mapping[str, Any]) -> None:
        """Closes the files and writes down what they hold."""
        self._close_shard()
        self._write_tables()
        self._obs.close()
        lengths = np.concatenate([np.empty(0, np.int32), *self._lengths])
        _save_array(self._folder / cell_store.LENGTHS, lengths)
        if all(each is not None for each in self._genes):
            genes = np.concatenate([np.empty(0, np.int32), *self._genes])
            _save_array(self._folder / cell_store.N_GENES, genes)
        story = {**story, "cells": len(lengths), "shards": self._shards}
        (self._folder / cell_store.SOURCE).write_text(_as_json(story))

    def _write_tables(self) -> None:
        self._obs.write_table(pa.Table.from_batches(self._tables, self._schema))
        self._tables.clear()

    def _write_records(self, records: list[bytes]) -> None:
        ends = np.cumsum([len(record) for record in records])
        start = written = 0
        while start < len(records):
            if self._writer is None:
                path = self._folder / shard_name(len(self._shards))
                self._writer = ArrayRecordWriter(str(path), _OPTIONS)
            # Up to the record with which the shard is full.
            room = self._shard_bytes - self._bytes_in_shard
            stop = min(int(np.searchsorted(ends, written + room)) + 1, len(records))
            for record in records[start:stop]:
                self._writer.write(record)
            self._in_shard += stop - start
            self._bytes_in_shard += int(ends[stop - 1]) - written
            start, written = stop, int(ends[stop - 1])
            if self._bytes_in_shard >= self._shard_bytes:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        path = self._folder / shard_name(len(self._shards))
        with _system_errors(self._folder):
            self._writer.close()
            written = ArrayRecordReader(str(path)).num_records()
        if written != self._in_shard:
            raise OSError(errno.EIO, f"{written} of {self._in_shard} cells arrived", str(path))
        size = path.stat().st_size
        shard = {"cells": self._in_shard, "bytes": size, "sha256": checksum(path)}
        self._shards.append(shard)
        self._writer, self._in_shard, self._bytes_in_shard = None, 0, 0


@contextlib.contextmanager
def _system_errors(folder: Path) -> Iterator[None]:
    """Gives what the ArrayRecord library says in text the form of a system error."""
    try:
        yield
    except RuntimeError as error:
        for number in _SYSTEM_ERRORS:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(folder)) from error
        raise


@contextlib.contextmanager
def write_source(
    store: Path, key: str, obs_kinds: Mapping[str, str], shard_bytes: int = SHARD_BYTES
) -> Iterator[SourceWriter]:
    """Yields a writer for one source; its folder appears when the block ends without an error.

    The block must call the writer's `finish`.
    """
    with write_aside(store / cell_store.SOURCES / key) as aside:
        aside.mkdir()
        yield SourceWriter(aside, obs_kinds, shard_bytes)


def check_folder(folder: Path, options: Mapping[str, Any]) -> None:
    """Checks that a store made with these options may grow in `folder`.

    Raises:
      InputError: the folder holds something else, or a store made with other options.
    """
    if not (folder / cell_store.STORE).is_file():
        require_new_folder(folder)
        return
    known, options = _description(folder)["options"], json.loads(json.dumps(options))
    for name in {**known, **options}:
        if known.get(name) != options.get(name):
            raise InputError(
                f"{folder} holds a cell store made with {name}={known.get(name)}, but now it is "
                f"{options.get(name)}; use the same options or name a new folder"
            )


def begin_store(folder: Path, options: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Makes `folder` a growing store, or goes on with the one that is there.

    Args:
      folder: see `check_folder`.
      options: what two runs over one store must have in common.
      kinds: carried column -> kind.

    Raises:
      InputError: as `check_folder`, or the store keeps a column in a kind that cannot hold `kinds`.
    """
    check_folder(folder, options)
    if (folder / cell_store.STORE).is_file():
        for name, known in obs_kinds(folder).items():
            if common_kind((known, kinds[name])) != known:
                raise InputError(
                    f'{folder} keeps the obs column "{name}" as {known}, but these files have '
                    f"{kinds[name]}; make the columns alike or build a new store of all files"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / cell_store.STORE, {"options": options, "obs": kinds})


def drop_if_nothing_in_it(folder: Path) -> None:
    """Removes a store that was begun but holds no whole source."""
    if not finished_sources(folder):
        remove(folder)


def finished_sources(folder: Path) -> set[str]:
    """Keys of the sources of a growing or complete store that are whole."""
    folders = {path.parent for path in (folder / cell_store.SOURCES).glob(f"*/{cell_store.SOURCE}")}
    return {each.name for each in folders if each.suffix != ".partial"}


def obs_kinds(folder: Path) -> dict[str, str]:
    """The carried columns of a growing or complete store and their kinds."""
    return _description(folder)["obs"]


def _description(folder: Path) -> dict[str, Any]:
    return json.loads((folder / cell_store.STORE).read_text())


def source_story(folder: Path, key: str) -> dict[str, Any]:
    """What `SourceWriter.finish` wrote down about a source."""
    return json.loads((folder / cell_store.SOURCES / key / cell_store.SOURCE).read_text())


def stored_cell_ids(folder: Path, key: str) -> np.ndarray:
    """The ids of a finished source's cells, [cells] str."""
    return cell_store.read_cell_ids(folder / cell_store.SOURCES / key / cell_store.OBS)


def stored_id_hashes(folder: Path, key: str) -> np.ndarray:
    """`hash_ids` of a finished source's cells, read a bounded number at a time."""
    with pq.ParquetFile(folder / cell_store.SOURCES / key / cell_store.OBS) as table:
        batches = table.iter_batches(columns=[CELL_ID])
        hashes = [hash_ids(batch[0].to_numpy(zero_copy_only=False)) for batch in batches]
    return np.concatenate([np.empty(0, np.uint64), *hashes])


def note_bad_source(folder: Path, key: str, reason: str) -> None:
    """Writes down why a source was skipped, for the process that joins the store."""
    (folder / cell_store.SOURCES).mkdir(exist_ok=True)
    _write_json(folder / cell_store.SOURCES / f"{key}{_BAD}", reason)


def bad_sources(folder: Path) -> dict[str, str]:
    """Key -> reason of the sources that were skipped while they were read."""
    notes = (folder / cell_store.SOURCES).glob(f"*{_BAD}")
    return {path.name.removesuffix(_BAD): json.loads(path.read_text()) for path in notes}


def joined_sources(folder: Path) -> list[str]:
    """Keys of the sources that have been joined, in store order."""
    path = folder / cell_store.SOURCES / _ORDER
    return json.loads(path.read_text()) if path.is_file() else []


def store_order(folder: Path, keys: list[str]) -> list[str]:
    """Puts the sources that have been joined first, in their order, and these keys behind them."""
    joined = joined_sources(folder)
    return joined + [key for key in keys if key not in joined]


def join_sources(
    folder: Path, order: list[str], vocabulary: GeneVocabulary, story: Mapping[str, Any]
) -> None:
    """Makes one dataset of finished sources, in `store_order`, and completes the store.

    May be killed at any moment and called again.

    Raises:
      InputError: the sources hold no cell, or the same cell id twice.
    """
    _refuse_repeated_ids(folder, order)
    shards = [shard for key in order for shard in source_story(folder, key)["shards"]]
    if not shards:
        raise InputError("no cell is left to store; see the counts of dropped cells above")
    # From here until dataset_info.json is back the folder is a store in the making.
    (folder / cell_store.DATASET_INFO).unlink(missing_ok=True)
    _write_json(folder / cell_store.SOURCES / _ORDER, order)
    _move_shards(folder, order)
    _join_tables(folder, order)
    if not (folder / cell_store.VOCABULARY).exists():
        vocabulary.save(folder / cell_store.VOCABULARY)
    write_provenance(folder, story)
    _write_dataset_info(folder, shards)


def _move_shards(folder: Path, order: list[str]) -> None:
    index = 0
    for key in order:
        for number, _ in enumerate(source_story(folder, key)["shards"]):
            apart = folder / cell_store.SOURCES / key / shard_name(number)
            if apart.exists():
                os.replace(apart, folder / shard_name(index))
            index += 1
    fsync_tree_entry(folder)


def _join_tables(folder: Path, order: list[str]) -> None:
    sources = [folder / cell_store.SOURCES / key for key in order]
    for name in (cell_store.LENGTHS, cell_store.N_GENES):
        if all((each / name).is_file() for each in sources):
            with write_aside(folder / name) as aside:
                _save_array(aside, np.concatenate([np.load(each / name) for each in sources]))
    with write_aside(folder / cell_store.OBS) as aside:
        schema = pq.read_schema(sources[0] / cell_store.OBS)
        with pq.ParquetWriter(aside, schema) as table:
            for each in sources:
                for batch in pq.ParquetFile(each / cell_store.OBS).iter_batches():
                    table.write_batch(batch)


def _write_dataset_info(folder: Path, shards: list[dict[str, Any]]) -> None:
    kinds = obs_kinds(folder)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template=cell_store.FILE_NAMES,
        dataset_name=cell_store.DATASET,
        split=cell_store.SPLIT,
        filetype_suffix="array_record",
    )
    split = tfds.core.SplitInfo(
        name=cell_store.SPLIT,
        shard_lengths=[shard["cells"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
        filename_template=template,
    )
    # Written apart first: dataset_info.json must appear whole, and as the last of all files.
    apart = folder / "tfds.partial"
    remove(apart)
    apart.mkdir()
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=cell_store.DATASET,
        version=tfds.core.Version(_VERSION),
        data_dir=str(folder),
        module_name="",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds_features(kinds))
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(apart)
    fsync_tree(apart)
    for path in sorted(apart.iterdir(), key=lambda path: path.name == cell_store.DATASET_INFO):
        os.replace(path, folder / path.name)
    apart.rmdir()
    fsync_tree_entry(folder)


def _refuse_repeated_ids(folder: Path, order: list[str]) -> None:
    names = [source_story(folder, key)["path"] for key in order]
    hashes = [stored_id_hashes(folder, key) for key in order]
    refuse_repeated_ids(hashes, names, lambda number: stored_cell_ids(folder, order[number]))


def _save_array(path: Path, array: np.ndarray) -> None:
    # numpy's own way to a file does not say that the disk is full.
    content = io.BytesIO()
    np.save(content, array)
    path.write_bytes(content.getbuffer())


def _as_json(content: object) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


def _write_json(path: Path, content: object) -> None:
    # A name of its own for every writer: several processes may begin the same store.
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        aside.write_text(_as_json(content))
        fsync_tree(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
