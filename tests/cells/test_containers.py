"""AnnData under other names, in other containers, and with columns and values that are unusual."""

import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import expand_paths, open_counts
from geneformer_jax.common.errors import InputError
from tests.helpers.count_files import WRITERS, example_cells


@pytest.fixture(scope="module")
def adata():
    return example_cells(n_cells=11, n_genes=23)


@pytest.fixture(scope="module")
def h5ad(adata, tmp_path_factory):
    return WRITERS["h5ad csr gzip"](adata, tmp_path_factory.mktemp("cells"))


def read(source):
    return sparse.vstack([batch.counts for batch in source.batches()]).toarray()


def same(source, adata):
    return np.array_equal(read(source), adata.X.toarray())


@pytest.mark.parametrize(
    "name", ["CELLS.H5AD", "cells.h5", "cells.H5", "a, b.h5ad", "my cells.h5ad", "a,b,c,d.h5ad"]
)
@pytest.mark.parametrize("beside", ["", "other.h5ad,"])
def test_names_of_files(name, beside, adata, h5ad, tmp_path, monkeypatch):
    shutil.copy(h5ad, tmp_path / name)
    shutil.copy(h5ad, tmp_path / "other.h5ad")
    monkeypatch.chdir(tmp_path)
    paths = expand_paths(f"{beside}{name}")
    assert [path.name for path in paths] == [*beside.split(",")[:-1], name]
    assert same(open_counts(paths[-1]), adata)


