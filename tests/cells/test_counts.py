"""Every format and layout gives the counts that its own library reads from it."""

import pickle

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from geneformer_jax.cells.counts import matrix
from geneformer_jax.cells.counts.options import CountOptions, ReadLimits
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.common.errors import InputError
from tests.helpers.count_files import WRITERS, example_cells, with_matrix


def read_whole(source, cells_per_batch=4096):
    """All counts and totals of a source, and the start of each batch checked on the way."""
    counts, totals, cells = [], [], 0
    for batch in source.batches(cells_per_batch):
        assert batch.start == cells
        assert 1 <= batch.counts.shape[0] <= cells_per_batch
        assert batch.counts.dtype == np.int32
        assert batch.totals.dtype == np.float64
        assert batch.counts.has_canonical_format
        assert np.all(batch.counts.data > 0)
        cells += batch.counts.shape[0]
        counts.append(batch.counts)
        totals.append(batch.totals)
    assert cells == source.n_cells
    return sparse.vstack(counts).toarray(), np.concatenate(totals)


# So low that small files need many pieces, buckets, blocks and batches.
TINY = ReadLimits(
    entries=100,
    piece_entries=64,
    dense_values=400,
    max_dense_values=2000,
    bucket_entries=128,
    scratch_bytes=256,
)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_every_format_gives_its_cells(kind, dtype, tmp_path):
    adata = example_cells(dtype=dtype)
    source = open_counts(WRITERS[kind](adata, tmp_path))
    counts, totals = read_whole(source, cells_per_batch=10)
    expected = adata.X.toarray()
    np.testing.assert_array_equal(counts, expected)
    with_obs = "10x" not in kind
    np.testing.assert_array_equal(totals, adata.obs["n_counts"] if with_obs else expected.sum(1))
    assert source.n_cells == adata.n_obs
    assert list(source.cell_ids) == list(adata.obs_names)
    assert list(source.gene_ids) == list(adata.var["ensembl_id"])
    assert list(source.symbols) == list(adata.var["gene_symbol"])
    if with_obs:
        obs = source.obs(["donor", "cell_type", "filter_pass"])
        assert list(obs.columns) == ["donor", "cell_type", "filter_pass"]
        assert list(obs.index) == list(adata.obs_names)
        for column in obs:
            assert list(obs[column]) == list(adata.obs[column])
        assert set(source.obs().columns) - {"CellID"} == set(adata.obs.columns)


@pytest.mark.parametrize("kind", WRITERS)
def test_many_pieces_give_the_same_cells(kind, tmp_path):
    adata = example_cells(seed=1)
    source = open_counts(WRITERS[kind](adata, tmp_path), CountOptions(limits=TINY))
    for cells_per_batch in (1, 7, 4096):
        np.testing.assert_array_equal(read_whole(source, cells_per_batch)[0], adata.X.toarray())


def test_tall_chunks_are_read_as_tiles():
    array = np.zeros((57, 83), np.int32)

    class Chunked:
        shape, dtype = array.shape, array.dtype
        chunks = (57, 3)

    assert isinstance(matrix.dense_matrix(Chunked(), limits=TINY), matrix.DenseTiles)
    Chunked.chunks = (5, 83)
    assert isinstance(matrix.dense_matrix(Chunked(), limits=TINY), matrix.Dense)


def test_deep_cells_come_in_smaller_batches(tmp_path):
    adata = example_cells(seed=2)
    source = open_counts(WRITERS["h5ad csr"](adata, tmp_path), CountOptions(limits=TINY))
    entries = [batch.counts.nnz for batch in source.batches()]
    deepest = np.diff(adata.X.indptr).max()
    assert len(entries) > 5
    assert max(entries) <= max(100, deepest)


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("kind", ["h5ad", "memory"])
def test_layers_and_raw(layout, kind, tmp_path):
    counts = with_matrix(example_cells(), layout)
    adata = counts[:, 10:40].copy()
    adata.X = np.log1p(adata.X.toarray() if layout != "dense" else adata.X)
    adata.layers["umi"] = counts[:, 10:40].X
    adata.raw = counts
    del adata.obs["n_counts"]
    if kind == "h5ad":
        adata.write_h5ad(tmp_path / "cells.h5ad")

    def open_layer(name):
        if kind == "memory":
            return AnnDataSource(adata, CountOptions(counts_layer=name))
        return open_counts(tmp_path / "cells.h5ad", CountOptions(counts_layer=name))

    whole = example_cells().X.toarray()
    for name, columns in [("umi", slice(10, 40)), ("raw", slice(None))]:
        source = open_layer(name)
        got, totals = read_whole(source)
        np.testing.assert_array_equal(got, whole[:, columns])
        np.testing.assert_array_equal(totals, whole[:, columns].sum(1))
        assert list(source.gene_ids) == list(counts.var["ensembl_id"][columns])


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_an_anndata_in_memory_is_read_and_left_alone(layout):
    adata = with_matrix(example_cells(), layout)
    if layout != "dense":
        adata.X.data[::5] = 0
    expected = (adata.X if layout == "dense" else adata.X.toarray()).copy()
    before = pickle.dumps(adata.X)
    counts, totals = read_whole(AnnDataSource(adata), cells_per_batch=9)
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(totals, adata.obs["n_counts"])
    assert pickle.dumps(adata.X) == before


