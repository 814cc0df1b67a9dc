"""Are the genes of a list attended more than others, by head, and more than genes of like rank?"""

import bisect

import numpy as np
import pandas as pd
from scipy import stats

from geneformer_jax.attention_analysis.statistics import GeneMeans

SIGNIFICANT = 0.05
# The width that is usual for matching on a score (Austin, Pharmaceutical Statistics 2011).
MAX_DISTANCE = 0.2
# Of 3 genes against 3, the smallest p that a rank-sum test can have is 0.1.
MIN_PAIRS = 4


def compare_genes(
    means: GeneMeans, first: np.ndarray, second: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """Tests for each head whether some genes are attended more than others.

    Rank-sum tests (Mann-Whitney U, two-sided, ties corrected) on the genes' mean received
    attention; Benjamini-Hochberg over all heads. The effect is the rank-biserial correlation, from
    -1 to 1. The same again of genes of like rank only, see `match_by_rank`, so that rank explains
    nothing: NaN where fewer than 4 pairs are found.

    Args:
      means: of the cells.
      first: tokens of the genes asked about.
      second: tokens of the genes to compare them with.
      seed: of the order in which genes choose their partner.

    Returns:
      A row per head: layer, head, n_first, n_second, effect, p, fdr, prefers (fdr < 0.05 and effect
      > 0), and n_matched, effect_matched, p_matched, fdr_matched, prefers_matched.
    """
    _, L, N = means.received.shape
    layer, head = (index.ravel() + 1 for index in np.indices((L, N)))
    table = pd.DataFrame({"layer": layer, "head": head})
    table["n_first"], table["n_second"] = len(first), len(second)
    table = table.assign(**_tested(means, first, second))
    pairs = match_by_rank(means.rank[first], means.rank[second], seed)
    table["n_matched"] = len(pairs)
    matched = _tested(means, first[pairs[:, 0]], second[pairs[:, 1]], MIN_PAIRS)
    return table.assign(**{f"{name}_matched": values for name, values in matched.items()})


def has_own_matching(heads: pd.DataFrame) -> bool:
    """Whether genes of like rank were tested, and are not simply all genes of both sides.

    Args:
      heads: rows of one comparison, of `compare_genes`.
    """
    is_whole = (heads["n_matched"] == heads["n_first"]) & (heads["n_matched"] == heads["n_second"])
    return bool((heads["p_matched"].notna() & ~is_whole).any())


def _tested(
    means: GeneMeans, first: np.ndarray, second: np.ndarray, least: int = 1
) -> dict[str, np.ndarray]:
    """Returns effect, p, fdr and prefers, [L * N] each; NaN of fewer than `least` genes."""
    received = means.received.reshape(len(means.received), -1)
    a, b = received[first], received[second]
    if min(len(a), len(b)) < least:
        effect = p = fdr = np.full(a.shape[1], np.nan)
    else:
        tested = stats.mannwhitneyu(a, b, axis=0, alternative="two-sided")
        effect, p = 2 * tested.statistic / (len(a) * len(b)) - 1, tested.pvalue
        fdr = stats.false_discovery_control(p)
    return {"effect": effect, "p": p, "fdr": fdr, "prefers": (fdr < SIGNIFICANT) & (effect > 0)}


def match_by_rank(first: np.ndarray, second: np.ndarray, seed: int = 0) -> np.ndarray:
    """Pairs each gene of the smaller side with the nearest still free one of the other.

    Nearest in the logarithm of the rank, on which attention depends more evenly than on the rank. A
    gene whose nearest is further than `MAX_DISTANCE` standard deviations (of log rank, the root of
    both sides' mean variance) goes without a partner.

    Args:
      first, second: mean ranks of genes, from 1.
      seed: of the order in which genes choose.

    Returns:
      int [pairs, 2] positions in `first` and in `second`; each stands in one pair at most.
    """
    swapped = len(first) > len(second)
    few, many = map(np.log, (second, first) if swapped else (first, second))
    furthest = MAX_DISTANCE * np.sqrt((few.var() + many.var()) / 2)
    order = np.argsort(many, kind="stable")
    values, free = list(many[order]), list(order)
    pairs = []
    for index in np.random.default_rng(seed).permutation(len(few)):
        at = _nearest(values, few[index])
        if abs(values[at] - few[index]) <= furthest:
            values.pop(at)
            pairs.append((int(index), int(free.pop(at))))
    pairs = np.array(sorted(pairs), int).reshape(-1, 2)
    return pairs[:, ::-1] if swapped else pairs


def _nearest(ordered: list[float], value: float) -> int:
    """Returns the place of the nearest of some ordered values; of two, the lower one's."""
    at = bisect.bisect_left(ordered, value)
    is_lower = at == len(ordered) or (at and value - ordered[at - 1] <= ordered[at] - value)
    return at - 1 if is_lower else at
