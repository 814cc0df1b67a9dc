"""Which matrix holds the raw counts, sums of layers, and totals that are computed."""

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse

from geneformer_jax.cells.counts import matrix_choice
from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import CountFiles, open_counts
from geneformer_jax.common.errors import InputError
from tests.helpers.count_files import WRITERS, example_cells
from tests.helpers.small_stores import write

LAYOUTS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "dense": lambda counts: counts.toarray(),
}


def logged(layout="csr", **layers):
    """Cells whose X is log-normalised; returns them and their counts."""
    adata = example_cells(dtype=np.float32)
    counts = adata.X.copy()
    del adata.obs["n_counts"]
    scaled = sparse.diags(1e4 / np.maximum(np.asarray(counts.sum(1)).ravel(), 1)) @ counts
    adata.X = LAYOUTS[layout](sparse.csr_matrix(scaled).log1p())
    for name, change in layers.items():
        adata.layers[name] = LAYOUTS[layout](sparse.csr_matrix(change(counts)))
    return adata, counts


def same(counts):
    return counts


def doubled(counts):
    return counts * 2


def halved(counts):
    return counts / 2


def opened(adata, folder, kind, **options):
    options = CountOptions(**options)
    if kind == "memory":
        return AnnDataSource(adata, options)
    path = folder / f"cells.{kind}"
    (write_loom if kind == "loom" else write)(adata, path)
    return open_counts(path, options)


def write_loom(adata, path):
    dense = {
        name: getattr(m, "toarray", lambda m=m: m)() for name, m in adata.layers.items() if name
    }
    with h5py.File(path, "w") as root:
        root["matrix"] = getattr(adata.X, "toarray", lambda: adata.X)().T
        for name, matrix in dense.items():
            root[f"layers/{name}"] = matrix.T
        root["row_attrs/ensembl_id"] = adata.var["ensembl_id"].to_numpy("S")
        root["col_attrs/CellID"] = adata.obs_names.to_numpy("S")


def whole(source):
    return sparse.vstack([batch.counts for batch in source.batches(8)]).toarray()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["memory", "h5ad", "loom"])
def test_the_layer_with_raw_counts_is_found(kind, layout, tmp_path):
    adata, counts = logged(layout, scaled=halved, umi=same)
    source = opened(adata, tmp_path, kind)
    assert source.matrix_name.removeprefix("layers/") == "umi"
    np.testing.assert_array_equal(whole(source), counts.toarray())


def with_raw(adata, counts, columns):
    adata.raw = anndata.AnnData(counts[:, columns], var=adata.var.iloc[columns])
    return adata


@pytest.mark.parametrize("kind", ["memory", "h5ad"])
def test_raw_counts_in_raw_come_with_the_genes_of_raw(kind, tmp_path):
    adata, counts = logged()
    columns = np.arange(adata.n_vars)[::-2]
    source = opened(with_raw(adata, counts, columns), tmp_path, kind)
    assert source.gene_ids.tolist() == adata.var["ensembl_id"].iloc[columns].tolist()
    np.testing.assert_array_equal(whole(source), counts[:, columns].toarray())


@pytest.mark.parametrize("kind", ["memory", "h5ad"])
def test_x_wins_if_it_holds_raw_counts(kind, tmp_path):
    adata, counts = logged(umi=doubled)
    adata.X = counts
    np.testing.assert_array_equal(whole(opened(adata, tmp_path, kind)), counts.toarray())


@pytest.mark.parametrize("kind", ["memory", "h5ad", "loom"])
def test_two_different_matrices_of_raw_counts_are_no_guess(kind, tmp_path):
    adata, counts = logged(umi=same, other=doubled)
    with pytest.raises(InputError, match=r"several others.*\"other\".*`counts_layer`"):
        opened(adata, tmp_path, kind)
    source = opened(adata, tmp_path, kind, counts_layer="other")
    np.testing.assert_array_equal(whole(source), counts.toarray() * 2)


def test_a_sum_is_named_only_where_there_can_be_one():
    adata, counts = logged(umi=same)
    with pytest.raises(InputError, match=r'\("umi", "raw"\): choose by `counts_layer`$'):
        opened(with_raw(adata, counts, np.arange(5)), None, "memory")
    adata.layers["other"] = doubled(counts)
    with pytest.raises(InputError, match=r'such as "umi\+other"'):
        opened(adata, None, "memory")


@pytest.mark.parametrize("kind", ["memory", "h5ad"])
def test_the_same_counts_twice_are_one_choice(kind, tmp_path):
    adata, counts = logged(umi=same)
    every = np.arange(adata.n_vars)
    source = opened(with_raw(adata, counts, every), tmp_path, kind)
    np.testing.assert_array_equal(whole(source), counts.toarray())


@pytest.mark.parametrize("kind", ["memory", "h5ad", "loom"])
def test_where_nothing_is_raw_x_is_refused(kind, tmp_path):
    adata, _ = logged(scaled=halved)
    source = opened(adata, tmp_path, kind)
    with pytest.raises(InputError, match="looks log-transformed"):
        list(source.batches())


