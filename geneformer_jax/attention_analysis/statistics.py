"""Statistics of the attention of many cells: by gene list, by rank, by layer, by group of cells.

Pure functions from totals to tables. Received attention is relative: 1 is an even share of a cell's
attention. What rank alone explains is taken off by comparing a gene with the mean of all genes at
its ranks, or with genes of like mean rank.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from geneformer_jax.attention_analysis.sums import (
    EVEN_SHARE,
    GENE_MEASURES,
    RANK_EDGES,
    AttentionTotals,
    CellMeasures,
)

SIGNIFICANT = 0.05
RESAMPLES = 1_000
RECEIVED, FROM_EVEN, ENTROPY, TO_TOP = range(len(GENE_MEASURES))
HOLDS, FAILS, UNDECIDED, TOO_FEW = "holds", "does not hold", "undecided", "needs 3 layers or more"


class Statement(NamedTuple):
    """One of the paper's statements about layers, by thirds of the layers: 0 early to 2 last."""

    text: str
    measure: str
    third: int


# Nature 2023, "attention weights of Geneformer" (Fig. 4, Extended Data Fig. 9).
STATEMENTS = (
    Statement("heads of early layers are the most diverse", "diversity", 0),
    Statement("middle layers attend the most broadly", "breadth", 1),
    Statement("last layers attend the highest ranks the most", "top", 2),
)
THIRDS = ("early", "middle", "last")


class GeneMeans(NamedTuple):
    """Means over the cells of one group; genes that no cell has are NaN.

    Attributes:
      cells: [V] cells that have the gene.
      rank: [V] mean rank, from 1.
      received: [V, L, N] relative attention received.
      deviation: [V, L, N] standard deviation of that between cells.
      expected: [V, L, N] mean of all genes at the ranks where this gene stands.
      breadth: [V, L, N] tokens that the gene attends in effect, exp(mean entropy).
      to_top: [V, L, N] weight that it gives to the highest tenth of ranks.
    """

    cells: np.ndarray
    rank: np.ndarray
    received: np.ndarray
    deviation: np.ndarray
    expected: np.ndarray
    breadth: np.ndarray
    to_top: np.ndarray


def of_all_groups(totals: AttentionTotals) -> AttentionTotals:
    """Returns the totals of all cells as those of a single group."""
    pairs = {"pair_cells": totals.pair_cells, "pair_sums": totals.pair_sums}
    summed = {name: leaf.sum(axis=0, keepdims=True) for name, leaf in totals._asdict().items()}
    return AttentionTotals(**(summed | pairs))


def gene_means(totals: AttentionTotals, group: int = 0) -> GeneMeans:
    """Returns the means of one group's totals."""
    cells = totals.gene_cells[group]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = totals.gene_sums[group] / cells[:, None, None, None]
        at_ranks = totals.rank_sums[group][..., RECEIVED] / totals.rank_cells[group][:, None, None]
        bins = totals.gene_bins[group] / cells[:, None]
        rank = totals.gene_ranks[group] / cells
    received = means[..., RECEIVED]
    expected = np.einsum("vr,rln->vln", bins, np.nan_to_num(at_ranks))
    variance = _variance(means)
    # With cells - 1 as the divisor; unknown for a single cell.
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.sqrt(variance * (cells / (cells - 1))[:, None, None])
    deviation[cells < 2] = np.nan
    breadth, to_top = np.exp(means[..., ENTROPY]), means[..., TO_TOP]
    return GeneMeans(cells, rank, received, deviation, expected, breadth, to_top)


def _variance(means: np.ndarray) -> np.ndarray:
    """Returns the variance of received attention, from means of GENE_MEASURES or RANK_MEASURES.

    Squares are taken of the distance from an even share, which most heads give most genes: of the
    whole values, they and the square of the mean would be large and nearly equal numbers.
    """
    return np.maximum(means[..., FROM_EVEN] - (means[..., RECEIVED] - EVEN_SHARE) ** 2, 0)


def gene_table(means: GeneMeans, ids: np.ndarray, symbols: np.ndarray, group: str) -> pd.DataFrame:
    """Returns one row for each gene found, layer and head (both counted from 1)."""
    found = np.flatnonzero(means.cells > 0)
    _, L, N = means.received.shape
    each = L * N
    layer, head = (index.ravel() + 1 for index in np.indices((L, N)))
    flat = {name: getattr(means, name)[found].reshape(-1) for name in GeneMeans._fields[2:]}
    excess = flat["received"] - flat["expected"]
    columns = {
        "group": pd.Categorical.from_codes(np.zeros(len(found) * each, np.int8), [group]),
        "gene_id": _repeated(ids[found], each),
        "symbol": _repeated(symbols[found], each),
        "layer": np.tile(layer, len(found)).astype(np.int16),
        "head": np.tile(head, len(found)).astype(np.int16),
        "n_cells": np.repeat(means.cells[found], each),
        "mean_rank": np.repeat(means.rank[found], each),
        "received": flat["received"],
        "received_sd": flat["deviation"],
        "expected_by_rank": flat["expected"],
        "excess": excess,
        "excess_se": flat["deviation"] / np.sqrt(np.repeat(means.cells[found], each)),
        "given_breadth": flat["breadth"],
        "given_to_top": flat["to_top"],
    }
    return pd.DataFrame(columns)


