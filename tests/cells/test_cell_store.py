"""The cell store: written whole or not at all, read by TFDS and by itself alike."""

import errno
import os
import pickle
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds

from geneformer_jax.cells.store import cell_store
from geneformer_jax.cells.store import writer as store_writer
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.obs_columns import common_kind, kind_of
from geneformer_jax.cells.store.records import ByteRows, decode_tokens, encode_records
from geneformer_jax.cells.store.writer import begin_store, join_sources, store_order, write_source
from geneformer_jax.cells.tokenization.rank_encoding import RankEncodings
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError

OPTIONS = {"max_length": 300}
KINDS = {"cell type/x": "text", "donor": "int", "age": "float", "healthy": "bool"}
VOCABULARY = GeneVocabulary(np.array([f"G{n:03d}" for n in range(400)]), ["?"] * 400, np.ones(400))


def some_cells(seed, n_cells, name):
    """Tokens, ids and labels of made-up cells; lengths from 1 to 300."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(2, 402, rng.integers(1, 301)).astype(np.uint16) for _ in range(n_cells)]
    ages = np.where(rng.random(n_cells) < 0.3, np.nan, rng.normal(size=n_cells))
    obs = pd.DataFrame(
        {
            "cell type/x": pd.Categorical(rng.choice(["B", "Tö", None], n_cells)),
            "donor": rng.integers(-5, 2**40, n_cells),
            "age": ages,
            "healthy": rng.random(n_cells) < 0.5,
        },
        index=[f"{name}-{n}" for n in range(n_cells)],
    )
    return rows, obs


def write_cells(folder, key, rows, obs, shard_bytes=store_writer.SHARD_BYTES, batch=16):
    with write_source(folder, key, KINDS, shard_bytes) as writer:
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            offsets = np.cumsum([0, *map(len, part)])
            labels = obs.iloc[start : start + batch]
            encodings = RankEncodings(np.concatenate(part), offsets)
            writer.write(encodings, labels.index.to_numpy(), labels)
        writer.finish({"path": f"{key}.h5ad", "cells_in_file": len(rows), "dropped": {}})


def build(folder, sources, shard_bytes=store_writer.SHARD_BYTES):
    """A complete store of {key: (rows, obs)}."""
    begin_store(folder, OPTIONS, KINDS)
    for key, (rows, obs) in sources.items():
        write_cells(folder, key, rows, obs, shard_bytes)
    join_sources(folder, store_order(folder, list(sources)), VOCABULARY, {"command": "test"})
    return CellStore.open(folder)


@pytest.fixture
def sources():
    return {"a": some_cells(1, 70, "a"), "none": ([], some_cells(1, 1, "x")[1][:0]),
            "b": some_cells(2, 33, "b")}  # fmt: skip


@pytest.fixture
def store(tmp_path, sources):
    return build(tmp_path / "store", sources, shard_bytes=4000)


def all_cells(sources):
    rows = [row for rows, _ in sources.values() for row in rows]
    return rows, pd.concat([obs for _, obs in sources.values() if len(obs)])


def test_reading_gives_what_was_written(store, sources):
    rows, obs = all_cells(sources)
    assert len(store) == 103 and store.max_length == 300
    assert store.lengths.dtype == np.int32
    assert store.lengths.tolist() == [len(row) for row in rows]
    for read, row in zip(store.read(range(103)), rows, strict=True):
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read, row)
    picked = [102, 0, 5, 5, 71]
    for read, index in zip(store.read(picked), picked, strict=True):
        np.testing.assert_array_equal(read, rows[index])
    assert store.read([]) == []
    assert store.cell_ids.tolist() == obs.index.tolist() == store.obs.index.tolist()
    assert store.obs["cell type/x"].tolist() == obs["cell type/x"].tolist()
    for column in ("donor", "age", "healthy"):
        np.testing.assert_array_equal(store.obs[column], obs[column])
        assert store.obs[column].dtype == obs[column].dtype
    assert isinstance(store.obs["cell type/x"].dtype, pd.CategoricalDtype)
    assert store.vocabulary.hash == VOCABULARY.hash


def test_a_folder_may_have_any_name(tmp_path, sources):
    store = build(tmp_path / "cells [0:9]\nof {all}", sources)
    for read, row in zip(store.read(range(103)), all_cells(sources)[0], strict=True):
        np.testing.assert_array_equal(read, row)


def test_tfds_reads_every_cell(store, sources):
    rows, obs = all_cells(sources)
    source = tfds.builder_from_directory(store.folder).as_data_source("train")
    assert len(source) == len(rows) == len(list(source))
    for index, example in enumerate(source):
        labels = obs.iloc[index]
        np.testing.assert_array_equal(example["tokens"], rows[index])
        assert example["tokens"].dtype == np.uint16
        assert example["cell_id"].decode() == obs.index[index]
        kept = labels["cell type/x"]
        assert example["cell type/x"].decode() == ("" if pd.isna(kept) else kept)
        for column in ("donor", "age", "healthy"):
            np.testing.assert_array_equal(example[column], labels[column])
    assert "tensorflow" not in sys.modules


def test_shards_are_bounded_and_belong_to_one_source(store):
    assert len(store.shards) > 3
    assert sum(shard.cells for shard in store.shards) == len(store)
    # A shard ends with the record that passes the limit; ArrayRecord adds blocks of 64 KiB.
    assert all(shard.bytes < 4000 + 1000 + 3 * 65_536 for shard in store.shards)
    files = [shard.source for shard in store.shards]
    assert files == sorted(files) and set(files) == {"a.h5ad", "b.h5ad"}


@pytest.mark.parametrize("index", [-1, 103])
def test_a_cell_that_is_not_there_is_refused(store, index):
    with pytest.raises(InputError, match=f"cell {index} is not among these 103 cells"):
        store.read([0, index])


def test_a_pickled_store_is_small_and_reads_the_same(store):
    store.read([3])
    content = pickle.dumps(store)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).read([3])[0], store.read([3])[0])


def test_records_of_any_size_are_decoded():
    lengths = np.array([0, 1, 63, 64, 127, 128, 8191, 8192, 65_000])
    rows = [np.arange(length, dtype=np.uint16) for length in lengths]
    tokens = ByteRows.of_tokens(np.concatenate(rows), np.concatenate([[0], np.cumsum(lengths)]))
    other = ByteRows(np.full(300 * 9, 120, np.uint8), np.arange(10) * 300)
    numbers = ByteRows.of_numbers(np.arange(9.0))
    for features in (
        {"tokens": tokens},
        {"a": other, "tokens": tokens, "b": numbers},
    ):
        for record, row in zip(encode_records(features), rows, strict=True):
            np.testing.assert_array_equal(decode_tokens(record), row)
    with pytest.raises(ValueError, match="no feature"):
        decode_tokens(encode_records({"token": other})[0])


def test_verify_finds_changed_and_missing_shards(store):
    assert len(list(store.verify())) == len(store.shards)
    path = store.shards[1].path
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(InputError, match=f"{path.name}.*not as it was written"):
        list(store.verify())
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="bytes in place of"):
        list(store.verify())
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        list(store.verify())


def test_later_sources_never_move_earlier_ones(store, sources):
    before = {path: path.stat().st_mtime_ns for path in store.folder.glob("cells-*")}
    more = some_cells(3, 20, "c")
    again = build(store.folder, {"0-sorts-first": more})
    assert {path: path.stat().st_mtime_ns for path in before} == before
    rows, obs = all_cells({**sources, "c": more})
    assert again.cell_ids.tolist() == obs.index.tolist()
    for read, row in zip(again.read(range(123)), rows, strict=True):
        np.testing.assert_array_equal(read, row)
    assert len(tfds.builder_from_directory(store.folder).as_data_source("train")) == 123
    assert len(list(again.verify())) == len(again.shards)


def test_a_store_is_no_store_until_it_is_joined(tmp_path, sources):
    folder = tmp_path / "store"
    with pytest.raises(InputError, match="is no folder"):
        CellStore.open(folder)
    begin_store(folder, OPTIONS, KINDS)
    write_cells(folder, "a", *sources["a"])
    with pytest.raises(InputError, match="not complete"):
        CellStore.open(folder)
    with pytest.raises(InputError, match="is no cell store"):
        CellStore.open(tmp_path)


class StoppedError(Exception):
    """Stands for a kill."""


def stop_at(monkeypatch, number):
    """Lets only the first `number` renames and removals happen."""
    done = 0
    originals = {name: getattr(os, name) for name in ("replace", "unlink")}

    def limited(name):
        def call(*arguments, **options):
            nonlocal done
            if done == number:
                raise StoppedError
            done += 1
            return originals[name](*arguments, **options)

        return call

    for name in originals:
        monkeypatch.setattr(os, name, limited(name))


@pytest.mark.parametrize("complete_before", [pytest.param(False, marks=pytest.mark.slow), True])
def test_joining_can_be_stopped_anywhere(tmp_path, monkeypatch, sources, complete_before):
    """Whatever step is the last, the folder is no store or a whole one, and joining goes on."""
    start = tmp_path / "start"
    if complete_before:
        build(start, {"first": some_cells(9, 15, "first")}, shard_bytes=4000)
    begin_store(start, OPTIONS, KINDS)
    for key, (rows, obs) in sources.items():
        write_cells(start, key, rows, obs, shard_bytes=4000)
    keys = store_order(start, list(sources))
    earlier = 15 if complete_before else 0
    stops, finished = 0, False
    while not finished:
        folder = tmp_path / f"store-{stops}"
        shutil.copytree(start, folder)
        with monkeypatch.context() as patch:
            stop_at(patch, stops)
            try:
                join_sources(folder, keys, VOCABULARY, {"command": "test"})
                finished = True
            except StoppedError:
                stops += 1
        if (folder / cell_store.DATASET_INFO).exists():
            half = CellStore.open(folder)
            assert len(half) == len(half.obs) == len(half.lengths)
            assert len(list(half.verify())) == len(half.shards)
        join_sources(folder, store_order(folder, keys), VOCABULARY, {"command": "test"})
        store = CellStore.open(folder)
        assert len(store) == len(store.obs) == len(store.lengths) == 103 + earlier
        assert len(list(store.verify())) == len(store.shards)
        for read, row in zip(
            store.read(range(earlier, 103 + earlier)), all_cells(sources)[0], strict=True
        ):
            np.testing.assert_array_equal(read, row)
    assert stops > 5


class FullDisk:
    """An ArrayRecord writer on a full disk, with the message of the real one."""

    def __init__(self, when):
        self._when, self._calls = when, 0

    def __call__(self, path, options):
        with open(path, "wb") as file:
            file.write(b"half a shard")
        return self

    def write(self, record):
        self._calls += 1
        if self._calls == self._when:
            raise RuntimeError("write() failed: No space left on device; writing x; at byte 65536")

    def close(self):
        raise RuntimeError("write() failed: No space left on device; Failed to close chunk_writer")


@pytest.mark.parametrize("when", [1, 20, 10_000])
def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, monkeypatch, sources, when):
    folder = tmp_path / "store"
    begin_store(folder, OPTIONS, KINDS)
    with monkeypatch.context() as patch:
        patch.setattr(store_writer, "ArrayRecordWriter", FullDisk(when))
        with pytest.raises(OSError, match="No space left") as raised:
            write_cells(folder, "a", *sources["a"])
    assert raised.value.errno == errno.ENOSPC
    assert store_writer.finished_sources(folder) == set()
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [cell_store.STORE]
    with pytest.raises(InputError, match="not complete"):
        CellStore.open(folder)
    assert len(build(folder, sources)) == 103


def test_lost_records_are_noticed(tmp_path, monkeypatch, sources):
    class Forgetful(store_writer.ArrayRecordReader):
        def num_records(self):
            return super().num_records() - 1

    begin_store(tmp_path / "store", OPTIONS, KINDS)
    monkeypatch.setattr(store_writer, "ArrayRecordReader", Forgetful)
    with pytest.raises(OSError, match="69 of 70 cells arrived"):
        write_cells(tmp_path / "store", "a", *sources["a"])
    assert store_writer.finished_sources(tmp_path / "store") == set()


def test_repeated_ids_are_refused_when_joining(tmp_path, sources):
    rows, obs = sources["a"]
    renamed = obs.rename(index={"a-7": "b-3"})
    with pytest.raises(InputError, match='"b-3" is in a\\.h5ad and in b\\.h5ad'):
        build(tmp_path / "store", {"a": (rows, renamed), "b": sources["b"]})
    with pytest.raises(InputError, match="not complete"):
        CellStore.open(tmp_path / "store")


def test_a_store_without_cells_is_refused(tmp_path, sources):
    with pytest.raises(InputError, match="no cell is left"):
        build(tmp_path / "store", {"none": sources["none"]})


def test_other_options_and_other_folders_are_refused(store, tmp_path):
    begin_store(store.folder, OPTIONS, KINDS)
    with pytest.raises(InputError, match="max_length=300, but now it is 200"):
        begin_store(store.folder, {"max_length": 200}, KINDS)
    with pytest.raises(InputError, match='"donor" as int, but these files have text'):
        begin_store(store.folder, OPTIONS, {**KINDS, "donor": "text"})
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("mine")
    with pytest.raises(InputError, match="already holds other files"):
        begin_store(tmp_path / "else", OPTIONS, KINDS)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pd.Series([1, 2], dtype=np.int16), "int"),
        (pd.Series([1, None], dtype="Int64"), "float"),
        (pd.Series([1.5, np.nan], dtype=np.float32), "float"),
        (pd.Series([True, False]), "bool"),
        (pd.Series([True, None], dtype="boolean"), "text"),
        (pd.Series(["a", None]), "text"),
        (pd.Series(["a", "b"], dtype="category"), "text"),
        (pd.Series([1, 2], dtype="category"), "text"),
    ],
)
def test_kinds(values, kind):
    assert kind_of(values) == kind


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        (["int", "int"], "int"),
        (["int", "float"], "float"),
        (["bool", "bool"], "bool"),
        (["bool", "int"], "text"),
        (["text", "float"], "text"),
    ],
)
def test_common_kinds(kinds, common):
    assert common_kind(kinds) == common
