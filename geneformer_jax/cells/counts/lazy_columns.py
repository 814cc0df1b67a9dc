"""Columns of a source read a block of rows at a time, so that memory holds no row for each cell."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")
ROWS_PER_BLOCK = 1 << 16


class RowBlocks(Generic[T]):
    """A column (or a table) that looks like an array of which only slices can be taken.

    The block read last is kept: a small column is read once, and one that is walked through from
    its start is, too.
    """

    def __init__(
        self,
        read: Callable[[int, int], T],
        length: int,
        *,
        join: Callable[[Sequence[T]], T] = np.concatenate,
        chunk: int = 1,
    ):
        """Takes the way to read rows.

        Args:
          read: (first row, end) -> values.
          length: number of rows.
          join: makes one of the values of consecutive rows.
          chunk: rows that are stored together; blocks are made of whole chunks, since reading a
            part unpacks all of it.
        """
        self._read, self._length, self._join = read, length, join
        self._rows = max(-(-ROWS_PER_BLOCK // chunk), 1) * chunk
        self._kept: tuple[int, T | None] = (-1, None)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: slice | int) -> T:
        """Returns the values of a slice without step, or the value of one row."""
        if not isinstance(rows, slice):
            return self[rows : rows + 1][0]
        start, stop, _ = rows.indices(self._length)
        if start >= stop:
            return self._read(start, start)
        numbers = range(start // self._rows, -(-stop // self._rows))
        parts = []
        for number in numbers:
            first = number * self._rows
            parts.append(self._block(number)[max(start - first, 0) : stop - first])
        return parts[0] if len(parts) == 1 else self._join(parts)

    def _block(self, number: int) -> T:
        kept, block = self._kept
        if kept != number:
            first = number * self._rows
            block = self._read(first, min(first + self._rows, self._length))
            self._kept = number, block
        return block


def iter_blocks(values: Sequence[T]) -> Iterator[T]:
    """Yields an array's (or `RowBlocks`') values, a bounded number of rows at a time."""
    for first in range(0, len(values), ROWS_PER_BLOCK):
        yield values[first : first + ROWS_PER_BLOCK]
