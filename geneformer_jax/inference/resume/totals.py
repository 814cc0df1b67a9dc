"""Sums over parts that come out the same whoever makes which part, and in which order.

Floating point sums depend on the order of additions, so parts are added up along a fixed binary
tree: the sums of parts 0 and 1, 2 and 3, and so on, then those of 0 to 3, and so on. A process puts
together what its share holds; the rest is joined at last. So few files are kept, however many parts
there are.
"""

from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from geneformer_jax.inference.resume.folder import PartsFolder, save_arrays

_FOLDER = "totals"

Totals = TypeVar("Totals", bound=NamedTuple)


class PartTotals(Generic[Totals]):
    """Sums over the parts of a folder."""

    def __init__(
        self,
        folder: PartsFolder,
        parts: int,
        read: Callable[..., Totals],
        add: Callable[[Totals, Totals], Totals],
    ):
        """Describes the sums; nothing is read yet.

        Args:
          folder: of the parts.
          parts: their number.
          read: makes totals of their arrays, by name.
          add: adds the totals of parts to those of parts before them.
        """
        self._folder, self._parts, self._read, self._add = folder, parts, read, add
        self._top = max(parts - 1, 0).bit_length()

    def has(self, part: int) -> bool:
        """Whether the part is in a sum that is there."""
        return any(self._is_kept(level, part >> level) for level in range(self._top + 1))

    def put(self, part: int, totals: Totals, own: range) -> None:
        """Keeps the totals of a part, together with those of its neighbours that are there.

        Args:
          part: its number.
          totals: of its cells alone.
          own: parts that no other process makes at this time.
        """
        level, index, joined = 0, part, []
        while level < self._top:
            beside = index ^ 1
            first = beside << level
            if first < self._parts:
                last = min(first + (1 << level), self._parts) - 1
                if not (first in own and last in own and self._is_kept(level, beside)):
                    break
                pair = self._load(level, beside), totals
                totals = self._add(*(pair if beside < index else reversed(pair)))
                joined.append(_name(level, beside))
            level, index = level + 1, index >> 1
        save = partial(save_arrays, arrays=totals._asdict())
        self._folder.write(_name(level, index), {_file(level, index): save})
        for name in joined:
            self._folder.discard(name)

    def joined(self) -> Totals:
        """Returns the sums over all parts, which must be there."""
        return self._joined(self._top, 0)

    def _joined(self, level: int, index: int) -> Totals:
        if level == 0 or self._is_kept(level, index):
            return self._load(level, index)
        before = self._joined(level - 1, 2 * index)
        if (2 * index + 1) << (level - 1) >= self._parts:
            return before
        return self._add(before, self._joined(level - 1, 2 * index + 1))

    def _is_kept(self, level: int, index: int) -> bool:
        return self._folder.is_done(_name(level, index))

    def _load(self, level: int, index: int) -> Totals:
        return self._read(**self._folder.load(_file(level, index)))


def _name(level: int, index: int) -> str:
    return f"{_FOLDER}-{level:02d}-{index:06d}"


def _file(level: int, index: int) -> str:
    return f"{_FOLDER}/{level:02d}-{index:06d}.npz"
