"""Files that other software itself wrote, of made-up reads or counts; see tests/fixtures."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.open import expand_paths, open_counts
from geneformer_jax.cells.tokenization.gene_ids import strip_version
from geneformer_jax.common.errors import InputError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TRUTH = pd.read_csv(FIXTURES / "truth.csv", index_col=0)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The folder with all files, the archive unpacked."""
    folder = tmp_path_factory.mktemp("fixtures") / "files"
    shutil.copytree(FIXTURES, folder)
    with tarfile.open(FIXTURES / "containers.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def counts_of(path, **options):
    """Cells x genes as a table, by cell id and gene id without version."""
    source = open_counts(path, CountOptions(**options))
    (batch,) = source.batches()
    genes = [strip_version(gene) for gene in source.gene_ids]
    cells = [cell.removesuffix("-1") for cell in source.cell_ids]
    return pd.DataFrame(batch.counts.toarray(), cells, genes)


def same_counts(read, expected):
    """Whether two tables agree, and what only one has is zero."""
    rows, columns = read.index.union(expected.index), read.columns.union(expected.columns)
    one, other = (t.reindex(rows, columns=columns, fill_value=0) for t in (read, expected))
    return len(read) >= len(expected) and one.to_numpy().tolist() == other.to_numpy().tolist()


def plain(folder, name, cells, genes, genes_first):
    """The same by SciPy and plain text."""
    matrix = scipy.io.mmread(folder / f"{name}.mtx", spmatrix=False).toarray()
    ids = (folder / genes).read_text().split("\n")[:-1]
    barcodes = (folder / cells).read_text().split()
    ids = [line.split("\t")[0].partition(".")[0] for line in ids]
    return pd.DataFrame(matrix.T if genes_first else matrix, barcodes, ids)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("starsolo/Gene/raw", {}),
        ("starsolo/Gene/filtered", {}),
        ("kb", {}),
        ("kb/cells_x_genes.mtx", {}),
        ("kb/cellranger", {}),
        ("kb/adata.h5ad", {}),
        ("kb/adata.loom", {}),
        ("scipy_unsigned", {}),
        ("anndata_2.zarr", {}),
        ("anndata_3.zarr", {}),
        ("anndata_0.6.h5ad", {}),
        ("anndata_0.6_raw.h5ad", {}),
        ("anndata_0.6_raw.h5ad", {"counts_layer": "raw"}),
        ("scanpy.h5ad", {}),
        ("loompy.loom", {}),
        ("cellbender_2.h5", {}),
        ("cellbender_3.h5", {}),
        ("mudata.h5mu", {}),
        ("mudata.zarr", {}),
        ("mudata.zarr/mod/rna", {}),
        ("spatialdata.zarr", {}),
        ("spatialdata.zarr/tables/table", {}),
    ],
)
def test_counts_are_the_molecules_that_were_made(path, options, written):
    assert same_counts(counts_of(written / path, **options), TRUTH)


@pytest.mark.parametrize(
    ("path", "matrix"),
    [
        ("mudata.h5mu", "mod/rna/X"),
        ("mudata.zarr", "mod/rna/X"),
        ("mudata.zarr/mod/rna", "X"),
        ("spatialdata.zarr", "tables/table/X"),
        ("anndata_3.zarr", "X"),
    ],
)
def test_which_matrix_of_a_container_is_read_is_named(path, matrix, written):
    assert open_counts(written / path).matrix_name == matrix


def test_a_collection_of_annbatch_holds_each_cell_once(written):
    stores = expand_paths(str(written / "annbatch.zarr"))
    assert [path.name for path in stores] == ["dataset_0", "dataset_1", "dataset_2"]
    assert same_counts(pd.concat(map(counts_of, stores)), TRUTH)
    donors = pd.concat(open_counts(path).obs(["donor"]) for path in stores)["donor"]
    assert donors.loc[TRUTH.index].tolist() == ["a", "b"] * 4


def test_zstandard_is_read_where_hdf5plugin_is_there(written):
    pytest.importorskip("hdf5plugin")
    assert same_counts(counts_of(written / "hdf5plugin_zstd.h5ad"), TRUTH)


def test_a_filter_that_is_not_there_is_named(written, monkeypatch):
    monkeypatch.setattr("h5py.h5z.filter_avail", lambda code: code < 256)
    with pytest.raises(InputError, match=r"Zstandard.*pip install hdf5plugin"):
        open_counts(written / "hdf5plugin_zstd.h5ad")


