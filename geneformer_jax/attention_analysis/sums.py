"""Attention of many cells as running sums: by gene, by rank, and between chosen genes.

A key that got the same weight as every other token of its cell would receive 1/T. Received
attention is therefore multiplied by the cell's T tokens: 1 is an even share, in cells of any
length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geneformer_jax.attention_analysis.profile import AttentionProfile

# Ranks in bins of about a tenth of a decade, single ranks at the top.
_EDGES = np.unique(np.round(10 ** (np.arange(2, 40) / 10)).astype(int))
RANK_EDGES = tuple(int(edge) for edge in np.concatenate([[1], _EDGES]))
# Of a cell's genes, the fraction that counts as its top ranks.
TOP_FRACTION = 0.1
# Received attention of a key that got the same weight as every other.
EVEN_SHARE = 1.0
GENE_MEASURES = ("received", "squared distance from even", "given entropy", "given to top")
RANK_MEASURES = GENE_MEASURES[:2]


class AttentionTotals(NamedTuple):
    """Sums over cells. G groups of cells, V tokens, R bins of rank, L layers, N heads.

    Attributes:
      gene_cells: [G, V] cells that have the gene.
      gene_ranks: [G, V] sum of its ranks, counted from 1.
      gene_bins: [G, V, R] cells in which its rank is in a bin.
      gene_sums: [G, V, L, N, K] sums of GENE_MEASURES.
      rank_cells: [G, R] genes at these ranks, over all cells.
      rank_sums: [G, R, L, N, K] sums of RANK_MEASURES.
      pair_cells: [S, S] cells that have both of two chosen genes.
      pair_sums: [S, S, L, N] sums of T times the weight that one gives to the other (query, key).
    """

    gene_cells: np.ndarray | jax.Array
    gene_ranks: np.ndarray | jax.Array
    gene_bins: np.ndarray | jax.Array
    gene_sums: np.ndarray | jax.Array
    rank_cells: np.ndarray | jax.Array
    rank_sums: np.ndarray | jax.Array
    pair_cells: np.ndarray | jax.Array
    pair_sums: np.ndarray | jax.Array

    @classmethod
    def empty(cls, groups: int, tokens: int, chosen: int, layers: int, heads: int):
        """Returns the totals of no cells, float32 and int32."""
        G, V, R, S, L, N = groups, tokens, len(RANK_EDGES), chosen, layers, heads
        return cls(
            np.zeros((G, V), np.int32),
            np.zeros((G, V), np.float32),
            np.zeros((G, V, R), np.int32),
            np.zeros((G, V, L, N, len(GENE_MEASURES)), np.float32),
            np.zeros((G, R), np.int32),
            np.zeros((G, R, L, N, len(RANK_MEASURES)), np.float32),
            np.zeros((S, S), np.int32),
            np.zeros((S, S, L, N), np.float32),
        )


class CellMeasures(NamedTuple):
    """What is kept of each cell, float32.

    Attributes:
      diversity: [cells, L] mean Jensen-Shannon distance (base 2, 0 to 1) between the received
        attention of two heads; NaN for a single head.
      breadth: [cells, L, N] ranks that a query attends in effect, exp(entropy) at the mean entropy
        of its queries, as a fraction of the cell's tokens.
      top: [cells, L, N] weight on the highest tenth of its ranks, mean over queries.
    """

    diversity: np.ndarray | jax.Array
    breadth: np.ndarray | jax.Array
    top: np.ndarray | jax.Array


class GenePlaces(NamedTuple):
    """Which positions are genes, and which of them are top ranks; [B, T].

    Attributes:
      is_gene: a real token that is not special.
      rank: of genes, from 1.
      is_top: among the highest tenth of the cell's ranks.
    """

    is_gene: jax.Array
    rank: jax.Array
    is_top: jax.Array


def place_genes(tokens_BT: jax.Array, lengths_B: jax.Array, first_gene_token: int) -> GenePlaces:
    """Returns where the genes stand in their cells."""
    is_real_BT = jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None]
    is_gene_BT = is_real_BT & (tokens_BT >= first_gene_token)
    rank_BT = jnp.cumsum(is_gene_BT, axis=1)
    most_B1 = jnp.ceil(TOP_FRACTION * is_gene_BT.sum(axis=1, keepdims=True))
    return GenePlaces(is_gene_BT, rank_BT, is_gene_BT & (rank_BT <= most_B1))


def find_chosen(tokens_BT: jax.Array, is_gene_BT: jax.Array, chosen_S: jax.Array) -> jax.Array:
    """Returns the positions of chosen tokens, int32 [B, S]; T where a cell has not such a gene."""
    T = tokens_BT.shape[1]
    here_BST = (tokens_BT[:, None] == chosen_S[:, None]) & is_gene_BT[:, None]
    return jnp.where(here_BST.any(-1), here_BST.argmax(-1), T).astype(jnp.int32)


def add_profile(
    totals: AttentionTotals,
    profile: AttentionProfile,
    places: GenePlaces,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    groups_B: jax.Array,
    chosen_BS: jax.Array,
) -> AttentionTotals:
    """Returns `totals` with the cells of a batch added; `groups_B` numbers each cell's group."""
    G = len(totals.gene_cells)
    received_LBNT = profile.received_LBNT * lengths_B[:, None, None]
    from_even_LBNT = (received_LBNT - EVEN_SHARE) ** 2
    measures = received_LBNT, from_even_LBNT, profile.entropy_LBNT, profile.top_LBNT
    sums_BTLNK = jnp.stack([jnp.moveaxis(each, (0, 2), (2, 3)) for each in measures], axis=-1)
    # What is no gene is sent beyond the tables, where additions are dropped.
    group_BT = jnp.where(places.is_gene, groups_B[:, None], G)
    bin_BT = jnp.searchsorted(jnp.array(RANK_EDGES), places.rank, side="right") - 1
    genes, ranks = (group_BT, tokens_BT), (group_BT, bin_BT)

    def added(sums, at, values):
        return sums.at[at].add(values, mode="drop")

    has_BS = (chosen_BS < lengths_B[:, None]).astype(jnp.int32)
    pairs_LBNSS = profile.pairs_LBNSS * lengths_B[:, None, None, None]
    return AttentionTotals(
        added(totals.gene_cells, genes, 1),
        added(totals.gene_ranks, genes, places.rank.astype(jnp.float32)),
        added(totals.gene_bins, (*genes, bin_BT), 1),
        added(totals.gene_sums, genes, sums_BTLNK),
        added(totals.rank_cells, ranks, 1),
        added(totals.rank_sums, ranks, sums_BTLNK[..., : len(RANK_MEASURES)]),
        totals.pair_cells + jnp.einsum("bs,bt->st", has_BS, has_BS),
        totals.pair_sums + jnp.einsum("lbnst->stln", pairs_LBNSS),
    )


