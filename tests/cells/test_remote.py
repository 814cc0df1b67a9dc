"""Zarr stores behind URLs give the cells of the same stores on this machine."""

import shutil

import fsspec
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.open import CountFiles, expand_paths, open_counts
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import fingerprint
from tests.helpers.count_files import WRITERS, example_cells
from tests.helpers.object_store import KEY, serve_bucket

SLOW = pytest.mark.slow
STORES = ("v2.zarr", "v3.zarr", "several.zarr/mod/rna", "collection")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A folder of zarr stores: of both formats, in a MuData, and a collection of annbatch."""
    folder = tmp_path_factory.mktemp("stores")
    cells = example_cells(n_cells=20, n_genes=30)
    for version in (2, 3):
        WRITERS[f"zarr {version} csr"](cells, folder).rename(folder / f"v{version}.zarr")
    (folder / "collection").mkdir()
    for number in range(2):
        half = cells[10 * number :][:10]
        written = WRITERS["zarr 3 csr"](half, folder)
        written.rename(folder / "collection" / f"dataset_{number}")
    for name in ("rna", "prot"):
        shutil.copytree(folder / "v2.zarr", folder / "several.zarr/mod" / name)
    for group in ("several.zarr", "several.zarr/mod"):
        shutil.copy(folder / "v2.zarr/.zgroup", folder / group)
    shutil.copy(folder / "v3.zarr/zarr.json", folder / "collection")
    return folder


@pytest.fixture(scope="module")
def bucket(stores):
    with serve_bucket(stores) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
        yield "s3://bucket"


@pytest.fixture
def memory(stores):
    files = fsspec.filesystem("memory")
    files.put(f"{stores}/", "/stores/", recursive=True)
    yield "memory://stores"
    files.rm("/stores", recursive=True)


@pytest.fixture(params=["file", "memory"])
def place(request, stores):
    return f"file://{stores}" if request.param == "file" else request.getfixturevalue("memory")


def read(path):
    files = CountFiles(CountOptions())
    sources = [files.open(each) for each in expand_paths(str(path))]
    counts = [batch.counts.toarray() for source in sources for batch in source.batches()]
    return np.vstack(counts), pd.concat([source.obs() for source in sources])


def check_same(url, path):
    (counts, obs), (expected, table) = read(url), read(path)
    assert np.array_equal(counts, expected) and counts.sum() > 0
    pd.testing.assert_frame_equal(obs, table)


@pytest.mark.parametrize("name", STORES)
def test_the_same_cells(place, name, stores):
    check_same(f"{place}/{name}", stores / name)


@pytest.mark.parametrize(
    "name", ["v3.zarr", *(pytest.param(s, marks=SLOW) for s in STORES if s != "v3.zarr")]
)
def test_the_same_cells_from_s3(bucket, name, stores):
    check_same(f"{bucket}/{name}", stores / name)


def test_the_rna_of_a_mudata(place, stores):
    found, expected = open_counts(f"{place}/several.zarr"), open_counts(stores / "several.zarr")
    assert found.matrix_name == expected.matrix_name


def test_what_is_written_later_is_found(memory, stores):
    url = f"{memory}/late.zarr"
    with pytest.raises(InputError, match=r"late.zarr is no zarr store"):
        expand_paths(url)
    fsspec.filesystem("memory").put(f"{stores}/v3.zarr/", "/stores/late.zarr/", recursive=True)
    assert len(read(url)[1]) == 20


def test_a_collection_with_a_hole(memory):
    fsspec.filesystem("memory").mv(
        "/stores/collection/dataset_0", "/stores/collection/dataset_2", recursive=True
    )
    with pytest.raises(InputError, match="has a dataset_2, but no dataset_0"):
        expand_paths(f"{memory}/collection")


def test_a_damaged_store(memory):
    files = fsspec.filesystem("memory")
    files.pipe("/stores/v2.zarr/obs/.zattrs", b"{")
    with pytest.raises(InputError, match=r"memory://stores/v2.zarr cannot be read"):
        open_counts(f"{memory}/v2.zarr")


def test_named_in_the_provenance_by_its_url(bucket):
    (path,) = expand_paths(f"{bucket}/v3.zarr")
    assert fingerprint(path) == {"name": "v3.zarr", "url": f"{bucket}/v3.zarr"}


@pytest.mark.parametrize("name", ["s3://other/c.zarr", "s3://bucket/none.zarr"])
def test_nothing_there(bucket, name):
    with pytest.raises(InputError, match=f"{name} is no zarr store.*copy other counts here"):
        open_counts(name)


@SLOW
def test_nobody_answers(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(InputError, match=r"s3://bucket/c.zarr cannot be read.*AWS_ENDPOINT_URL"):
        open_counts("s3://bucket/c.zarr")


def test_no_library_for_such_urls():
    with pytest.raises(InputError, match=r"gs://a/b.zarr cannot be read: .*gcsfs"):
        open_counts("gs://a/b.zarr")


def test_lines_about_pieces_name_the_url(memory, tmp_path, vocabulary, caplog):
    url = f"{memory}/v3.zarr"
    chosen = TokenizerOptions(max_length=100)
    run = StoreBuild(tmp_path / "store", vocabulary, chosen, CountOptions(), [], piece_values=50)
    with caplog.at_level("INFO", "geneformer_jax"):
        run.survey(expand_paths(url))
    assert f"  {url}: 20 cells" in caplog.text
    with pytest.raises(InputError, match=rf"the first is rows 0 to \d+ of {url}; run"):
        run.finish({})
