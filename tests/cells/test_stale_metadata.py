"""Zarr stores that were changed in place: the copy of their metadata at the root is out of date."""

import warnings

import numpy as np
import pytest
import zarr
from anndata.io import write_elem
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.written_anndata import without_shards
from tests.helpers.count_files import WRITERS, example_cells


@pytest.fixture(params=["zarr 2 csr", "zarr 3 csr"])
def changed(request, tmp_path):
    """The cells, and a store of them with consolidated metadata, opened to be changed."""
    adata = example_cells()
    path = WRITERS[request.param](adata, tmp_path)
    with warnings.catch_warnings():
        # Format 3 does not specify them yet.
        warnings.simplefilter("ignore", UserWarning)
        zarr.consolidate_metadata(path)
    with without_shards():
        yield adata, path, zarr.open_group(path, mode="r+", use_consolidated=False)


def dense(path, **options):
    batches = open_counts(path, CountOptions(**options)).batches()
    return sparse.vstack([batch.counts for batch in batches]).toarray()


def test_counts_replaced_by_another_number_type_are_read_as_what_they_are(changed):
    adata, path, root = changed
    write_elem(root, "X", adata.X.astype(np.float32))
    assert np.array_equal(dense(path), adata.X.toarray())


def test_layers_and_columns_added_later_are_there(changed):
    adata, path, root = changed
    write_elem(root.create_group("layers"), "umi", adata.X.sign())
    write_elem(root["obs"], "batch", np.arange(adata.n_obs))
    assert np.array_equal(dense(path, counts_layer="umi"), adata.X.sign().toarray())
    assert np.array_equal(open_counts(path).obs(["batch"])["batch"], np.arange(adata.n_obs))


@pytest.mark.parametrize("value", [(1 << 24) + 1, int(np.float32(1).view(np.int32))])
def test_a_number_that_no_cell_can_have_is_refused(value):
    adata = example_cells()
    adata.X.data[5], adata.obs["n_counts"] = value, 1e12
    with pytest.raises(InputError, match=r"too large to be a raw count \(at most 16,777,216\)"):
        list(AnnDataSource(adata).batches())


def test_the_largest_count_is_taken():
    adata = example_cells()
    adata.X.data[5], adata.obs["n_counts"] = 1 << 24, 1e12
    (batch,) = AnnDataSource(adata).batches()
    assert batch.counts.max() == 1 << 24
