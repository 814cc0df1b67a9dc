"""What the statistics of shifts are made of: groups, running moments, a background, rank sums.

Rows come a piece at a time and nothing here keeps them: memory grows with the number of edits and
with the size of the background, never with cells x genes.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr
from scipy.stats import false_discovery_control

_MERGE_ROWS = 1 << 20


class Numbering:
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
        codes, distinct = _factorized(names)
        first = np.empty(len(distinct), np.int64)
        first[codes[::-1]] = np.arange(len(codes))[::-1]
        for name, row in zip(distinct, first, strict=True):
            if name not in self._numbers:
                self._numbers[name] = len(self._numbers)
                self._symbols.append(str(symbols.iloc[row]))
        return self._look_up(distinct)[codes]

    def find(self, names: pd.Series) -> np.ndarray:
        """Returns int64 [rows], the number of each row's name, -1 for names not yet seen."""
        codes, distinct = _factorized(names)
        return self._look_up(distinct)[codes]

    def _look_up(self, distinct: Sequence[str]) -> np.ndarray:
        return np.array([self._numbers.get(name, -1) for name in distinct], np.int64)


def _factorized(names: pd.Series) -> tuple[np.ndarray, Sequence[str]]:
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
        self._merged = _pooled([])
        self._pending: list[Moments] = []

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Adds values [rows] of groups `keys` int64 [rows]."""
        values = np.asarray(values, np.float64)
        rows = Moments(keys, np.ones(len(keys), np.int64), values, np.zeros(len(keys)))
        self._pending.append(_pooled([rows]))
        waiting = sum(len(each.keys) for each in self._pending)
        # Merging only when as much waits as is merged already keeps the whole work near linear.
        if waiting > max(len(self._merged.keys), _MERGE_ROWS):
            self.result()

    def result(self) -> Moments:
        """Returns the moments of all values added so far."""
        self._merged = _pooled([self._merged, *self._pending])
        self._pending = []
        return self._merged


def _pooled(parts: Sequence[Moments]) -> Moments:
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


@dataclasses.dataclass(frozen=True)
class Background:
    """Values that shifts are compared with.

    Attributes:
      values: float64 [N], ascending.
      owners: int64 [N], the edit that each is of.
    """

    values: np.ndarray
    owners: np.ndarray

    def below(self, values: np.ndarray) -> np.ndarray:
        """float64 [rows], the background values below each value, equal ones counted half."""
        left = np.searchsorted(self.values, values, "left")
        return (left + np.searchsorted(self.values, values, "right")) / 2

    def own_below(self, values: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """The same, counting only background values of the value's own edit."""
        first = owners * self._width
        left, right = (
            np.searchsorted(self._places, first + np.searchsorted(self.values, values, side))
            for side in ("left", "right")
        )
        return (left + right) / 2 - np.searchsorted(self._places, first)

    @property
    def _width(self) -> int:
        return len(self.values) + 1

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """Owner and place of every value in one number, ascending."""
        places = np.searchsorted(self.values, self.values, "left")
        return np.sort(self.owners * self._width + places)

    def owned(self, edits: int) -> np.ndarray:
        """int64 [edits], background values of each edit."""
        return np.bincount(self.owners, minlength=edits)


class RunningSample:
    """A uniform sample of rows without replacement, the same in whatever order rows come.

    The rows with the smallest hash of (seed, cell, edit) are kept. So neither the number of files
    nor of processes that wrote them changes the sample, unlike the original's, which draws with
    Python's random generator in the order of its files.

    Args:
      most: rows to keep; fewer rows are all kept.
      seed: another seed gives another sample.
    """

    def __init__(self, most: int, seed: int):
        self._most, self._salt = most, f"{seed:016d}"[-16:]
        self._keys = np.zeros(0, np.uint64)
        self._values, self._owners = np.zeros(0), np.zeros(0, np.int64)

    def add(
        self, cells: pd.Series, edits: pd.Series, owners: np.ndarray, values: np.ndarray
    ) -> None:
        """Offers rows: cell ids, edit names, numbers of the edits and values, each [rows]."""
        keys = _mixed(self._hashes(cells), self._hashes(edits))
        if len(self._keys) == self._most:
            chosen = keys < self._keys.max()
            keys, owners, values = keys[chosen], owners[chosen], values[chosen]
        self._keys = np.concatenate([self._keys, keys])
        self._values = np.concatenate([self._values, values.astype(np.float64)])
        self._owners = np.concatenate([self._owners, owners])
        if len(self._keys) > self._most:
            kept = np.argpartition(self._keys, self._most)[: self._most]
            self._keys, self._values = self._keys[kept], self._values[kept]
            self._owners = self._owners[kept]

    def background(self) -> Background:
        """Returns the rows kept."""
        order = np.argsort(self._values, kind="stable")
        return Background(self._values[order], self._owners[order])

    def _hashes(self, names: pd.Series) -> np.ndarray:
        codes, distinct = _factorized(names)
        hashed = pd.util.hash_array(
            np.array(distinct, object), hash_key=self._salt, categorize=False
        )
        return hashed[codes]


def _mixed(cells: np.ndarray, edits: np.ndarray) -> np.ndarray:
    """One evenly spread hash of two (the finaliser of splitmix64)."""
    mixed = cells * np.uint64(0x9E3779B97F4A7C15) + edits
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def rank_sum_test(
    below: np.ndarray, counts: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided Wilcoxon rank-sum tests of many groups, from sums instead of from all values.

    The numbers of `scipy.stats.ranksums`, which the original uses: the normal approximation, ties
    given their middle rank, the variance not corrected for ties (with cosines ties are rare) and no
    continuity correction. With fewer than about ten values it is rough: a single value cannot have
    a p-value below 0.08 however extreme it is.

    Args:
      below: [K] sum over a group's values of the other values below each, ties counted half.
      counts: [K] values of the group.
      others: [K] or scalar, values that it is compared with.

    Returns:
      (p-values [K]; rank-biserial correlations [K], from -1, all values below the others, to 1).
      Both are NaN where either side has no values.
    """
    pairs = np.asarray(counts * others, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (below - pairs / 2) / np.sqrt(pairs * (counts + others + 1) / 12)
        return 2 * ndtr(-np.abs(z)), 2 * below / pairs - 1


def false_discovery_rates(p_values: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values [K]; NaN stays NaN and does not count as a test."""
    adjusted = np.full(len(p_values), np.nan)
    tested = ~np.isnan(p_values)
    if tested.any():
        adjusted[tested] = false_discovery_control(p_values[tested], method="bh")
    return adjusted


def blocks_of(sizes: np.ndarray, most: int) -> list[range]:
    """Cuts groups of these sizes, in order, into runs that hold at most `most` rows together.

    A single larger group is a run of its own.
    """
    blocks, start, held = [], 0, 0
    for i, size in enumerate(sizes.tolist()):
        if i > start and held + size > most:
            blocks.append(range(start, i))
            start, held = i, 0
        held += size
    return [*blocks, range(start, len(sizes))] if len(sizes) else []
