"""Writing a cell store: each source by itself, then all joined into one TFDS dataset.

While a store grows, every source has a folder of its own under `sources/`, renamed to its final
name when it is whole. Joining moves the shards up and writes what lies beside them. Shards are
numbered in the order in which their sources joined, so that a later source never moves an earlier
one.
"""

import contextlib
import errno
import functools
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store.join import GrowingArray, join_tables, write_dataset_info
from geneformer_jax.cells.store.layout import shard_name
from geneformer_jax.cells.store.obs_columns import (
    CELL_ID,
    MISSING,
    arrow_schema,
    as_bytes,
    as_kind,
    common_kind,
    stored_name,
)
from geneformer_jax.cells.store.records import TOKENS, ByteRows, encode_records
from geneformer_jax.cells.store.repeated_ids import RepeatedIds
from geneformer_jax.cells.tokenization.rank_encoding import RankEncodings
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import (
    atomic_write,
    checksum,
    fsync_tree,
    fsync_tree_entry,
    is_aside,
    remove,
    require_new_folder,
    writing,
)
from geneformer_jax.common.provenance import write_provenance
from geneformer_jax.common.workdir import claim_folder

SHARD_BYTES = 1 << 28
_ROWS_PER_GROUP = 1 << 16
_OPTIONS = "group_size:1,uncompressed"
_ASIDE = "joined.partial"
_BAD = ".skipped.json"
# What a source that is whole says of itself at least.
_TOLD = ("path", "cells", "shards")


class SourceWriter:
    """Writes the cells of one source into a folder of their own; see `write_source`."""

    def __init__(
        self, folder: Path, obs_kinds: Mapping[str, str], shard_bytes: int, disk: Executor
    ):
        self._folder, self._kinds, self._shard_bytes = folder, dict(obs_kinds), shard_bytes
        self._disk = disk
        self._flushed: list[Future[None]] = []
        self._shards: list[dict[str, Any]] = []
        self._writer: ArrayRecordWriter | None = None
        self._in_shard = self._bytes_in_shard = 0
        self.cells = 0
        self._lengths = GrowingArray(folder / layout.LENGTHS, np.int32)
        # None from the first cells on of which the number of genes is not known.
        self._genes: GrowingArray | None = GrowingArray(folder / layout.N_GENES, np.int32)
        self._tables: list[pa.RecordBatch] = []
        self._schema = arrow_schema(self._kinds)
        obs = folder / layout.OBS
        self._obs = pq.ParquetWriter(obs, self._schema, write_page_checksum=True)

    def write(self, encodings: RankEncodings, cell_ids: np.ndarray, obs: pd.DataFrame) -> None:
        """Adds cells: their tokens, ids and per-cell columns (one row per cell, in order)."""
        kinds = {CELL_ID: "text"}
        columns = {CELL_ID: np.asarray(cell_ids, dtype=object)}
        for name, kind in self._kinds.items():
            stored = stored_name(name)
            kinds[stored], columns[stored] = kind, as_kind(obs[name], kind)
        table = pa.record_batch(columns, schema=self._schema)
        self._tables.append(table)
        if sum(map(len, self._tables)) >= _ROWS_PER_GROUP:
            self._write_tables()
        features = {TOKENS: ByteRows.of_tokens(encodings.tokens, encodings.offsets)}
        features |= {name: as_bytes(table[name], kind) for name, kind in kinds.items()}
        self._write_records(encode_records(features))
        self.cells += len(table)
        self._lengths.append(encodings.lengths)
        self._add_genes(encodings.genes)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Closes the files and writes `summary` with the numbers of cells and shards."""
        self._close_shard()
        self._write_tables()
        self._obs.close()
        self._lengths.close()
        if self._genes is not None:
            self._genes.close()
        summary = {**summary, "cells": self.cells, "shards": self._shards}
        summary[layout.COUNTS_GENES] = self._genes is not None
        (self._folder / layout.SOURCE).write_text(_as_json(summary))
        for flushed in self._flushed:
            # The system reports a failure only once.
            flushed.result()

    def abandon(self) -> None:
        """Closes the files of a source that could not be written."""
        self._lengths.abandon()
        if self._genes is not None:
            self._genes.abandon()
        with contextlib.suppress(OSError, pa.ArrowException):
            self._obs.close()

    def _add_genes(self, genes: np.ndarray | None) -> None:
        if self._genes is None:
            return
        if genes is not None:
            self._genes.append(genes)
            return
        self._genes.close()
        self._genes = None
        (self._folder / layout.N_GENES).unlink()

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
        self._writer.close()
        written = ArrayRecordReader(str(path)).num_records()
        if written != self._in_shard:
            raise OSError(errno.EIO, f"{written} of {self._in_shard} cells arrived", str(path))
        # On its way to the disk while it is hashed and further cells are encoded.
        self._flushed.append(self._disk.submit(fsync_tree, path))
        size = path.stat().st_size
        shard = {"cells": self._in_shard, "bytes": size, "sha256": checksum(path)}
        self._shards.append(shard)
        self._writer, self._in_shard, self._bytes_in_shard = None, 0, 0


@contextlib.contextmanager
def write_source(
    store: Path, key: str, obs_kinds: Mapping[str, str], shard_bytes: int = SHARD_BYTES
) -> Iterator[SourceWriter]:
    """Yields a writer for one source; its folder appears when the block ends without an error.

    The block must call the writer's `finish`.
    """
    with atomic_write(store / layout.SOURCES / key) as aside, ThreadPoolExecutor(1) as disk:
        aside.mkdir()
        writer = SourceWriter(aside, obs_kinds, shard_bytes, disk)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise


def check_folder(folder: Path, options: Mapping[str, Any]) -> None:
    """Checks that a store made with these options may grow in `folder`.

    Raises:
      InputError: the folder holds something else, or a store made with other options.
    """
    if not (folder / layout.STORE).is_file():
        require_new_folder(folder)
        return
    known, options = layout.description_of(folder)["options"], json.loads(json.dumps(options))
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
      kinds: obs column -> kind.

    Raises:
      InputError: as `check_folder`, or the store keeps a column in a kind that cannot hold `kinds`.
    """
    check_folder(folder, options)
    if (folder / layout.STORE).is_file():
        for name, known in layout.obs_kinds(folder).items():
            if common_kind((known, kinds[name])) != known:
                raise InputError(
                    f'{folder} keeps the obs column "{name}" as {known}, but these files have '
                    f"{kinds[name]}; make the columns alike or build a new store of all files"
                )
        return
    kinds = {name: "text" if kind == MISSING else kind for name, kind in kinds.items()}
    claim_folder(
        folder,
        {"options": options},
        file=layout.STORE,
        elsewhere="name a new folder",
        settings={"obs": kinds},
    )


