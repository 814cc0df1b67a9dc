"""A store with a damaged file gives right cells or one line that names the file and the remedy."""

import json
import shutil

import numpy as np
import pytest
from array_record.python import array_record_module

from geneformer_jax.batches.loader import read_padded
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.store_exchange import store_to_dataset
from tests.helpers.toy import make_store, toy_cells, toy_vocabulary


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_store(
        tmp_path_factory.mktemp("whole") / "store", toy_cells(30), toy_vocabulary(), obs=("kind",)
    )


@pytest.fixture
def copy(whole, tmp_path):
    """The folder of a store that may be damaged."""
    return shutil.copytree(whole.folder, tmp_path / "store")


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))


def read_all(folder):
    store = CellStore.open(folder)
    cells = store.read(np.arange(len(store)))
    return [cell.tolist() for cell in cells], store.lengths.tolist(), store.obs


@pytest.mark.parametrize("kept", [-1, 65_536, 100, 0])
def test_a_cut_shard_is_named_at_opening(copy, kept):
    path = copy / "cells-train.array_record-00000"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        InputError, match=rf"{path} \(cells of .*store.h5ad\) has .*restore"
    ) as told:
        CellStore.open(copy)
    assert "\n" not in str(told.value)


def test_a_shard_of_another_number_of_cells_is_refused(copy, tmp_path):
    # A whole file of like size: the size alone does not tell.
    other = make_store(tmp_path / "other", toy_cells(20), toy_vocabulary())
    assert other.shards[0].bytes == CellStore(copy).shards[0].bytes
    shutil.copy(other.shards[0].path, copy / other.shards[0].path.name)
    with pytest.raises(InputError, match="has 20 cells in place of 30; restore it"):
        CellStore.open(copy)


def test_a_file_that_the_library_opens_as_empty_is_refused(copy, monkeypatch):
    class EmptyReader(array_record_module.ArrayRecordReader):
        def num_records(self):
            return 0

    monkeypatch.setattr(array_record_module, "ArrayRecordReader", EmptyReader)
    with pytest.raises(InputError, match="has 0 cells in place of 30"):
        CellStore.open(copy)


def test_flipped_bits_of_a_shard_are_found_where_they_are_read(whole, copy):
    expected, path = read_all(whole.folder)[0], copy / "cells-train.array_record-00000"
    size, rng, refused = path.stat().st_size, np.random.default_rng(0), 0
    content = np.frombuffer(path.read_bytes(), np.uint8)
    # Most of the file is padding; what matters lies where bytes are not zero.
    for place in rng.choice(np.flatnonzero(content), 60, replace=False):
        flip(path, place, bit := int(rng.integers(8)))
        try:
            assert read_all(copy)[0] == expected
        except InputError as error:
            refused += 1
            assert str(path) in str(error) and "restore it" in str(error)
        flip(path, place, bit)
    assert refused > 20 and path.stat().st_size == size
    assert read_all(copy)[0] == expected


@pytest.mark.parametrize(
    "name",
    [
        "lengths.npy",
        "n_genes.npy",
        "checksums.json",
        "obs.parquet",
        "store.json",
        "sources/order.json",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_other_files_are_named_too(copy, name, damage):
    path = copy / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
        # Stores of earlier versions have no checksums.
        if name == "checksums.json":
            return
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    with pytest.raises(InputError, match=path.name) as told:
        store = CellStore.open(copy)
        store.read([0])
        assert store.n_genes is not None and len(store.obs) == len(store)
    assert "\n" not in str(told.value)


def test_flipped_bits_of_lengths_and_columns_are_found(whole, copy):
    cells, lengths, obs = read_all(whole.folder)
    for name in ("lengths.npy", "obs.parquet"):
        path = copy / name
        for place in range(5, path.stat().st_size, path.stat().st_size // 40):
            flip(path, place)
            try:
                found = read_all(copy)
                assert found[:2] == (cells, lengths) and found[2].equals(obs)
            except InputError as error:
                assert name in str(error)
            flip(path, place)


def test_the_table_of_another_store_is_refused(copy, tmp_path):
    """As many cells, and each of its pages as it was written."""
    other = make_store(tmp_path / "other", toy_cells(30, seed=1), toy_vocabulary(), obs=("kind",))
    shutil.copy(other.folder / "obs.parquet", copy)
    for read in ("obs", "cell_ids"):
        with pytest.raises(InputError, match=r"obs.parquet is .*not as checksums.json states"):
            getattr(CellStore.open(copy), read)
    with pytest.raises(InputError, match=r"obs.parquet is .*not as checksums.json states"):
        list(CellStore.open(copy).obs_batches(10))


@pytest.mark.parametrize("value", ["30", [30], 30.5, None])
def test_shards_that_are_described_otherwise_are_refused(copy, value):
    (path,) = copy.glob("sources/*/source.json")
    described = json.loads(path.read_text())
    described["shards"][0]["cells"] = value
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"source.json is missing or damaged .*; restore it"):
        CellStore.open(copy)


def test_a_folder_in_the_place_of_a_description_is_refused(copy):
    (path,) = copy.glob("sources/*/source.json")
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"source.json is missing or damaged .*; restore it"):
        CellStore.open(copy)


@pytest.mark.parametrize("name", ["x" * 300, "x", "order.json"])
def test_a_source_that_cannot_be_there_is_refused(copy, name):
    (copy / "sources" / "order.json").write_text(json.dumps([name]))
    with pytest.raises(InputError, match=r"source.json is missing or damaged .*; restore it"):
        CellStore.open(copy)


@pytest.mark.parametrize("stated", [{}, {"options": {}}, [], {"options": {"max_length": "9"}}])
def test_a_description_that_says_nothing_is_refused(copy, stated):
    (copy / "store.json").write_text(json.dumps(stated))
    with pytest.raises(InputError, match=r"store.json is damaged .*restore it from a copy"):
        CellStore.open(copy)


@pytest.mark.parametrize("name", ["lengths", "n_genes"])
def test_a_flipped_bit_of_numbers_is_told_before_they_are_used(whole, copy, name):
    path, expected = copy / f"{name}.npy", getattr(whole, name)
    for place in (-1, -9, -120):
        flip(path, place, bit=3)
        with pytest.raises(InputError, match=rf"^{path} is .*damaged.*checksums.json.*restore"):
            getattr(CellStore.open(copy), name)
        flip(path, place, bit=3)
    np.testing.assert_array_equal(getattr(CellStore.open(copy), name), expected)


def test_a_store_without_checksums_opens(whole, copy):
    (copy / "checksums.json").unlink()
    assert read_all(copy)[:2] == read_all(whole.folder)[:2]
    np.testing.assert_array_equal(CellStore(copy).n_genes, whole.n_genes)


def test_batches_and_exports_tell_of_it(copy, tmp_path):
    path = copy / "cells-train.array_record-00000"
    content = np.frombuffer(path.read_bytes(), np.uint8)
    flip(path, np.flatnonzero(content)[-2000])
    store = CellStore.open(copy)
    with pytest.raises(InputError, match=f"{path.name}.*is damaged"):
        read_padded(store, np.arange(30), 256)
    with pytest.raises(InputError, match=f"{path.name}.*is damaged"):
        store_to_dataset(copy, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