def compare_genes(
    means: GeneMeans, first: np.ndarray, second: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """Tests for each head whether some genes are attended more than others.

    Rank-sum tests (Mann-Whitney U, two-sided, ties corrected) on the genes' mean received
    attention; Benjamini-Hochberg over all heads. The effect is the rank-biserial correlation, from
    -1 to 1. The same again with each gene of the smaller side paired with the gene of the other
    side that has the nearest mean rank and is still free, so that rank explains nothing.

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
    pairs = match_by_rank(means.rank[first], means.rank[second], seed)
    matched = first[pairs[:, 0]], second[pairs[:, 1]]
    for suffix, (a, b) in (("", (first, second)), ("_matched", matched)):
        if suffix:
            table["n_matched"] = len(pairs)
        received = (means.received[tokens].reshape(len(tokens), L * N) for tokens in (a, b))
        tested = stats.mannwhitneyu(*received, axis=0, alternative="two-sided")
        table[f"effect{suffix}"] = 2 * tested.statistic / (len(a) * len(b)) - 1
        table[f"p{suffix}"] = tested.pvalue
        table[f"fdr{suffix}"] = stats.false_discovery_control(tested.pvalue)
        table[f"prefers{suffix}"] = (table[f"fdr{suffix}"] < SIGNIFICANT) & (
            table[f"effect{suffix}"] > 0
        )
    return table


def match_by_rank(first: np.ndarray, second: np.ndarray, seed: int = 0) -> np.ndarray:
    """Pairs each of the smaller side with the nearest still free one of the other.

    Returns:
      int [pairs, 2] positions in `first` and in `second`; each stands in one pair at most.
    """
    swapped = len(first) > len(second)
    few, many = (second, first) if swapped else (first, second)
    order = np.argsort(many, kind="stable")
    values, free = list(many[order]), list(order)
    pairs = []
    for index in np.random.default_rng(seed).permutation(len(few)):
        at = int(np.searchsorted(values, few[index]))
        if at == len(values) or (at and few[index] - values[at - 1] <= values[at] - few[index]):
            at -= 1
        values.pop(at)
        pairs.append((int(index), int(free.pop(at))))
    pairs = np.array(sorted(pairs), int).reshape(-1, 2)
    return pairs[:, ::-1] if swapped else pairs


def rank_table(totals: AttentionTotals, groups: Sequence[str]) -> pd.DataFrame:
    """Returns received attention by rank, a row per group, layer, head and bin of ranks."""
    _, _, L, N, _ = totals.rank_sums.shape
    until = np.append(np.array(RANK_EDGES[1:]) - 1, 0)
    parts = []
    for group, name in enumerate(groups):
        found = np.flatnonzero(totals.rank_cells[group])
        cells = totals.rank_cells[group][found]
        sums = totals.rank_sums[group][found].reshape(len(found), L * N, -1)
        means = sums / cells[:, None, None]
        variance = _variance(means)
        layer, head = (index.ravel() + 1 for index in np.indices((L, N)))
        parts.append(
            pd.DataFrame(
                {
                    "group": name,
                    "layer": np.tile(layer, len(found)),
                    "head": np.tile(head, len(found)),
                    "rank_from": np.repeat(np.array(RANK_EDGES)[found], L * N),
                    "rank_to": np.repeat(until[found], L * N),
                    "n": np.repeat(cells, L * N),
                    "received": means[..., RECEIVED].ravel(),
                    "received_sd": np.sqrt(variance).ravel(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def layer_table(cells: CellMeasures, seed: int = 0) -> pd.DataFrame:
    """Returns diversity, breadth and weight on top ranks, with 95 % intervals over cells.

    A row per measure and layer, and for breadth and top also per head (head 0: mean of all heads).
    """
    rows = []
    for measure, values in cells._asdict().items():
        values = values[..., None] if values.ndim == 2 else values
        _, L, N = values.shape
        by_head = [values.mean(axis=2)] + [values[..., n] for n in range(N if N > 1 else 0)]
        for head, of_head in enumerate(by_head):
            low, high = bootstrap_interval(of_head, seed)
            for layer in range(L):
                mean = of_head[:, layer].mean()
                rows.append((measure, layer + 1, head, mean, low[layer], high[layer]))
    return pd.DataFrame(rows, columns=["measure", "layer", "head", "mean", "low", "high"])


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % percentile interval of the mean over cells; values [cells, ...].

    All columns are drawn together. A single cell has no interval: NaN.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    batch = max(1, 4_000_000 // values.size)
    drawn = stats.bootstrap(
        (values,),
        np.mean,
        axis=0,
        n_resamples=RESAMPLES,
        batch=batch,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return drawn.confidence_interval.low, drawn.confidence_interval.high


def compare_thirds(cells: CellMeasures, seed: int = 0) -> pd.DataFrame:
    """Returns each statement's third of the layers less each other third, with 95 % intervals.

    Columns: statement, measure, third, compared_with, difference, low, high. Empty for a model of
    fewer than 3 layers.
    """
    rows = []
    columns = ["statement", "measure", "third", "compared_with", "difference", "low", "high"]
    L = cells.diversity.shape[1]
    if L < len(THIRDS):
        return pd.DataFrame(rows, columns=columns)
    for statement in STATEMENTS:
        values = getattr(cells, statement.measure)
        by_layer = values.mean(axis=2) if values.ndim == 3 else values
        layers = np.array_split(np.arange(L), len(THIRDS))
        thirds = np.stack([by_layer[:, each].mean(axis=1) for each in layers], axis=1)
        for other in range(len(THIRDS)):
            if other != statement.third:
                apart = (thirds[:, statement.third] - thirds[:, other])[:, None]
                low, high = bootstrap_interval(apart, seed)
                names = THIRDS[statement.third], THIRDS[other]
                head = statement.text, statement.measure, *names
                rows.append((*head, apart.mean(), low[0], high[0]))
    return pd.DataFrame(rows, columns=columns)


def verdicts(differences: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns whether each statement holds, a column for each model.

    It holds if both differences lie above 0 with their whole interval, does not hold if one lies
    below, and is undecided otherwise.
    """
    table = pd.DataFrame({"statement": [each.text for each in STATEMENTS]})
    for name, of_model in differences.items():
        table[name] = [
            _verdict(of_model[of_model["statement"] == each.text]) for each in STATEMENTS
        ]
    return table


def _verdict(rows: pd.DataFrame) -> str:
    if rows.empty:
        return TOO_FEW
    if (rows["low"] > 0).all():
        return HOLDS
    return FAILS if (rows["high"] < 0).any() else UNDECIDED


def group_table(
    means: GeneMeans, ids: np.ndarray, symbols: np.ndarray, group: str, min_cells: int
) -> pd.DataFrame:
    """Returns the genes of a group by how much more they are attended than their ranks explain.

    Columns: group, gene_id, symbol, n_cells, mean_rank, received and expected_by_rank (means over
    all heads), excess, excess_low (less two standard errors of each head), and the layer and head
    that exceed the most. Genes in fewer than `min_cells` cells are left out. From the highest
    excess_low down.
    """
    found = np.flatnonzero(means.cells >= min_cells)
    excess = (means.received - means.expected)[found]
    error = means.deviation[found] / np.sqrt(means.cells[found])[:, None, None]
    _, _, N = means.received.shape
    most = excess.reshape(len(found), -1).argmax(axis=1)
    table = pd.DataFrame(
        {
            "group": group,
            "gene_id": ids[found],
            "symbol": symbols[found],
            "n_cells": means.cells[found],
            "mean_rank": means.rank[found],
            "received": means.received[found].mean(axis=(1, 2)),
            "expected_by_rank": means.expected[found].mean(axis=(1, 2)),
            "excess": excess.mean(axis=(1, 2)),
            "excess_low": (excess - 2 * error).mean(axis=(1, 2)),
            "most_layer": most // N + 1,
            "most_head": most % N + 1,
        }
    )
    return table.sort_values("excess_low", ascending=False, ignore_index=True)


def pair_table(totals: AttentionTotals, ids: Sequence[str], symbols: Sequence[str]) -> pd.DataFrame:
    """Returns the relative weight that one chosen gene gives another, per layer and head."""
    S, _, L, N = totals.pair_sums.shape
    query, key, layer, head = (index.ravel() for index in np.indices((S, S, L, N)))
    cells = totals.pair_cells[query, key]
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = totals.pair_sums.ravel() / cells
    ids, symbols = np.asarray(ids, object), np.asarray(symbols, object)
    table = pd.DataFrame(
        {
            "query": ids[query],
            "query_symbol": symbols[query],
            "key": ids[key],
            "key_symbol": symbols[key],
            "layer": layer + 1,
            "head": head + 1,
            "n_cells": cells,
            "weight": weight,
        }
    )
    return table[table["n_cells"] > 0].reset_index(drop=True)


def _repeated(values: np.ndarray, times: int) -> pd.Categorical:
    categories, codes = np.unique(values.astype(str), return_inverse=True)
    return pd.Categorical.from_codes(np.repeat(codes, times), categories)
