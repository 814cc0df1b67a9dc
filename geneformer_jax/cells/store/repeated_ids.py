"""Cell ids must be distinct within a store, across all of its files.

Hashes of the ids are compared, eight bytes a cell, which lie in a scratch file beyond a few million
cells; where two are equal, the ids themselves are read again and compared. So memory is bounded
whatever the number of cells, and the answer is exact; the ids of a file took some 200 bytes a cell
(benchmarks/LOG.md).
"""

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError

# Hashes: 4 MB stay in memory; beyond that each bucket holds a part of them on disk.
_IN_MEMORY = 1 << 19
_BUCKETS = 64
_SUSPECTS_AT_ONCE = 1 << 16


def hash_ids(ids: np.ndarray) -> np.ndarray:
    """Returns uint64 [cells], a hash of each id."""
    return pd.util.hash_array(np.asarray(ids, object), categorize=False)


class RepeatedIds:
    """Finds cell ids that occur twice, in one file or in two."""

    def __init__(
        self,
        in_memory: int = _IN_MEMORY,
        suspects_at_once: int = _SUSPECTS_AT_ONCE,
        hash_of: Callable[[np.ndarray], np.ndarray] = hash_ids,
    ):
        """Starts without files.

        Args:
          in_memory: number of hashes that stay in memory; more go to a scratch file.
          suspects_at_once: number of repeated hashes whose ids are compared in one reading.
          hash_of: ids -> uint64 hashes.
        """
        self._hashes = _Hashes(in_memory)
        self._suspects_at_once, self._hash_of = suspects_at_once, hash_of
        self._files: list[tuple[str, Callable[[], Iterable[np.ndarray]]]] = []

    def add(self, name: str, read: Callable[[], Iterable[np.ndarray]]) -> None:
        """Adds a file.

        Args:
          name: of the file.
          read: yields its cell ids, a bounded number at a time; called once more at most for each
            `suspects_at_once` hashes that occur twice.
        """
        for ids in read():
            self._hashes.add(self._hash_of(ids))
        self._files.append((name, read))

    def check(self) -> None:
        """Raises InputError if a cell id occurs twice."""
        for hashes in self._hashes.repeated():
            for first in range(0, len(hashes), self._suspects_at_once):
                self._check_among(hashes[first : first + self._suspects_at_once])

    def _check_among(self, suspects: np.ndarray) -> None:
        """Compares the ids with one of these hashes, as texts."""
        seen: dict[str, str] = {}
        for name, read in self._files:
            for ids in read():
                for cell_id in ids[np.isin(self._hash_of(ids), suspects)].tolist():
                    if cell_id in seen:
                        raise _repeated_id_error(cell_id, seen[cell_id], name)
                    seen[cell_id] = name


def _repeated_id_error(cell_id: str, one: str, other: str) -> InputError:
    where, remedy = f"twice in {one}", "make them so in the file"
    if one != other:
        where = f"in {one} and in {other}"
        remedy = "make them so in the files, or use `prefix_cell_ids`"
    return InputError(
        f'the cell id "{cell_id}" is {where}, but the ids of a store must be distinct; {remedy}'
    )


class _Hashes:
    """Many uint64, of which those that occur more than once are asked for."""

    def __init__(self, max_in_memory: int):
        self._max_in_memory = max_in_memory
        self._recent: list[np.ndarray] = []
        self._in_memory = 0
        # Unnamed files: gone when the process is, however it ends.
        self._buckets: list[IO[bytes]] = []

    def add(self, hashes: np.ndarray) -> None:
        self._recent.append(hashes)
        self._in_memory += len(hashes)
        if self._in_memory >= self._max_in_memory:
            self._spill()

    def repeated(self) -> Iterator[np.ndarray]:
        """Yields those that occur more than once, ascending, in parts."""
        if not self._buckets:
            yield _repeated(self._sorted())
            return
        self._spill()
        for file in self._buckets:
            file.seek(0)
            yield _repeated(np.sort(np.frombuffer(file.read(), np.uint64)))

    def _sorted(self) -> np.ndarray:
        hashes = np.concatenate([np.empty(0, np.uint64), *self._recent])
        hashes.sort()
        return hashes

    def _spill(self) -> None:
        """Moves all from memory into the buckets, by their upper bits."""
        hashes = self._sorted()
        edges = np.arange(1, _BUCKETS, dtype=np.uint64) * np.uint64((1 << 64) // _BUCKETS)
        parts = np.split(hashes, hashes.searchsorted(edges))
        try:
            if not self._buckets:
                self._buckets = [tempfile.TemporaryFile() for _ in range(_BUCKETS)]  # noqa: SIM115
                weakref.finalize(self, _close, self._buckets)
            for file, part in zip(self._buckets, parts, strict=True):
                file.write(part.data)
                file.flush()
        except OSError as error:
            raise InputError(
                f"no room in {tempfile.gettempdir()} for {hashes.nbytes / 1e6:.0f} MB more of "
                "scratch files, needed to find repeated cell ids; free some space or name another "
                "folder in the environment variable TMPDIR"
            ) from error
        self._recent, self._in_memory = [], 0


def _close(files: list[IO[bytes]]) -> None:
    for file in files:
        file.close()


def _repeated(ascending: np.ndarray) -> np.ndarray:
    return np.unique(ascending[1:][ascending[1:] == ascending[:-1]])
