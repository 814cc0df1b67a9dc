"""A .npy file that grows: numbers are written as they come, and none is kept in memory."""

from pathlib import Path

import numpy as np


class GrowingArray:
    """Writes a one-dimensional array of numbers, part by part; `close` makes the file whole."""

    def __init__(self, path: Path, dtype: type[np.generic]):
        self._dtype = np.dtype(dtype)
        self._file, self._length = path.open("wb"), 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        """Adds values at the end."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def close(self) -> None:
        """Writes down how many values there are."""
        self._file.seek(0)
        # NumPy leaves room in the header, so that its size does not depend on the length.
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        shape = {"shape": (self._length,), "fortran_order": False, "descr": self._dtype.str}
        np.lib.format.write_array_header_1_0(self._file, shape)
