"""What the statistics of shifts are made of: groups, running moments, a background, rank sums.

Rows come a piece at a time and nothing here keeps them: memory grows with the number of edits and
with the size of the background, never with cells x genes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

_MERGE_ROWS = 1 << 20


class GeneIndex:
    """Numbers names 0, 1, 2... as they first appear, and remembers one symbol for each."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._symbols: list[str] = []

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def names(self) -> np.ndarray:
        """[names] object, by number."""
        return np.array(list(self._numbers), object)

    @property
    def symbols(self) -> np.ndarray:
        """[names] object, the symbol that came with each name first."""
        return np.array(self._symbols, object)

    def add(self, names: pd.Series, symbols: pd.Series) -> np.ndarray:
        """Returns int64 [rows], the number of each row's name; new names get the next numbers."""
        codes, distinct = factorized(names)
        first = np.empty(len(distinct), np.int64)
        first[codes[::-1]] = np.arange(len(codes))[::-1]
        for name, row in zip(distinct, first, strict=True):
            if name not in self._numbers:
                self._numbers[name] = len(self._numbers)
                self._symbols.append(str(symbols.iloc[row]))
        return self._look_up(distinct)[codes]

    def find(self, names: pd.Series) -> np.ndarray:
        """Returns int64 [rows], the number of each row's name, -1 for names not yet seen."""
        codes, distinct = factorized(names)
        return self._look_up(distinct)[codes]

    def _look_up(self, distinct: Sequence[str]) -> np.ndarray:
        return np.array([self._numbers.get(name, -1) for name in distinct], np.int64)


def factorized(names: pd.Series) -> tuple[np.ndarray, Sequence[str]]:
    """Returns the code of each name, and the distinct names in order of first appearance."""
    codes, distinct = pd.factorize(names)
    return codes, list(distinct)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and spread of values in groups.

    Attributes:
      keys: int64 [K] the groups, ascending.
      counts: int64 [K] values in each.
      means: float64 [K].
      squares: float64 [K] sum of squared deviations from the mean.
    """

    keys: np.ndarray
    counts: np.ndarray
    means: np.ndarray
    squares: np.ndarray

    @property
    def deviations(self) -> np.ndarray:
        """float64 [K] population standard deviation, 0 for a single value."""
        return np.sqrt(self.squares / self.counts)

    def dense(self, groups: int) -> "Moments":
        """The same for the groups 0 ... groups-1; those without values have count 0, mean NaN."""
        counts = np.zeros(groups, np.int64)
        means, squares = np.full((2, groups), np.nan)
        counts[self.keys], means[self.keys], squares[self.keys] = (
            self.counts,
            self.means,
            self.squares,
        )
        return Moments(np.arange(groups), counts, means, squares)


class RunningMoments:
    """Moments of groups whose values come a piece at a time.

    Deviations are taken from means, never as a difference of large sums, so that the spread of
    nearly equal cosines is exact.
    """

    def __init__(self) -> None:
        self._merged = pooled([])
        self._pending: list[Moments] = []

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Adds values [rows] of groups `keys` int64 [rows]."""
        self._pending.append(moments_of(keys, values))
        waiting = sum(len(each.keys) for each in self._pending)
        # Merging only when as much waits as is merged already keeps the whole work near linear.
        if waiting > max(len(self._merged.keys), _MERGE_ROWS):
            self.result()

    def result(self) -> Moments:
        """Returns the moments of all values added so far."""
        self._merged = pooled([self._merged, *self._pending])
        self._pending = []
        return self._merged


def moments_of(keys: np.ndarray, values: np.ndarray) -> Moments:
    """Returns the moments of values [rows] of groups `keys` int64 [rows]."""
    ones, zeros = np.ones(len(keys), np.int64), np.zeros(len(keys))
    return pooled([Moments(keys, ones, np.asarray(values, np.float64), zeros)])


def pooled(parts: Sequence[Moments]) -> Moments:
    """Returns the moments of all values of some parts, each group of which may lie in several.

    The spread is that within the parts and that of their means around the mean of all.
    """
    if not parts:
        return Moments(*np.zeros((2, 0), np.int64), *np.zeros((2, 0)))
    keys, counts, means, squares = (
        np.concatenate([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(Moments)
    )
    distinct, group = np.unique(keys, return_inverse=True)
    total = np.bincount(group, counts, len(distinct))
    mean = np.bincount(group, counts * means, len(distinct)) / total
    apart = means - mean[group]
    square = np.bincount(group, squares + counts * apart**2, len(distinct))
    return Moments(distinct, total.astype(np.int64), mean, square)


def fraction_between(moments: Moments) -> float:
    """Returns the fraction of the variance of all values that lies between groups; NaN without."""
    known = moments.counts > 0
    if not known.any():
        return float("nan")
    counts, means = moments.counts[known], moments.means[known]
    between = (counts * (means - np.average(means, weights=counts)) ** 2).sum()
    whole = between + moments.squares[known].sum()
    return float(between / whole) if whole > 0 else float("nan")


def blocks_of(sizes: np.ndarray, max_rows: int) -> list[range]:
    """Cuts groups of these sizes, in order, into runs that hold at most `max_rows` rows together.

    A single larger group is a run of its own.
    """
    blocks, start, held = [], 0, 0
    for i, size in enumerate(sizes.tolist()):
        if i > start and held + size > max_rows:
            blocks.append(range(start, i))
            start, held = i, 0
        held += size
    return [*blocks, range(start, len(sizes))] if len(sizes) else []