def tidy(folder: Path) -> None:
    """Removes from a complete store what a process left that was killed as soon as it was whole."""
    remove(folder / _ASIDE)


def drop_if_nothing_in_it(folder: Path) -> None:
    """Removes a store that was begun but holds no whole source."""
    if not finished_sources(folder):
        remove(folder)


def is_finished(folder: Path, key: str) -> bool:
    """Whether a source, or a piece of one, is whole in a growing or complete store."""
    return (folder / layout.SOURCES / key / layout.SOURCE).is_file()


def finished_sources(folder: Path) -> set[str]:
    """Keys of the sources of a growing or complete store that are whole."""
    folders = {path.parent for path in (folder / layout.SOURCES).glob(f"*/{layout.SOURCE}")}
    return {each.name for each in folders if not is_aside(each)}


def source_summary(folder: Path, key: str) -> dict[str, Any]:
    """Returns what `SourceWriter.finish` wrote about a source."""
    return layout.read_note(folder / layout.SOURCES / key / layout.SOURCE, dict, _TOLD)


def stored_cell_ids(folder: Path, key: str) -> Iterator[np.ndarray]:
    """Yields the ids of a finished source's cells, a bounded number at a time."""
    with pq.ParquetFile(folder / layout.SOURCES / key / layout.OBS) as table:
        for batch in table.iter_batches(columns=[CELL_ID]):
            yield batch[0].to_numpy(zero_copy_only=False)