@pytest.mark.parametrize("kind", ["memory", "h5ad"])
def test_an_x_of_zeros_or_none_gives_way(kind, tmp_path):
    adata, counts = logged(umi=same)
    for matrix in (sparse.csr_matrix(adata.shape, dtype=np.int32), None):
        adata.X = matrix
        (tmp_path / "cells.h5ad").unlink(missing_ok=True)
        np.testing.assert_array_equal(whole(opened(adata, tmp_path, kind)), counts.toarray())


def test_the_first_cells_may_be_empty(tmp_path):
    adata, counts = logged()
    blank = sparse.vstack([counts[:0], sparse.csr_matrix((40, adata.n_vars)), counts[40:]]).tocsr()
    adata.layers["umi"], adata.X = blank, blank.log1p()
    source = opened(adata, tmp_path, "h5ad")
    np.testing.assert_array_equal(whole(source), blank.toarray())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["memory", "h5ad", "loom"])
def test_a_sum_of_layers(kind, layout, tmp_path):
    adata, counts = logged(layout, spliced=same, unspliced=doubled)
    source = opened(adata, tmp_path, kind, counts_layer="spliced+unspliced")
    assert source.matrix_name == "layers/spliced+layers/unspliced" or kind == "memory"
    np.testing.assert_array_equal(whole(source), counts.toarray() * 3)


def test_a_sum_of_layouts_and_types(tmp_path):
    adata, counts = logged(spliced=same)
    adata.layers["unspliced"] = counts.tocsc().astype(np.int64)
    adata.layers["a+b"] = counts.toarray() * 5
    for kind in ("memory", "h5ad"):
        source = opened(adata, tmp_path, kind, counts_layer="spliced + unspliced")
        np.testing.assert_array_equal(whole(source), counts.toarray() * 2)
        (tmp_path / "cells.h5ad").unlink(missing_ok=True)
    source = opened(adata, tmp_path, "memory", counts_layer="a+b")
    np.testing.assert_array_equal(whole(source), counts.toarray() * 5)


def test_halves_do_not_add_up_to_counts():
    adata, _ = logged(a=halved, b=halved)
    with pytest.raises(InputError, match="is not a whole number"):
        list(opened(adata, None, "memory", counts_layer="a+b").batches())


@pytest.mark.parametrize(
    ("asked", "words"), [("a+unspliced", 'no layer "unspliced"'), ("a+raw", "cannot be added")]
)
def test_a_sum_that_cannot_be(asked, words):
    adata, counts = logged(a=same)
    adata = with_raw(adata, counts, np.arange(5))
    with pytest.raises(InputError, match=words):
        opened(adata, None, "memory", counts_layer=asked)


@pytest.mark.parametrize("kind", ["loom", "10x h5 version 3", "10x mtx version 2"])
def test_the_main_matrix_can_be_asked_for(kind, tmp_path):
    adata = example_cells()
    source = open_counts(WRITERS[kind](adata, tmp_path), CountOptions(counts_layer="X"))
    np.testing.assert_array_equal(whole(source), adata.X.toarray())


@pytest.mark.parametrize("stale", [np.nan, -1.0, 0.5, "many"])
def test_totals_are_computed_where_stated_ones_are_stale(stale, tmp_path):
    adata = example_cells()
    adata.obs["n_counts"] = [stale] * adata.n_obs
    for kind in ("memory", "h5ad"):
        with pytest.raises(InputError, match="`compute_totals`"):
            list(opened(adata, tmp_path, kind).batches())
        (tmp_path / "cells.h5ad").unlink(missing_ok=True)
        (batch,) = opened(adata, tmp_path, kind, compute_totals=True).batches()
        np.testing.assert_array_equal(batch.totals, np.asarray(adata.X.sum(1)).ravel())
        (tmp_path / "cells.h5ad").unlink(missing_ok=True)


def test_nan_points_to_the_join_that_made_it():
    adata = example_cells(dtype=np.float32)
    adata.X = adata.X.toarray()
    adata.X[3, 5] = np.nan
    with pytest.raises(InputError, match="fill_value=0"):
        list(AnnDataSource(adata).batches())


@pytest.mark.parametrize("kind", ["h5ad", "loom"])
def test_a_files_matrix_is_looked_for_once_however_often_it_is_opened(kind, tmp_path, monkeypatch):
    adata, counts = logged(umi=same)
    paths = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path in paths:
        opened(adata, tmp_path, kind)
        (tmp_path / f"cells.{kind}").rename(path)
    sampled = []
    take = matrix_choice.sample_of
    monkeypatch.setattr(matrix_choice, "sample_of", lambda m: sampled.append(m) or take(m))
    files = CountFiles(CountOptions())
    for path in [*paths, *paths]:
        np.testing.assert_array_equal(whole(files.open(path)), counts.toarray())
    # X and the one layer of each file, where it was opened first.
    assert len(sampled) == 4
