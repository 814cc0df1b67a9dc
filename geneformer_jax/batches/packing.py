"""Packing: which lengths share a row, decided on the histogram of lengths alone.

Cells of one length are interchangeable, so that packing 30 million cells is packing at most a few
thousand lengths with their counts: best fit, longest first. That leaves less empty than filling
rows with cells as they come, takes the same number of rows in every epoch, and leaves free which
cells meet in a row, which is drawn anew each epoch.
"""

import bisect
from typing import NamedTuple

import numpy as np


class RowKind(NamedTuple):
    """Rows that hold cells of the same lengths.

    Attributes:
      lengths: tokens of their cells, in the order in which they stand.
      rows: how many there are.
    """

    lengths: tuple[int, ...]
    rows: int


def pack_lengths(cells_of_length: np.ndarray, row: int) -> list[RowKind]:
    """Packs cells into rows of `row` tokens, the longest first, each where it fits best.

    Args:
      cells_of_length: [longest + 1] number of cells of each length.
      row: tokens of a row, not fewer than the longest cell has.
    """
    open_rows = _OpenRows(row)
    for length in np.flatnonzero(cells_of_length)[::-1].tolist():
        left = int(cells_of_length[length])
        while left:
            kind = open_rows.take(length)
            if kind is None:
                left -= open_rows.open(length, left)
                continue
            filled = min(kind.rows, left)
            open_rows.put(RowKind((*kind.lengths, length), filled))
            if kind.rows > filled:
                open_rows.put(RowKind(kind.lengths, kind.rows - filled))
            left -= filled
    return open_rows.all()


class _OpenRows:
    """Kinds of rows by the room left in them."""

    def __init__(self, row: int):
        self._row = row
        self._by_room: dict[int, list[RowKind]] = {}
        self._rooms: list[int] = []

    def take(self, length: int) -> RowKind | None:
        """Takes out a kind with the least room that holds `length` tokens."""
        place = bisect.bisect_left(self._rooms, length)
        if place == len(self._rooms):
            return None
        room = self._rooms[place]
        kind = self._by_room[room].pop()
        if not self._by_room[room]:
            del self._by_room[room], self._rooms[place]
        return kind

    def put(self, kind: RowKind) -> None:
        room = self._row - sum(kind.lengths)
        if room not in self._by_room:
            self._by_room[room] = []
            bisect.insort(self._rooms, room)
        self._by_room[room].append(kind)

    def open(self, length: int, cells: int) -> int:
        """Fills new rows with cells of one length; returns the number of cells."""
        each = self._row // length
        rows = max(cells // each, 1)
        each = min(each, cells)
        self.put(RowKind((length,) * each, rows))
        return rows * each

    def all(self) -> list[RowKind]:
        return [kind for room in self._rooms for kind in self._by_room[room]]