def test_the_home_folder(adata, h5ad, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(h5ad, tmp_path / "cells.h5ad")
    assert expand_paths("~/cells.h5ad,~/*.h5ad") == [tmp_path / "cells.h5ad"]
    assert same(open_counts("~/cells.h5ad"), adata)


def mudata(path, h5ad, names):
    with h5py.File(path, "w") as root, h5py.File(h5ad) as single:
        root.attrs["encoding-type"] = "MuData"
        for name in names:
            single.copy("/", root.create_group("mod"), name) if "mod" not in root else single.copy(
                "/", root["mod"], name
            )
        single.copy("obs", root)
        single.copy("var", root)
    return path


@pytest.mark.parametrize("names", [["rna", "atac"], ["prot", "GEX"], ["whatever"]])
@pytest.mark.parametrize("suffix", ["h5mu", "h5"])
def test_modalities(names, suffix, adata, h5ad, tmp_path):
    source = open_counts(mudata(tmp_path / f"cells.{suffix}", h5ad, names))
    assert same(source, adata)
    assert list(source.obs(["donor"])["donor"]) == list(adata.obs["donor"])


def test_a_modality_that_cannot_be_told(h5ad, tmp_path):
    path = mudata(tmp_path / "cells.h5mu", h5ad, ["one", "two"])
    with pytest.raises(InputError, match=r'cells\.h5mu is MuData of "one", "two".*\.h5ad'):
        open_counts(path)


def test_tables_that_cannot_be_told(tmp_path):
    root = zarr.open_group(tmp_path / "spatial.zarr", mode="w")
    for name in ("a", "b"):
        root.create_group(f"tables/{name}")
    with pytest.raises(InputError, match=r'SpatialData of "a", "b".* give .*/tables/NAME'):
        open_counts(tmp_path / "spatial.zarr")


def test_a_table_of_another_version_of_the_format(adata, tmp_path):
    zarr.open_group(tmp_path / "spatial.zarr", mode="w", zarr_format=3).create_group("tables")
    with pytest.raises(InputError, match="SpatialData that holds nothing"):
        open_counts(tmp_path / "spatial.zarr")
    inner = WRITERS["zarr 2 csr"](adata, tmp_path)
    inner.rename(tmp_path / "spatial.zarr/tables/table")
    assert same(open_counts(tmp_path / "spatial.zarr"), adata)


def test_a_zip_of_something_else(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.txt").write_text("none")
    path = shutil.make_archive(tmp_path / "notes", "zip", tmp_path / "notes")
    with pytest.raises(InputError, match=r"notes\.zip is no count file"):
        open_counts(path)


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("kind", ["<f2", ">f2", ">f4", ">i4", ">i8", "<u8", ">u2", "?"])
def test_number_types(layout, kind, adata, h5ad, tmp_path):
    path = tmp_path / "cells.h5ad"
    expected = adata.X.toarray().astype(kind)
    shutil.copy(h5ad, path)
    whole = sparse.csc_matrix(adata.X) if layout == "csc" else adata.X
    with h5py.File(path, "r+") as root:
        del root["X"]
        if layout == "dense":
            root["X"] = expected
            root["X"].attrs["encoding-type"] = "array"
        else:
            group = root.create_group("X")
            group.attrs.update({"encoding-type": f"{layout}_matrix", "shape": adata.shape})
            group["data"] = whole.data.astype(kind)
            group["indices"] = whole.indices.astype(">i4")
            group["indptr"] = whole.indptr.astype(">i8")
    assert np.array_equal(read(open_counts(path)), expected.astype(int))


@pytest.mark.parametrize("kind", ["<f2", ">f4", ">i4"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_number_types_in_memory(kind, layout, adata):
    values = adata.X.toarray().astype(kind)
    if layout == "csr":
        values = sparse.csr_matrix((adata.X.data.astype(kind), adata.X.indices, adata.X.indptr))
        values.resize(adata.shape)
    source = AnnDataSource(anndata.AnnData(values, adata.obs, adata.var))
    assert same(source, adata)


@pytest.mark.parametrize("kind", ["h5ad csr", "loom contiguous"])
@pytest.mark.parametrize("numbers", [">f8", ">i4"])
def test_columns_in_another_order_of_bytes(kind, numbers, adata, tmp_path):
    path = WRITERS[kind](adata, tmp_path)
    expected = adata.obs["n_counts"].to_numpy(numbers)
    with h5py.File(path, "r+") as root:
        cells = root["col_attrs" if "loom" in kind else "obs"]
        attributes = dict(cells["n_counts"].attrs)
        del cells["n_counts"]
        cells["n_counts"] = expected
        cells["n_counts"].attrs.update(attributes)
    obs = open_counts(path).obs()
    assert obs["n_counts"].iloc[[3, 1]].tolist() == expected[[3, 1]].tolist()


def with_slashes(path):
    """obs and var with columns whose names hold a slash, as AnnData before 0.11 wrote them."""
    with h5py.File(path, "r+") as root:
        for table, length in (("obs", 11), ("var", 23)):
            root[table]["cell/type"] = np.arange(length)
            root[table]["cell/type"].attrs["encoding-type"] = "array"
            order = [*root[table].attrs["column-order"], "cell/type"]
            root[table].attrs["column-order"] = np.array(order, h5py.string_dtype())


def test_columns_with_a_slash(adata, h5ad, tmp_path):
    path = tmp_path / "cells.h5ad"
    shutil.copy(h5ad, path)
    with_slashes(path)
    source = open_counts(path)
    assert same(source, adata)
    assert list(source.obs()) == [*adata.obs.columns, "cell/type"]
    assert list(source.obs(["cell/type"])["cell/type"]) == list(range(11))
    assert list(open_counts(path, CountOptions(gene_column="cell/type")).gene_ids)[:2] == ["0", "1"]


def test_columns_whose_names_are_no_texts(adata):
    odd = adata.copy()
    odd.obs = odd.obs.rename(columns={"donor": 3, "cell_type": ("a", 1)})
    odd.var = odd.var.rename(columns={"ensembl_id": 0})
    source = AnnDataSource(odd, CountOptions(gene_column="0"))
    assert list(source.gene_ids) == list(adata.var["ensembl_id"])
    assert list(source.obs(["3"])["3"]) == list(adata.obs["donor"])
    assert same(source, adata)


@pytest.mark.parametrize("place", ["file", "memory"])
def test_features_of_anndata_that_are_no_genes(place, adata, tmp_path):
    mixed = adata.copy()
    mixed.var["feature_types"] = pd.Categorical(["Gene Expression"] * 20 + ["Antibody Capture"] * 3)
    mixed.write_h5ad(tmp_path / "cells.h5ad")
    file = place == "file"
    source = open_counts(tmp_path / "cells.h5ad") if file else AnnDataSource(mixed)
    assert np.array_equal(read(source), adata.X.toarray()[:, :20])
    assert list(source.gene_ids) == list(adata.var["ensembl_id"][:20])
    assert list(source.symbols) == list(adata.var["gene_symbol"][:20])


def test_an_array_for_a_table_names_the_file(h5ad, tmp_path):
    path = Path(tmp_path / "cells.h5ad")
    shutil.copy(h5ad, path)
    with h5py.File(path, "r+") as root:
        del root["obs"]
        root["obs"] = np.arange(11)
    with pytest.raises(InputError, match=r"cells\.h5ad.*write it again"):
        open_counts(path)


@pytest.fixture
def sharded(adata, tmp_path):
    """A store whose arrays are packed in shards, as AnnData from 0.13 on writes them."""
    path = WRITERS["zarr 3 csr"](adata, tmp_path)
    group = zarr.open_group(path, mode="r+")["X"]
    for name in ("data", "indices"):
        values = group[name][:]
        del group[name]
        group.create_array(name, data=values, chunks=(10,), shards=(50,))
    return path


def test_shards(adata, sharded):
    assert same(open_counts(sharded), adata)


def test_a_shard_that_is_missing(sharded):
    shards = sorted((sharded / "X/indices/c").iterdir())
    assert len(shards) > 1
    shards[-1].unlink()
    with pytest.raises(InputError, match="chunks of indices are missing"):
        open_counts(sharded)
