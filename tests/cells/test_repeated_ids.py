"""Cell ids that occur twice are named, in bounded memory and whatever the hashes are."""

import numpy as np
import pytest

from geneformer_jax.cells.counts.options import ReadLimits
from geneformer_jax.cells.store import repeated_ids
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.repeated_ids import RepeatedIds
from geneformer_jax.common.errors import InputError
from tests.helpers.small_stores import build, cells, write


def by_first_letter(ids):
    """A weak hash: many different ids share one, and all of its bits are used."""
    return np.array([ord(each[0]) * 0x123456789ABCDEF for each in ids], np.uint64)


WEAK = {"hash_of": by_first_letter, "suspects_at_once": 2}


@pytest.fixture(
    params=[
        pytest.param({}, id="in memory"),
        pytest.param({"in_memory": 10}, id="on disk"),
        pytest.param(WEAK, id="a weak hash"),
        pytest.param({"in_memory": 10, **WEAK}, id="a weak hash on disk"),
    ]
)
def way(request):
    """Arguments of RepeatedIds."""
    return request.param


def names(letters, count):
    return [f"{letters[n % len(letters)]}-{n}" for n in range(count)]


def parts(ids, size=7):
    ids = np.array(ids, dtype=np.dtypes.StringDType())
    return lambda: (ids[first : first + size] for first in range(0, len(ids), size))


def check(way, **files):
    found = RepeatedIds(**way)
    for name, ids in files.items():
        found.add(name, parts(ids))
    found.check()


def test_distinct_ids_pass(way):
    check(way, one=names("ABCDEFGH", 100), other=names("abcABC", 60), third=names("xyz", 31))


def test_an_id_twice_in_one_file(way):
    ids = names("ABCDEFGH", 100)
    with pytest.raises(InputError, match='the cell id "C-42" is twice in other, but'):
        check(way, one=names("XYZ", 50), other=[*ids, ids[42]])


def test_an_id_in_two_files(way):
    ids = names("ABCDEFGH", 100)
    with pytest.raises(InputError, match='the cell id "D-3" is in one and in third, but'):
        check(way, one=ids, other=names("XYZ", 50), third=[*names("pqr", 40), ids[3]])


def test_a_file_that_failed_while_it_was_read_does_not_count(way):
    def broken():
        yield np.array(names("ABC", 9), dtype=np.dtypes.StringDType())
        raise InputError("damaged")

    found = RepeatedIds(**way)
    with pytest.raises(InputError, match="damaged"):
        found.add("broken", broken)
    found.add("whole", parts(names("ABC", 9)))
    found.check()


def test_a_full_disk_is_named(monkeypatch):
    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(repeated_ids.tempfile, "TemporaryFile", Full)
    with pytest.raises(InputError, match="TMPDIR"):
        check({"in_memory": 10}, one=names("ABC", 30))


# In whole stores, whose ids and columns are then read in many small blocks


SMALL = ReadLimits(rows=5)


def test_an_id_twice_in_a_store_of_small_blocks(tmp_path, vocabulary):
    adata = cells(name="ab")
    adata.obs_names = [*adata.obs_names[:-1], "ab7"]
    path = write(adata, tmp_path / "x.h5ad")
    with pytest.raises(InputError, match=r'the cell id "ab7" is twice in \S*x\.h5ad'):
        build(tmp_path / "store", [path], vocabulary, limits=SMALL)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("stored", [False, True])
def test_an_id_in_two_files_of_small_blocks(tmp_path, vocabulary, stored):
    first, second = cells(1, "ab"), cells(2, "ac")
    second.obs_names = ["ac", *second.obs_names[1:-1], "ab11"]
    paths = [write(first, tmp_path / "x.h5ad"), write(second, tmp_path / "y.h5ad")]
    if stored:
        build(tmp_path / "store", paths[:1], vocabulary, limits=SMALL)
    with pytest.raises(InputError, match=r'"ab11" is in .* and in '):
        build(tmp_path / "store", paths[1:] if stored else paths, vocabulary, limits=SMALL)
    if stored:
        assert "ab11" in CellStore.open(tmp_path / "store").cell_ids
