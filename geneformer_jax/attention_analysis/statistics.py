"""Attention of many cells by gene, by rank, by group of cells and between chosen genes.

Pure functions from totals to tables. Received attention is relative: 1 is an even share of a cell's
attention. What rank alone explains is taken off by comparing a gene with the mean of all genes at
its ranks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_jax.attention_analysis.sums import (
    EVEN_SHARE,
    GENE_MEASURES,
    RANK_EDGES,
    AttentionTotals,
)

RECEIVED, FROM_EVEN, ENTROPY, TO_TOP = range(len(GENE_MEASURES))


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
