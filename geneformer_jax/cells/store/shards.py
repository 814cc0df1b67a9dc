"""The shards of a cell store: whether they are whole, and the records in them.

ArrayRecord opens some files that were cut as empty ones, without an error, so what a shard holds is
compared with what was written down when it was made.
"""

import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geneformer_jax.cells.store.layout import ORDER, SOURCE, SOURCES, shard_name
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import checksum, read_json

REMEDY = "restore it from a copy, or tokenise its source into a new folder"
_OPENED_AT_ONCE = 16
_LONGEST = 120
# What the system says of a name that is of no file. A failing disk is no damage of the store.
_NO_FILE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Shard:
    """One file of a store.

    Attributes:
      path: where it is.
      cells: its number of records.
      bytes: its size.
      sha256: its checksum.
      source: the count file whose cells it holds.
    """

    path: Path
    cells: int
    bytes: int
    sha256: str
    source: str

    def check_size(self) -> None:
        """Raises InputError if the file is missing, longer or shorter than it was written."""
        if not self.path.is_file():
            raise self.damaged("is missing")
        if (size := self.path.stat().st_size) != self.bytes:
            raise self.damaged(f"has {size:,} bytes in place of {self.bytes:,}")

    def check_records(self) -> None:
        """Raises InputError if the size or the number of records is another one; reads no cell."""
        # Imported where a file is opened: cells in memory do without the library.
        from array_record.python.array_record_module import ArrayRecordReader

        self.check_size()
        try:
            reader = ArrayRecordReader(str(self.path))
            cells = reader.num_records()
            reader.close()
        except RuntimeError as error:
            raise self.damaged(_reason(error)) from error
        if cells != self.cells:
            raise self.damaged(f"has {cells:,} cells in place of {self.cells:,}")

    def check_content(self) -> None:
        """Raises InputError if the file is not byte by byte as it was written; reads it whole."""
        self.check_size()
        if checksum(self.path) != self.sha256:
            raise self.damaged("is not as it was written (its checksum differs)")

    def damaged(self, how: str) -> InputError:
        """Returns the error of a damaged shard."""
        return InputError(f"{self.path} (cells of {self.source}) {how}; {REMEDY}")


def list_shards(folder: Path) -> list[Shard]:
    """Returns the shards of a store, in order; looks at none of them.

    Raises:
      InputError: what was written down about them cannot be read.
    """
    shards: list[Shard] = []
    path = folder / SOURCES / ORDER
    try:
        for key in read_json(path):
            path = folder / SOURCES / key / SOURCE
            source = read_json(path)
            for shard in source["shards"]:
                where = folder / shard_name(len(shards))
                cells, size = index(shard["cells"]), index(shard["bytes"])
                shards.append(Shard(where, cells, size, shard["sha256"], source["path"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FILE:
            raise
        raise InputError(
            f"{path} is missing or damaged ({_reason(error)}), without which the cell store cannot "
            "be read; restore it from a copy, or tokenise its sources into a new folder"
        ) from error
    return shards


def check_shards(shards: Sequence[Shard]) -> None:
    """Compares size and number of records of all shards with what was written; reads no cell.

    Raises:
      InputError: naming the first shard that differs.
    """
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as threads:
        list(threads.map(Shard.check_records, shards))


class _Whole(NamedTuple):
    """All records of a file, as ArrayRecord wants to be told: a text could hold what it parses."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class RecordReader:
    """Reads the records of shards by their numbers in the store."""

    def __init__(self, shards: Sequence[Shard]):
        """Opens nothing yet: a shard is opened at its first use.

        Args:
          shards: of a store, in order.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._shards = list(shards)
        self._ends = np.cumsum([shard.cells for shard in shards])
        wholes = [_Whole(str(each.path), 0, each.cells, each.cells) for each in shards]
        self._records = ArrayRecordDataSource(wholes)

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Returns the records of cells, in the order of `indices` (int64, all valid).

        Raises:
          InputError: one of their shards is damaged.
        """
        try:
            return self._records.__getitems__(indices.tolist())
        except (RuntimeError, ValueError) as error:
            # The library does not say in which of the files it failed.
            for shard, own in self._by_shard(indices):
                try:
                    self._records.__getitems__(own)
                except (RuntimeError, ValueError) as reason:
                    raise shard.damaged(f"is damaged ({_reason(reason)})") from error
            raise

    def shard_of(self, index: int) -> Shard:
        """Returns the shard that holds a cell."""
        return self._shards[int(np.searchsorted(self._ends, index, "right"))]

    def _by_shard(self, indices: np.ndarray) -> list[tuple[Shard, list[int]]]:
        numbers = np.searchsorted(self._ends, indices, "right")
        return [(self._shards[n], indices[numbers == n].tolist()) for n in np.unique(numbers)]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__