@pytest.mark.parametrize("zipped", ["inside", "with its folder"])
@pytest.mark.parametrize("store", ["anndata_2", "anndata_3", "mudata"])
def test_zipped_stores(store, zipped, written, tmp_path):
    inside = {"root_dir": written / f"{store}.zarr"}
    whole = {"root_dir": written, "base_dir": f"{store}.zarr"}
    where = inside if zipped == "inside" else whole
    path = shutil.make_archive(tmp_path / f"{store}.zarr", "zip", **where)
    assert same_counts(counts_of(path), TRUTH)
    source = open_counts(path)
    assert list(source.obs(["donor"])["donor"]) == ["a", "b"] * 4
    assert source.matrix_name.startswith("mod/rna/") == (store == "mudata")


STARSOLO = ("barcodes.tsv", "features.tsv", True)
KB = ("cells_x_genes.barcodes.txt", "cells_x_genes.genes.txt", False)


@pytest.mark.parametrize("chosen", ["file", "layer"])
def test_estimated_counts_of_starsolo(chosen, written):
    folder = written / "starsolo/Gene/raw"
    path = folder / "UniqueAndMult-EM.mtx" if chosen == "file" else folder
    layer = {} if chosen == "file" else {"counts_layer": "UniqueAndMult-EM"}
    expected = plain(folder, "UniqueAndMult-EM", *STARSOLO)
    assert (expected % 1).any(axis=None), "the file holds fractions"
    with pytest.raises(InputError, match="`fractional`"):
        counts_of(path, **layer)
    assert same_counts(counts_of(path, fractional="keep", **layer), expected)
    assert same_counts(counts_of(path, fractional="round", **layer), np.rint(expected))


def test_estimated_counts_of_kb(written):
    expected = plain(written / "kb_mm", "cells_x_genes", *KB)
    assert (expected % 1).any(axis=None), "the file holds fractions"
    assert same_counts(counts_of(written / "kb_mm", fractional="keep"), expected)


@pytest.mark.parametrize(
    ("folder", "names", "files", "layout"),
    [
        ("starsolo/Velocyto/raw", "spliced+ambiguous", ["spliced", "ambiguous"], STARSOLO),
        ("starsolo/Velocyto/raw", "unspliced", ["unspliced"], STARSOLO),
        ("kb_nac", "mature", ["cells_x_genes.mature"], KB),
        ("kb_nac", "cell", ["cells_x_genes.cell"], KB),
        ("kb_nac", "mature+ambiguous", ["cells_x_genes.cell"], KB),
        ("kb_nac", "mature+nascent+ambiguous", ["cells_x_genes.total"], KB),
    ],
)
def test_one_of_several_matrices_and_sums_of_them(folder, names, files, layout, written):
    expected = sum(plain(written / folder, file, *layout) for file in files)
    assert same_counts(counts_of(written / folder, counts_layer=names), expected)


@pytest.mark.parametrize("folder", ["starsolo/Velocyto/raw", "kb_nac"])
def test_which_of_several_matrices_must_be_said(folder, written):
    with pytest.raises(InputError, match=r'`counts_layer`, .* sum such as "\w+\+\w+"'):
        open_counts(written / folder)


def test_layers_of_kb(written):
    whole = counts_of(written / "kb_nac/adata.h5ad", counts_layer="mature+ambiguous")
    assert same_counts(whole, plain(written / "kb_nac", "cells_x_genes.cell", *KB))


@pytest.mark.parametrize("path", ["anndata_0.6.h5ad", "anndata_0.6_raw.h5ad"])
def test_obs_of_old_anndata(path, written):
    source = open_counts(written / path)
    assert source.table(["donor"])[2:5]["donor"].tolist() == ["a", "b", "a"]
    obs = source.obs()
    assert obs["donor"].tolist() == ["a", "b"] * 4
    assert obs["donor"].dtype == "category"
    assert obs["age"].tolist() == [n + 0.5 for n in range(8)]
    assert obs["note"].tolist() == [f"n{n}" for n in range(8)]
    assert obs.index.tolist() == TRUTH.index.tolist()


def test_symbols_of_kb(written):
    assert open_counts(written / "kb").symbols.tolist() == [f"GENE{n}" for n in range(1, 13)]
