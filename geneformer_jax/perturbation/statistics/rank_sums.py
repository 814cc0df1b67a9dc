"""Rank sums against a background, and false discovery rates."""

import dataclasses
import functools

import numpy as np
import pandas as pd
from scipy.special import ndtr
from scipy.stats import false_discovery_control

from geneformer_jax.perturbation.statistics.moments import factorized


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
      max_rows: rows to keep; fewer rows are all kept.
      seed: another seed gives another sample.
    """

    def __init__(self, max_rows: int, seed: int):
        self._max_rows, self._salt = max_rows, f"{seed:016d}"[-16:]
        self._keys = np.zeros(0, np.uint64)
        self._values, self._owners = np.zeros(0), np.zeros(0, np.int64)

    def add(
        self, cells: pd.Series, edits: pd.Series, owners: np.ndarray, values: np.ndarray
    ) -> None:
        """Offers rows: cell ids, edit names, numbers of the edits and values, each [rows]."""
        keys = _mixed(self._hashes(cells), self._hashes(edits))
        if len(self._keys) == self._max_rows:
            chosen = keys < self._keys.max()
            keys, owners, values = keys[chosen], owners[chosen], values[chosen]
        self._keys = np.concatenate([self._keys, keys])
        self._values = np.concatenate([self._values, values.astype(np.float64)])
        self._owners = np.concatenate([self._owners, owners])
        if len(self._keys) > self._max_rows:
            kept = np.argpartition(self._keys, self._max_rows)[: self._max_rows]
            self._keys, self._values = self._keys[kept], self._values[kept]
            self._owners = self._owners[kept]

    def background(self) -> Background:
        """Returns the rows kept."""
        order = np.argsort(self._values, kind="stable")
        return Background(self._values[order], self._owners[order])

    def _hashes(self, names: pd.Series) -> np.ndarray:
        codes, distinct = factorized(names)
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
