"""How a list of files, folders and globs is expanded."""

import os
import shutil
from pathlib import Path

import pytest

from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.formats.paths import expand_paths, is_counts
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import fingerprint, state_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty stand-ins, created in an order that is not sorted, in the working folder."""
    for name in ("c.h5ad", "a.h5ad", "b.loom", "d.h5", "notes.txt", ".hidden.h5ad", "deep/e.h5ad"):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for store, mark in [
        ("v2.zarr", ".zgroup"),
        ("v3.zarr", "zarr.json"),
        ("v3.zarr/X", "zarr.json"),
    ]:
        (tmp_path / "data" / store).mkdir()
        (tmp_path / "data" / store / mark).touch()
    for sample, matrix in [("s2", "matrix.mtx.gz"), ("s1", "matrix.mtx")]:
        (tmp_path / "data" / sample).mkdir()
        (tmp_path / "data" / sample / matrix).touch()
    (tmp_path / "geo").mkdir()
    for prefix in ("GSM2_", "GSM1_"):
        (tmp_path / "geo" / f"{prefix}matrix.mtx.gz").touch()
        (tmp_path / "geo" / f"{prefix}barcodes.tsv.gz").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expand(paths):
    return [str(path) for path in expand_paths(paths)]


DATA = [
    f"data/{n}" for n in ("a.h5ad", "b.loom", "c.h5ad", "d.h5", "s1", "s2", "v2.zarr", "v3.zarr")
]
GEO = ["geo/GSM1_matrix.mtx.gz", "geo/GSM2_matrix.mtx.gz"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("data/c.h5ad", ["data/c.h5ad"]),
        ("data/c.h5ad, data/a.h5ad", ["data/c.h5ad", "data/a.h5ad"]),
        ("data", DATA),
        ("data/*", DATA),
        ("data/*.h5ad", ["data/a.h5ad", "data/c.h5ad"]),
        ("data/**/*.h5ad", ["data/a.h5ad", "data/c.h5ad", "data/deep/e.h5ad"]),
        ("data/**", [*DATA[:4], "data/deep/e.h5ad", *DATA[4:]]),
        ("data/d*", ["data/d.h5"]),
        ("data/deep*", ["data/deep/e.h5ad"]),
        ("data/v3.zarr", ["data/v3.zarr"]),
        ("data/s1,data/s?", ["data/s1", "data/s2"]),
        ("data/c.h5ad,data/*.h5ad,./data/c.h5ad", ["data/c.h5ad", "data/a.h5ad"]),
        ("geo", GEO),
        ("geo/*.mtx.gz", ["geo/GSM1_matrix.mtx.gz", "geo/GSM2_matrix.mtx.gz"]),
        ("data/s1/matrix.mtx", ["data/s1/matrix.mtx"]),
        ("data/s1/*.mtx,data/v3.zarr/*", ["data/s1", "data/v3.zarr"]),
        ("data/{c,a}.h5ad,data/d.h5", ["data/c.h5ad", "data/a.h5ad", "data/d.h5"]),
        ("{data/{b.loom, s1},geo}", ["data/b.loom", "data/s1", *GEO]),
        ("data/{s1,v3.zarr,d*}", ["data/s1", "data/v3.zarr", "data/d.h5"]),
    ],
)
def test_paths(paths, expected, folder):
    assert expand(paths) == expected


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ("", "no path"),
        (" , ", "no path"),
        ("data/x.h5ad", "data/x.h5ad does not exist"),
        ("data/{a,x}.h5ad", "data/x.h5ad does not exist"),
        ("data/{a.h5ad,data/d.h5", "data/{a.h5ad does not exist"),
        ("data/c.h5da", 'did you mean "c.h5ad"'),
        ("data/*.txt", "matches 1 paths, but no counts"),
        ("data/*.zip", "matches 0 paths"),
        ("empty", "holds no counts"),
        ("data,nowhere/*", "nowhere/*"),
        ("soma://data", "data is no TileDB-SOMA; give the folder of an experiment"),
        ("soma://data/c.h5ad", "data/c.h5ad is no TileDB-SOMA"),
        ("data,soma://nowhere", "nowhere does not exist; give the folder of an experiment"),
        ("s3://bucket/c.h5ad", "is no zarr store: from afar only those are read"),
        ("data,memory://c.zarr", "memory://c.zarr is no zarr store"),
        ("nowhere://c.zarr", "nowhere://c.zarr cannot be read: Protocol not known"),
    ],
)
def test_nothing_found_is_told(paths, words, folder):
    (folder / "empty").mkdir()
    with pytest.raises(InputError) as error:
        expand_paths(paths)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def collection(folder):
    """A collection of 11 stores as annbatch lays them out."""
    for name in ("", *(f"dataset_{n}" for n in (10, *range(10))), "dataset_2/obs"):
        (folder / "data/all.zarr" / name).mkdir(exist_ok=True)
        (folder / "data/all.zarr" / name / "zarr.json").touch()
    return folder / "data/all.zarr"


ALL = [f"data/all.zarr/dataset_{n}" for n in range(11)]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("data/all.zarr", ALL),
        ("data/*.zarr", [*ALL, *DATA[-2:]]),
        ("data/all.zarr/dataset_3, data/all.zarr", [ALL[3], *ALL[:3], *ALL[4:]]),
        ("data/all.zarr/dataset_1*", [ALL[1], ALL[10]]),
        ("data/all.zarr/dataset_2/*", [ALL[2]]),
        ("data", [*DATA[:1], *ALL, *DATA[1:]]),
    ],
)
def test_a_collection_is_its_stores_sorted_by_number(paths, expected, collection):
    assert expand(paths) == expected


def test_a_collection_with_a_hole(collection):
    shutil.rmtree(collection / "dataset_4")
    with pytest.raises(InputError, match="has a dataset_10, but no dataset_4: copy it again"):
        expand("data/all.zarr")
    assert expand(f"{ALL[3]},{ALL[5]}") == [ALL[3], ALL[5]]


def test_a_collection_where_one_source_is_needed(collection):
    with pytest.raises(InputError, match=r"11 data sets.* name one, as data/all.zarr/dataset_0"):
        open_counts("data/all.zarr")


@pytest.mark.parametrize("url", ["s3://bucket/deep/cells", "gs://bucket/cells", "azure://a/b"])
def test_urls_of_object_stores(url, folder):
    (path,) = expand_paths(f"soma://{url}")
    assert is_counts(path)
    assert fingerprint(path) == {"name": path.name, "url": url}
    assert expand_paths(f"data/c.h5ad,soma://{url}") == [Path("data/c.h5ad"), path]


def test_braces_in_a_name_are_part_of_it(folder):
    shutil.copy("data/a.h5ad", "data/{a,b}.h5ad")
    assert expand("data/{a,b}.h5ad") == ["data/{a,b}.h5ad"]


def test_links_to_the_same_file_count_once(folder):
    os.symlink(folder / "data" / "a.h5ad", folder / "data" / "link.h5ad")
    assert expand("data/a.h5ad,data/link.h5ad") == ["data/a.h5ad"]


def test_a_file_named_as_what_it_is_not(folder):
    with pytest.raises(InputError, match=r"notes\.txt is no count file"):
        open_counts("data/notes.txt")
    with pytest.raises(InputError, match="does not exist"):
        open_counts(Path("data/none.h5ad"))
    with pytest.raises(InputError, match="no count file"):
        open_counts("data")
    with pytest.raises(InputError, match="holds 2 matrices"):
        open_counts("geo")


def test_who_works_in_a_folder_with_matrix_market_files_changes_no_counts(tmp_path):
    for name in ("matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"):
        (tmp_path / name).write_text(name)
    before = fingerprint(tmp_path), state_of(tmp_path)
    assert before[0]["files"] == 3
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "obs.parquet").touch()
    (tmp_path / "embeddings.h5ad").touch()
    assert (fingerprint(tmp_path), state_of(tmp_path)) == before
    (tmp_path / "barcodes.tsv.gz").write_text("others")
    assert fingerprint(tmp_path) != before[0] and state_of(tmp_path) != before[1]
