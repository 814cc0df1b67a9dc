"""Gzip chunks of an HDF5 array, unpacked outside the HDF5 library: faster, and on several cores.

HDF5 unpacks one chunk at a time, under a lock, with zlib. Here HDF5 only hands over the packed
chunks; ISA-L unpacks them about twice as fast where it is installed, zlib where not.
"""

import h5py
import numpy as np

from geneformer_jax.common.threads import for_each, spans

try:
    from isal import isal_zlib as zlib
except ImportError:  # ISA-L has no build for this processor
    import zlib

_SHUFFLE, _GZIP = h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE
# With room left behind the content the stream's end is met before the buffer must grow.
_SPARE_BYTES = 64


class GzipChunks:
    """A one-dimensional dataset of numbers in gzip chunks; gives what h5py would give.

    Each chunk's checksum is verified. Whatever is not as expected (a chunk that is missing, damaged
    or stored unpacked) is left to h5py, which reads it or says what is wrong with it; a chunk of
    the wrong size is refused.
    """

    def __init__(self, dataset: h5py.Dataset):
        """Takes a dataset for which `has_gzip_chunks` holds."""
        self._dataset = dataset
        self.shape, self.ndim, self.dtype = dataset.shape, dataset.ndim, dataset.dtype
        self._length = dataset.chunks[0]
        self._shuffled = dataset.shuffle
        self._last: tuple[int, np.ndarray | None] = (-1, None)

    def __getitem__(self, part: slice) -> np.ndarray:
        """Returns the values of a slice without step."""
        first, last, _ = part.indices(self.shape[0])
        values = np.empty(max(last - first, 0), self.dtype)
        before, kept = self._last

        def fill(start: int) -> None:
            low, high = max(start, first), min(start + self._length, last)
            chunk = kept if start == before else self._unpacked(start)
            if high == last:
                # The next slice begins within this chunk.
                self._last = start, chunk
            within = self._dataset[low:high] if chunk is None else chunk[low - start : high - start]
            values[low - first : high - first] = within

        starts = range(first - first % self._length, last, self._length)

        def fill_span(a: int, b: int) -> None:
            for start in starts[a:b]:
                fill(start)

        for_each(fill_span, spans(len(starts)))
        return values

    def _unpacked(self, start: int) -> np.ndarray | None:
        """All values of the chunk that begins at `start`; None if it is not as expected."""
        size = self._length * self.dtype.itemsize
        try:
            skipped_filters, packed = self._dataset.id.read_direct_chunk((start,))
            if skipped_filters:
                return None
            content = zlib.decompress(packed, bufsize=size + _SPARE_BYTES)
        except (OSError, RuntimeError, zlib.error):
            return None
        if len(content) != size:
            # HDF5 would fill the rest with whatever its memory held.
            raise OSError(f"a chunk unpacks to {len(content)} bytes, but {size} are needed")
        if not self._shuffled:
            return np.frombuffer(content, self.dtype)
        by_byte = np.frombuffer(content, np.uint8).reshape(self.dtype.itemsize, self._length)
        return np.ascontiguousarray(by_byte.T).view(self.dtype)[:, 0]


def has_gzip_chunks(dataset: object) -> bool:
    """Whether an array is an HDF5 dataset that `GzipChunks` can read."""
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.chunks is None:
        return False
    if dataset.dtype.kind not in "iuf" or not dataset.size:
        return False
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(n)[0] for n in range(creation.get_nfilters())]
    stored_as_in_memory = h5py.h5t.py_create(dataset.dtype).equal(dataset.id.get_type())
    return filters in ([_GZIP], [_SHUFFLE, _GZIP]) and stored_as_in_memory
