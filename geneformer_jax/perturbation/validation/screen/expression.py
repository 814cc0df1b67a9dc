"""Measured expression of groups of cells: pseudobulks, and which genes differ from the controls.

Each group has two halves of cells, so that what is measured can be compared with itself.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.stats import ttest_ind_from_stats

from geneformer_jax.inference.counts import counts_per_10k, token_columns
from geneformer_jax.perturbation.statistics.rank_sums import false_discovery_rates

HALVES = 2
# Size factors rest on genes of which at least so many counts are expected, or else on totals.
_MIN_COUNT, _MIN_GENES = 10, 20
_PRIOR_COUNT = 1.0
# Cells of a group that must be expected to express a gene for it to be tested. In random groups of
# 5 to 50 real cells, rarer genes make up most of what a t-test calls (benchmarks/LOG.md).
MIN_EXPECTED = 3


class Expression(NamedTuple):
    """Counts of G groups of cells, the controls last, in two halves, for V tokens.

    Attributes:
      cells: int64 [G, 2].
      expressing: int64 [G, 2, V] how many of them have a count of the gene.
      sums: float64 [G, 2, V] raw counts, the pseudobulks.
      means: float64 [G, 2, V] of log(1 + counts per 10,000).
      squares: float64 [G, 2, V] sum of its squared deviations from the mean.
    """

    cells: np.ndarray
    expressing: np.ndarray
    sums: np.ndarray
    means: np.ndarray
    squares: np.ndarray

    def differential(self, half: int) -> "Differential":
        """Compares the cells of each perturbation in one half with the controls of that half.

        By Student's t-test: with one variance for both, a gene that no cell of a small group
        happens to express is not taken for one without variance.
        """
        cells, means, squares = self.cells[:, half], self.means[:, half], self.squares[:, half]
        deviations = np.sqrt(squares / np.maximum(cells - 1, 1)[:, None])
        of_controls = means[-1:], deviations[-1:], cells[-1:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            test = ttest_ind_from_stats(
                means[:-1], deviations[:-1], cells[:-1, None], *of_controls, equal_var=True
            )
        tested = self._expected(half) >= MIN_EXPECTED
        p_values = np.where(tested, test.pvalue, np.nan)
        return Differential(
            statistics=np.where(tested, test.statistic, np.nan),
            rates=np.stack([false_discovery_rates(each) for each in p_values]),
            fold_changes=fold_changes(self.sums[:-1, half], self.sums[-1, half]),
        )

    def _expected(self, half: int) -> np.ndarray:
        """Cells of each perturbation that would express a gene, were it as in the controls."""
        cells, expressing = self.cells[:, half, None], self.expressing[:, half]
        fraction = (expressing[:-1] + expressing[-1:]) / (cells[:-1] + cells[-1:])
        return fraction * cells[:-1]


class Differential(NamedTuple):
    """How P perturbations differ from the controls.

    Attributes:
      statistics: float64 [P, V] Student's t of log(1 + counts per 10,000); NaN where the gene is
        too rare to be tested.
      rates: float64 [P, V] its false discovery rates, within each perturbation.
      fold_changes: float64 [P, V] log2, of pseudobulks.
    """

    statistics: np.ndarray
    rates: np.ndarray
    fold_changes: np.ndarray


def split_halves(groups: np.ndarray, seed: int) -> np.ndarray:
    """Splits the cells of each group at random; int64 [cells], 0 or 1."""
    order = np.random.default_rng(seed).permutation(len(groups))
    by_group = order[np.argsort(groups[order], kind="stable")]
    halves = np.empty(len(groups), np.int64)
    first = np.searchsorted(groups[by_group], groups[by_group], "left")
    halves[by_group] = (np.arange(len(groups)) - first) % HALVES
    return halves


def measure_expression(
    batches: Iterable[tuple[np.ndarray, sparse.csr_matrix, np.ndarray]],
    tokens: np.ndarray,
    groups: np.ndarray,
    halves: np.ndarray,
    shape: tuple[int, int],
) -> Expression:
    """Sums up the counts of groups of cells.

    Args:
      batches: (positions of cells, raw counts [cells, columns], totals [cells]).
      tokens: int [columns] gene of each column, -1 for none; the columns of one gene are summed.
      groups: int64 [cells] 0 to G-1, negative ones take no part.
      halves: int64 [cells].
      shape: (G, V).
    """
    genes = token_columns(tokens, shape[1])
    cells = np.zeros(HALVES * shape[0], np.int64)
    expressing, raw, logged, squared = np.zeros((4, HALVES * shape[0], shape[1]))
    for positions, counts, totals in batches:
        group = np.where(groups[positions] < 0, -1, groups[positions] * HALVES + halves[positions])
        of_group = _indicator(group, len(cells))
        own = counts.astype(np.float64) @ genes
        log = counts_per_10k(sparse.csr_matrix(own), totals).log1p()
        cells += np.bincount(group[group >= 0], minlength=len(cells))
        parts = (expressing, own > 0), (raw, own), (logged, log), (squared, log.multiply(log))
        for total, values in parts:
            total += (of_group @ values).toarray()
    means = logged / np.maximum(cells, 1)[:, None]
    squares = np.maximum(squared - logged * means, 0)
    split = shape[0], HALVES
    return Expression(
        cells.reshape(split),
        *(each.reshape(*split, -1) for each in (expressing.astype(np.int64), raw, means, squares)),
    )


def fold_changes(sums_PV: np.ndarray, controls_V: np.ndarray) -> np.ndarray:
    """Returns log2 fold changes of pseudobulks, float64 [P, V].

    The controls are brought to the size of each pseudobulk by its size factor, and one count is
    added on both sides.
    """
    expected_PV = size_factors(sums_PV, controls_V)[:, None] * controls_V
    return np.log2((sums_PV + _PRIOR_COUNT) / (expected_PV + _PRIOR_COUNT))


def size_factors(sums_PV: np.ndarray, controls_V: np.ndarray) -> np.ndarray:
    """Returns the size of each pseudobulk relative to the controls, float64 [P].

    The median over genes of the ratio of counts, as of DESeq (Anders & Huber 2010), which a few
    changed genes do not move as they move a ratio of totals. Where fewer than 20 genes are
    expected to have 10 counts it is the ratio of totals.
    """
    factors = sums_PV.sum(axis=1) / max(controls_V.sum(), 1)
    for number, (sums_V, factor) in enumerate(zip(sums_PV, factors.copy(), strict=True)):
        counted = controls_V * factor >= _MIN_COUNT
        if counted.sum() >= _MIN_GENES:
            factors[number] = np.median(sums_V[counted] / controls_V[counted])
    return factors


def _indicator(groups: np.ndarray, number: int) -> sparse.csr_array:
    """float64 [number, cells], 1 where a cell is of a group."""
    cells = np.flatnonzero(groups >= 0)
    return sparse.csr_array((np.ones(len(cells)), (groups[cells], cells)), (number, len(groups)))