def test_a_view_of_an_anndata_is_read():
    adata = example_cells()
    view = adata[5:20, ::2]
    np.testing.assert_array_equal(read_whole(AnnDataSource(view))[0], adata.X.toarray()[5:20, ::2])


@pytest.mark.parametrize(
    "layout", [sparse.csr_matrix, sparse.csc_matrix, lambda counts: counts.toarray()]
)
def test_an_object_that_is_backed_by_a_file(layout, tmp_path):
    adata = example_cells()
    expected = adata.X.toarray()
    adata.X = layout(adata.X)
    adata.write_h5ad(tmp_path / "backed.h5ad")
    backed = anndata.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    np.testing.assert_array_equal(read_whole(AnnDataSource(backed), 9)[0], expected)
    np.testing.assert_array_equal(read_whole(AnnDataSource(backed[3:9]))[0], expected[3:9])
    backed.file.close()


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_unsorted_and_repeated_entries_are_added_and_zeros_dropped(layout):
    rng = np.random.default_rng(3)
    adata = example_cells()
    cells, genes = rng.integers(0, 57, 900), rng.integers(0, 83, 900)
    values = rng.integers(0, 4, 900)
    order = np.argsort(cells if layout == "csr" else genes, kind="stable")
    major = (cells if layout == "csr" else genes)[order]
    minor = (genes if layout == "csr" else cells)[order]
    pointers = np.concatenate([[0], np.cumsum(np.bincount(major, minlength=adata.shape[0]))])
    if layout == "csc":
        pointers = np.concatenate([[0], np.cumsum(np.bincount(major, minlength=adata.shape[1]))])
    build = sparse.csr_matrix if layout == "csr" else sparse.csc_matrix
    adata.X = build((values[order].astype(np.uint8), minor, pointers), shape=adata.shape)
    del adata.obs["n_counts"]
    expected = np.zeros(adata.shape, int)
    np.add.at(expected, (cells, genes), values)
    counts, totals = read_whole(AnnDataSource(adata))
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(totals, expected.sum(1))


def test_gene_ids_and_symbols(tmp_path):
    adata = example_cells()
    adata.var["other_id"] = [f"X{n}" for n in range(adata.n_vars)]
    path = WRITERS["h5ad csr"](adata, tmp_path)
    made = (lambda o: open_counts(path, o), lambda o: AnnDataSource(adata, o))
    for each in made:

        def make(each=each, **options):
            return each(CountOptions(**options))

        assert make(gene_column="other_id").gene_ids[3] == "X3"
        assert make(gene_column="index").gene_ids[3] == "3"
        assert make(gene_column="gene_symbol").gene_ids[3] == "SYM3"
        assert make(gene_column="gene_symbol").symbols is None
        assert make().gene_ids[3] == adata.var["ensembl_id"].iloc[3]


def test_index_serves_as_symbols_when_ids_have_a_column():
    adata = example_cells()
    adata.var_names = adata.var.pop("gene_symbol").to_list()
    assert AnnDataSource(adata).symbols[3] == "SYM3"
    del adata.var["ensembl_id"]
    assert AnnDataSource(adata).gene_ids[3] == "SYM3"
    assert AnnDataSource(adata).symbols is None


def test_missing_gene_ids_are_empty(tmp_path):
    adata = example_cells()
    ids = adata.var["ensembl_id"].astype(object)
    ids.iloc[4] = None
    adata.var["ensembl_id"] = pd.Categorical(ids)
    path = WRITERS["h5ad csr"](adata, tmp_path)
    assert open_counts(path).gene_ids[4] == ""
    assert AnnDataSource(adata).gene_ids[4] == ""