def measure_cells(
    profile: AttentionProfile, places: GenePlaces, lengths_B: jax.Array
) -> CellMeasures:
    """Returns the measures of each cell of a batch, [B, ...]."""
    tokens_B1 = jnp.maximum(lengths_B, 1)[:, None]
    breadth_LBN = jnp.exp(profile.entropy_LBNT.sum(-1) / tokens_B1) / tokens_B1
    top_LBN = jnp.where(places.is_top[:, None], profile.received_LBNT, 0).sum(-1)
    diversity_LB = jax.lax.map(_diversity, profile.received_LBNT)
    return CellMeasures(
        diversity_LB.T, *(jnp.moveaxis(each, 0, 1) for each in (breadth_LBN, top_LBN))
    )


def _diversity(received_BNT: jax.Array) -> jax.Array:
    """Returns the mean Jensen-Shannon distance between two heads, [B]."""
    N = received_BNT.shape[1]
    entropy = jax.scipy.special.entr
    entropy_BN = entropy(received_BNT).sum(-1)

    def distances(head: jax.Array) -> jax.Array:
        middle_BNT = (received_BNT + received_BNT[:, head][:, None]) / 2
        apart_BN = entropy(middle_BNT).sum(-1) - (entropy_BN + entropy_BN[:, head][:, None]) / 2
        return jnp.sqrt(jnp.maximum(apart_BN, 0) / jnp.log(2.0)).sum(-1)

    if N == 1:
        return jnp.full(len(received_BNT), jnp.nan)
    # Each pair is met twice, and a head is at distance 0 from itself.
    return jax.lax.map(distances, jnp.arange(N)).sum(0) / (N * (N - 1))
