"""Columns in blocks are those read at once, of every format."""

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.cells.counts.lazy_columns import RowBlocks, iter_blocks
from geneformer_jax.cells.counts.matrix import CompressedRows
from geneformer_jax.cells.counts.options import CountOptions, ReadLimits
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.store.join import GrowingArray
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.written_anndata import without_shards
from tests.helpers.count_files import WRITERS, example_cells
from tests.helpers.small_stores import build, cells, same_stores, write

SMALL = ReadLimits(rows=7)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_slices_are_those_of_the_array(chunk):
    values, asked = np.arange(100, 123), []

    def read(start, stop):
        asked.append((start, stop))
        return values[start:stop]

    blocks = RowBlocks(read, len(values), chunk=chunk, rows=5)
    assert len(blocks) == 23 and blocks[22] == 122 and len(blocks[7:7]) == 0
    for start in range(23):
        for stop in range(start + 1, 24):
            np.testing.assert_array_equal(blocks[start:stop], values[start:stop])
    size = -(-5 // chunk) * chunk
    assert all(a % size == 0 and b in (a + size, 23) for a, b in asked if a < b)
    asked.clear()
    np.testing.assert_array_equal(np.concatenate(list(iter_blocks(blocks))), values)
    assert len(asked) <= -(-23 // size) + 1


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_in_small_blocks(tmp_path, name):
    path = WRITERS[name](example_cells(), tmp_path)
    whole = open_counts(path)
    expected, batches = whole.obs(), list(whole.batches(10))
    source = open_counts(path, CountOptions(limits=SMALL))
    pd.testing.assert_frame_equal(source.obs(), expected)
    for batch, other in zip(source.batches(10), batches, strict=True):
        np.testing.assert_array_equal(batch.totals, other.totals)
        assert (batch.counts != other.counts).nnz == 0


@pytest.mark.parametrize("row", range(1, 12))
def test_pointers_that_run_back_anywhere_are_refused(row):
    limits = ReadLimits(rows=4)
    pointers = np.arange(0, 26, 2)
    sound = CompressedRows(np.ones(24), np.zeros(24, int), pointers, (12, 1), "x", limits)
    assert sum(rows.shape[0] for _, rows in sound.rows(5)) == 12
    pointers[row] = pointers[row + 1] + 1 if row % 2 else pointers[row - 1] - 1
    with pytest.raises(InputError, match="does not run upwards"):
        CompressedRows(np.ones(24), np.zeros(24, int), pointers, (12, 1), "x", limits)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
# The setting goes once anndata writes no other format.
@pytest.mark.filterwarnings("ignore:This setting will be removed:DeprecationWarning")
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_columns_with_missing_values_in_small_blocks(tmp_path, suffix):
    adata = example_cells()
    adata.obs["number"] = pd.array([None, *range(adata.n_obs - 1)], "Int64")
    adata.obs["truth"] = pd.array([True, None, False] * 19, "boolean")
    adata.obs["grade"] = pd.Categorical(["b", None, "a"] * 19, ["c", "b", "a"], ordered=True)
    path = tmp_path / f"x.{suffix}"
    with without_shards(zarr_write_format=3):
        (adata.write_h5ad if suffix == "h5ad" else adata.write_zarr)(path)
    read, expected = open_counts(path, CountOptions(limits=SMALL)).obs(), AnnDataSource(adata).obs()
    for column in ("number", "truth", "grade", "cell_type"):
        pd.testing.assert_series_equal(read[column], expected[column])


def test_a_store_made_in_small_blocks(tmp_path, files, vocabulary):
    adata = cells(3, "e")
    adata.obs["donor"] = range(adata.n_obs)
    adata.obs["score"] = pd.array([*range(adata.n_obs - 1), None], "Int64")
    paths = [*files, write(adata, tmp_path / "e.h5ad")]
    rules = QualityRules("filter_pass", {"cell_type": ["B"]}, None, None, 3)
    options = {"obs": ["donor", "cell_type"], "quality": rules}
    whole, counts = build(tmp_path / "whole", paths, vocabulary, **options)
    parts, same_counts = build(tmp_path / "parts", paths, vocabulary, limits=SMALL, **options)
    same_stores(parts, whole)
    assert counts == same_counts and len(counts["dropped"]) > 2
    np.testing.assert_array_equal(parts.lengths, whole.lengths)
    np.testing.assert_array_equal(parts.n_genes, whole.n_genes)


def test_an_array_that_grows(tmp_path):
    for lengths in ([], [0], [3, 0, 100_000, 1]):
        array = GrowingArray(tmp_path / "x.npy", np.int32)
        values = [np.arange(length, dtype=np.int64) for length in lengths]
        for each in values:
            array.append(each)
        array.close()
        read = np.load(tmp_path / "x.npy")
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, np.concatenate([np.empty(0), *values]))


@pytest.mark.parametrize("version", ["10x mtx version 2", "10x mtx version 3 gz"])
def test_barcodes_are_read_forwards_or_anew(tmp_path, version):
    path = WRITERS[version](example_cells(), tmp_path)
    expected = open_counts(path).cell_ids.tolist()
    ids = open_counts(path, CountOptions(limits=ReadLimits(rows=4))).packed_ids
    for row in (0, 9, 5, len(expected) - 1, 0):
        assert ids[row] == expected[row]
    assert ids[2:11].tolist() == expected[2:11]


def test_barcodes_that_are_no_text_are_named(tmp_path):
    path = WRITERS["10x mtx version 2"](example_cells(), tmp_path)
    (path / "barcodes.tsv").write_bytes(b"cell1\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"barcodes\.tsv cannot be read as tab-separated text"):
        open_counts(path)
