"""Chunks unpacked outside the HDF5 library give what h5py gives, or are left to it."""

import itertools
import zlib

import h5py
import numpy as np
import pytest

from geneformer_jax.cells.counts import matrix
from geneformer_jax.cells.counts.matrix import GzipChunks, has_gzip_chunks
from geneformer_jax.common import threads

SPANS = [(0, 1000), (0, 0), (3, 4), (95, 105), (300, 700), (990, 2000)]


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as root:
        yield root


def dataset(file, dtype=np.int32, **options):
    values = np.random.default_rng(0).integers(0, 90, 1000).astype(dtype)
    options = {"chunks": (100,), "compression": "gzip"} | options
    return file.create_dataset("x", data=values, **options)


@pytest.mark.parametrize("dtype", ["i4", "i8", "u2", "f4", "f8", ">i4"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("library", ["isal or zlib", "zlib"])
def test_every_slice_is_what_h5py_reads(file, dtype, shuffle, cores, library, monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: cores)
    if library == "zlib":
        monkeypatch.setattr(matrix, "zlib", zlib)
    stored = dataset(file, dtype, shuffle=shuffle)
    assert has_gzip_chunks(stored)
    chunks = GzipChunks(stored)
    assert (chunks.shape, chunks.dtype, chunks.ndim) == ((1000,), stored.dtype, 1)
    for part in itertools.starmap(slice, [*SPANS, *SPANS[::-1]]):
        read = chunks[part]
        assert read.dtype == stored.dtype
        np.testing.assert_array_equal(read, stored[part])


@pytest.mark.parametrize(
    "options",
    [
        {"compression": None},
        {"compression": "lzf"},
        {"fletcher32": True},
        {"dtype": bool},
        {"dtype": "S3"},
        {"chunks": None, "compression": None},
    ],
)
def test_other_ways_of_storing_are_left_to_h5py(file, options):
    assert not has_gzip_chunks(dataset(file, **options))
    assert not has_gzip_chunks(np.zeros(3))


def test_chunks_that_are_missing_or_stored_unpacked(file):
    """What was never written is read as fill values; a mask says which chunks are unpacked."""
    stored = file.create_dataset("y", (1000,), "i4", chunks=(100,), compression="gzip", fillvalue=7)
    stored[100:200] = np.arange(100)
    stored.id.write_direct_chunk((200,), np.arange(100, dtype="i4").tobytes(), filter_mask=1)
    expected = np.full(1000, 7)
    expected[100:300] = np.tile(np.arange(100), 2)
    np.testing.assert_array_equal(GzipChunks(stored)[:], expected)


@pytest.mark.parametrize("damage", ["changed", "cut", "checksum"])
def test_a_damaged_chunk_is_told_by_h5py(file, damage):
    stored = dataset(file)
    _, packed = stored.id.read_direct_chunk((500,))
    damaged = {
        "changed": packed[:20] + bytes([packed[20] ^ 255]) + packed[21:],
        "cut": packed[:-9],
        "checksum": packed[:-1] + bytes([packed[-1] ^ 1]),
    }
    stored.id.write_direct_chunk((500,), damaged[damage])
    chunks = GzipChunks(stored)
    np.testing.assert_array_equal(chunks[:500], stored[:500])
    with pytest.raises(OSError, match="filter"):
        chunks[500:600]


@pytest.mark.parametrize("size", [0, 300, 399, 401, 4000])
def test_a_chunk_of_the_wrong_size_is_refused(file, size):
    """HDF5 reads beyond the end of a chunk that is too short."""
    stored = dataset(file)
    stored.id.write_direct_chunk((500,), zlib.compress(bytes(size)))
    with pytest.raises(OSError, match=f"unpacks to {size} bytes, but 400 are needed"):
        GzipChunks(stored)[450:600]