def note_bad_source(folder: Path, key: str, reason: str) -> None:
    """Records why a source was skipped, for the process that joins the store."""
    (folder / layout.SOURCES).mkdir(exist_ok=True)
    with atomic_write(folder / layout.SOURCES / f"{key}{_BAD}") as aside:
        aside.write_text(_as_json(reason))


def bad_sources(folder: Path) -> dict[str, str]:
    """Key -> reason of the sources that were skipped while they were read, and are not whole."""
    notes = (folder / layout.SOURCES).glob(f"*{_BAD}")
    reasons = {path.name.removesuffix(_BAD): layout.read_note(path, str) for path in notes}
    return {key: reasons[key] for key in reasons if not is_finished(folder, key)}


def drop_source(folder: Path, key: str) -> None:
    """Removes a source that is whole but not joined, and what was recorded of a skipped one."""
    remove(folder / layout.SOURCES / key)
    remove(folder / layout.SOURCES / f"{key}{_BAD}")


def joined_sources(folder: Path) -> list[str]:
    """Keys of the sources that have been joined, in store order."""
    path = folder / layout.SOURCES / layout.ORDER
    return layout.read_note(path, list) if path.is_file() else []


def store_order(folder: Path, keys: list[str]) -> list[str]:
    """Puts the sources that have been joined first, in their order, and these keys behind them."""
    joined = joined_sources(folder)
    return joined + [key for key in keys if key not in joined]


def join_sources(
    folder: Path, order: list[str], vocabulary: GeneVocabulary, provenance: Mapping[str, Any]
) -> None:
    """Makes one dataset of finished sources, in `store_order`, and completes the store.

    May be killed at any moment and called again.

    Raises:
      InputError: the sources hold no cell, or the same cell id twice.
    """
    _check_distinct_ids(folder, order)
    shards = [shard for key in order for shard in source_summary(folder, key)["shards"]]
    if not shards:
        raise InputError("no cell is left to store; see the counts of dropped cells above")
    aside = folder / _ASIDE
    remove(aside)
    with contextlib.ExitStack() as stack:
        stack.callback(remove, aside)
        stack.enter_context(writing(folder))
        aside.mkdir()
        (aside / layout.ORDER).write_text(_as_json(order))
        join_tables([folder / layout.SOURCES / key for key in order], aside)
        if not (folder / layout.VOCABULARY).exists():
            vocabulary.write_into(aside / layout.VOCABULARY)
        write_provenance(aside, provenance)
        write_dataset_info(folder, shards, layout.obs_kinds(folder), aside)
        # All files at once, which takes a fraction of the time of one by one.
        fsync_tree(aside)
        _put_in_place(folder, order, aside)


def _put_in_place(folder: Path, order: list[str], aside: Path) -> None:
    """Moves up the shards and all that was written; dataset_info.json, the last, makes it whole."""
    # From here until dataset_info.json is back the folder is a store in the making.
    (folder / layout.DATASET_INFO).unlink(missing_ok=True)
    os.replace(aside / layout.ORDER, folder / layout.SOURCES / layout.ORDER)
    _move_shards(folder, order)
    for path in sorted(aside.iterdir()):
        if path.name != layout.DATASET_INFO:
            os.replace(path, folder / path.name)
    fsync_tree_entry(folder)
    (folder / layout.LOCK).unlink(missing_ok=True)
    remove(folder / layout.SHARES)
    os.replace(aside / layout.DATASET_INFO, folder / layout.DATASET_INFO)
    fsync_tree_entry(folder)


def _move_shards(folder: Path, order: list[str]) -> None:
    index = 0
    for key in order:
        for number, _ in enumerate(source_summary(folder, key)["shards"]):
            target = folder / shard_name(index)
            try:
                os.replace(folder / layout.SOURCES / key / shard_name(number), target)
            except FileNotFoundError:
                # One that was killed here had moved it. Asking before the move whether it is there
                # could miss what another machine wrote a moment ago.
                if not target.is_file():
                    raise
            index += 1


def _check_distinct_ids(folder: Path, order: list[str]) -> None:
    ids = RepeatedIds()
    for key in order:
        read = functools.partial(stored_cell_ids, folder, key)
        ids.add(source_summary(folder, key)["path"], read)
    ids.check()


def _as_json(content: object) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"
