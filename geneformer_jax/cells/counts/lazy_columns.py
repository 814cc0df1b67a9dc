"""How much of a source is read at once, and columns that are read a block of rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from geneformer_jax.cells.counts.options import DEFAULT_LIMITS

T = TypeVar("T")


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
        rows: int = DEFAULT_LIMITS.rows,
    ):
        """Takes the way to read rows.

        Args:
          read: (first row, end) -> values.
          length: number of rows.
          join: makes one of the values of consecutive rows.
          chunk: rows that are stored together; blocks are made of whole chunks, since reading a
            part unpacks all of it.
          rows: of a block, rounded up to whole chunks.
        """
        self._read, self._length, self._join = read, length, join
        self.rows_per_block = -(-rows // chunk) * chunk
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
        numbers = range(start // self.rows_per_block, -(-stop // self.rows_per_block))
        parts = []
        for number in numbers:
            first = number * self.rows_per_block
            parts.append(self._block(number)[max(start - first, 0) : stop - first])
        return parts[0] if len(parts) == 1 else self._join(parts)

    def part(self, first: int, stop: int) -> "RowBlocks[T]":
        """Returns some of the rows, which are read by way of the blocks of all."""
        return RowBlocks(
            lambda start, end: self[first + start : first + end],
            stop - first,
            join=self._join,
            rows=self.rows_per_block,
        )

    def _block(self, number: int) -> T:
        kept, block = self._kept
        if kept != number:
            first = number * self.rows_per_block
            block = self._read(first, min(first + self.rows_per_block, self._length))
            self._kept = number, block
        return block


def rows_of(values: Sequence[T], first: int, stop: int) -> Sequence[T]:
    """Returns some rows of an array or of `RowBlocks`."""
    return values.part(first, stop) if isinstance(values, RowBlocks) else values[first:stop]


def iter_blocks(values: Sequence[T]) -> Iterator[T]:
    """Yields an array's (or `RowBlocks`') values, a bounded number of rows at a time."""
    rows = values.rows_per_block if isinstance(values, RowBlocks) else DEFAULT_LIMITS.rows
    for first in range(0, len(values), rows):
        yield values[first : first + rows]
