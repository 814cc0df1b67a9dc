"""Sources cut into pieces of rows: where the cuts are, and that a piece reads as its rows do."""

import itertools

import numpy as np
import pytest
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions, ReadLimits
from geneformer_jax.cells.counts.row_pieces import cut_rows
from geneformer_jax.cells.formats.open import open_counts
from tests.helpers.count_files import WRITERS, example_cells
from tests.helpers.soma_files import require_tiledbsoma, write_experiment

# What cannot be read from any cell on is one piece, and so are cells in one chunk.
WHOLE = ("csc", "by gene", "mtx", "zarr 2 dense")


def slow_bounds(sizes, values, together):
    """Cuts behind the row (or its chunk) that reaches the next of equal parts, cell by cell."""
    total = sum(sizes)
    pieces = max(round(total / values), 1)
    bounds, reached, part = {0, len(sizes)}, 0, 1
    for row, size in enumerate(sizes):
        reached += size
        while part < pieces and reached >= part * (total / pieces):
            bounds.add(min(-(-(row + 1) // together) * together, len(sizes)))
            part += 1
    return sorted(bounds)


@pytest.mark.parametrize("together", [1, 4, 50])
@pytest.mark.parametrize("values", [1, 37, 400, 100_000])
def test_cuts_are_where_a_slow_way_puts_them(values, together):
    rng = np.random.default_rng(values)
    for rows in (1, 9, 60, 123):
        sizes = rng.integers(0, 30, rows)
        sizes[rows // 2] = 500
        for at_once in (7, 1000):
            found = cut_rows(lambda a, b, s=sizes: s[a:b], rows, values, together, at_once)
            assert found.bounds.tolist() == slow_bounds(sizes.tolist(), values, together)
            parts = [sizes[a:b].sum() for a, b in zip(found.bounds, found.bounds[1:], strict=False)]
            assert found.sizes.tolist() == parts


def test_rows_without_any_value_are_one_piece():
    assert cut_rows(lambda a, b: np.zeros(b - a), 90, 10, 1, 20).bounds.tolist() == [0, 90]


@pytest.mark.parametrize("name", WRITERS)
def test_pieces_read_as_the_rows_of_the_whole(tmp_path, name):
    adata = example_cells()
    whole = any(each in name for each in WHOLE)
    check_pieces(WRITERS[name](adata, tmp_path), adata, whole)


def test_pieces_of_an_experiment(tmp_path):
    require_tiledbsoma()
    adata = example_cells()
    adata.obs["nnz"] = np.diff(adata.X.indptr)
    check_pieces(write_experiment(tmp_path / "cells", adata), adata, whole=False)


def check_pieces(path, adata, whole):
    source = open_counts(path, CountOptions(limits=ReadLimits(rows=7)))
    bounds, sizes = source.cut(int(source.cut(1 << 40).sizes[0] / 2.5))
    assert bounds[0] == 0 and bounds[-1] == adata.n_obs and np.all(np.diff(bounds) > 0)
    assert (len(sizes) == 1) == whole
    for first, stop in itertools.pairwise(bounds):
        # Opened anew, as by a process that trusts what another has looked at.
        limits = ReadLimits(rows=7, known_sound=True)
        part = open_counts(path, CountOptions(limits=limits)).part(first, stop)
        batches = list(part.batches(5))
        assert part.n_cells == stop - first and batches[0].start == 0
        counts = sparse.vstack([batch.counts for batch in batches])
        assert (counts != adata.X[first:stop]).nnz == 0
        totals = np.concatenate([batch.totals for batch in source.batches()])[first:stop]
        np.testing.assert_array_equal(np.concatenate([b.totals for b in batches]), totals)
        assert part.cell_ids.tolist() == source.cell_ids[first:stop].tolist()
        columns = source.obs_columns()
        assert part.table(columns)[:].astype(str).values.tolist() == (
            source.table(columns)[first:stop].astype(str).values.tolist()
        )


def test_a_piece_reads_no_pointer_and_no_value_of_others(tmp_path, monkeypatch):
    """All that lies before and behind it may be damaged."""
    import h5py

    adata = example_cells()
    path = WRITERS["h5ad csr"](adata, tmp_path)
    with h5py.File(path, "r+") as root:
        pointers = root["X/indptr"]
        low, high = int(pointers[21]), int(pointers[28])
        root["X/data"][:low], root["X/data"][high:] = -1, -1
        pointers[1:14], pointers[36:-1] = 9**9, -1
        root["obs/n_counts"][:14], root["obs/n_counts"][36:] = -1, -1
    limits = ReadLimits(rows=7, known_sound=True)
    part = open_counts(path, CountOptions(limits=limits)).part(21, 28)
    (batch,) = part.batches()
    assert (batch.counts != adata.X[21:28]).nnz == 0