def test_features_that_are_not_genes_are_left_out(tmp_path):
    adata = example_cells()
    types = np.full(adata.n_vars, b"Gene Expression").astype("S20")
    types[[0, 5, 80]] = b"Antibody Capture"
    path = WRITERS["10x h5 version 3"](adata, tmp_path)
    with h5py.File(path, "r+") as root:
        del root["matrix/features/feature_type"]
        root["matrix/features/feature_type"] = types
    kept = np.delete(np.arange(adata.n_vars), [0, 5, 80])
    source = open_counts(path)
    counts, totals = read_whole(source)
    np.testing.assert_array_equal(counts, adata.X.toarray()[:, kept])
    np.testing.assert_array_equal(totals, counts.sum(1))
    assert list(source.gene_ids) == list(adata.var["ensembl_id"].iloc[kept])
    assert list(source.symbols) == list(adata.var["gene_symbol"].iloc[kept])


def test_several_genomes_of_an_old_10x_file(tmp_path):
    path = WRITERS["10x h5 version 2"](example_cells(), tmp_path)
    with h5py.File(path, "r+") as root:
        root.copy("GRCh38", "mm10")
    with pytest.raises(InputError, match="`counts_layer`: GRCh38, mm10"):
        open_counts(path)
    assert open_counts(path, CountOptions(counts_layer="mm10")).n_cells == 57


def test_loom_layer(tmp_path):
    adata = example_cells()
    path = WRITERS["loom"](adata, tmp_path)
    with h5py.File(path, "r+") as root:
        root["layers/spliced"] = 2 * root["matrix"][:]
    del adata.obs["n_counts"]
    source = open_counts(path, CountOptions(counts_layer="spliced"))
    with h5py.File(path, "r+") as root:
        del root["col_attrs/n_counts"]
    source = open_counts(path, CountOptions(counts_layer="spliced"))
    np.testing.assert_array_equal(read_whole(source)[0], 2 * adata.X.toarray())


def test_h5_file_with_an_anndata_in_it(tmp_path):
    path = WRITERS["h5ad csr"](example_cells(), tmp_path)
    np.testing.assert_array_equal(
        read_whole(open_counts(path.rename(tmp_path / "cells.h5")))[0],
        example_cells().X.toarray(),
    )


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_categories_as_anndata_before_0_8_wrote_them(tmp_path):
    adata = example_cells()
    path = WRITERS["h5ad csr"](adata, tmp_path)
    with h5py.File(path, "r+") as root:
        obs = root["obs"]
        codes, categories = obs["cell_type/codes"][:], obs["cell_type/categories"][:]
        del obs["cell_type"]
        obs["__categories/cell_type"] = categories
        obs["cell_type"] = codes
        obs["cell_type"].attrs["categories"] = obs["__categories/cell_type"].ref
        obs.attrs["encoding-version"] = "0.1.0"
    obs = open_counts(path).obs()
    assert list(obs["cell_type"]) == list(adata.obs["cell_type"])
    assert "__categories" not in obs


@pytest.mark.parametrize("name", WRITERS)
def test_a_source_travels_to_another_process(tmp_path, name):
    source = open_counts(WRITERS[name](example_cells(), tmp_path))
    counts, _ = read_whole(source)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(read_whole(copy)[0], counts)
    assert copy.cell_ids.tolist() == source.cell_ids.tolist()


@pytest.mark.reference_data
@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_real_cells(layout, data_dir, tmp_path):
    adata = anndata.read_h5ad(data_dir / "cells" / "pbmc_facs_zheng_holdout.h5ad")
    path = tmp_path / "cells.h5ad"
    with_matrix(adata, layout).write_h5ad(path)
    source = open_counts(path)
    counts, totals = read_whole(source, 33)
    np.testing.assert_array_equal(counts, adata.X.toarray())
    np.testing.assert_array_equal(totals, adata.obs["n_counts"])
    assert list(source.gene_ids) == list(adata.var["ensembl_id"])


@pytest.mark.reference_data
def test_real_files_as_anndata_reads_them(data_dir):
    for path in sorted((data_dir / "cells").glob("*.h5ad")):
        adata = anndata.read_h5ad(path)
        source = open_counts(path)
        got = sparse.vstack([batch.counts for batch in source.batches(1000)])
        assert (got != adata.X).nnz == 0
        totals = np.concatenate([batch.totals for batch in source.batches(1000)])
        np.testing.assert_array_equal(totals, adata.obs["n_counts"])
        obs = source.obs()
        for column in adata.obs:
            assert obs[column].astype(str).to_list() == adata.obs[column].astype(str).to_list()
