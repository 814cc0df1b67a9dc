"""Views of cells: a random set of the genes of each, in rank order, for contrastive learning.

A view is a pure function of (seed, step, cell), drawn on the device within the step: neither the
batch a cell comes in, nor hosts, devices or packing change it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geneformer_jax.batches.buckets import BUCKET_MULTIPLE
from geneformer_jax.batches.config import ViewConfig
from geneformer_jax.batches.loader import Batch
from geneformer_jax.batches.masking import Packing
from geneformer_jax.batches.random_bits import random_bits

# Of a cell that has fewer genes, a part has next to nothing to tell of the whole.
LEAST_GENES = 8
_SPECIAL_TOKENS = 2
# Of the numbers that may be drawn, to average over.
_SHARES = 64
# Beside the seed of masks: which genes are kept, and how many.
_GENES = 0x5EED0001
_NUMBERS = 0x5EED0002


class _Places(NamedTuple):
    """Where the cells of rows stand, one cell a row or several.

    Attributes:
      segments_BT: int32, 1, 2, ... for the cell of a token; 0 for padding.
      cells_BC: int32 numbers of the cells of a row.
      is_gene_BT: whether a token is a gene.
      genes_BC: int32 genes of each cell.
    """

    segments_BT: jax.Array
    cells_BC: jax.Array
    is_gene_BT: jax.Array
    genes_BC: jax.Array


def view_length(bucket: int, cells: int, config: ViewConfig) -> int:
    """Returns the tokens that hold any view of a row of `bucket` tokens and so many cells."""
    longest = (config.most_genes + _SPECIAL_TOKENS) * cells
    return min(-(-longest // BUCKET_MULTIPLE) * BUCKET_MULTIPLE, bucket)


def mean_genes(genes: np.ndarray, config: ViewConfig) -> np.ndarray:
    """Returns how many genes a view has on average, float64 [cells], of cells of so many genes."""
    shares = (np.arange(_SHARES) + 0.5) / _SHARES
    lengths, inverse = np.unique(genes, return_inverse=True)
    return _drawn_genes(lengths[:, None], shares, config, np).mean(axis=1)[inverse]


def _drawn_genes(genes: Any, share: Any, config: ViewConfig, xp: Any) -> Any:
    """Returns how many genes a view has of cells of so many, by numbers from 0 to 1."""
    least = xp.minimum(config.least_genes, 0.5 * genes)
    return xp.minimum(least * (config.most_genes / least) ** share, genes)


def draw_views(
    batch: Batch,
    *,
    seed: int,
    step: jax.Array,
    config: ViewConfig,
    first_gene_token: int,
    pad_token: int,
) -> Batch:
    """Returns a batch with a view of each cell in place of the cell.

    How many genes a view has is drawn evenly on a logarithmic scale between `least_genes` and
    `most_genes`, whatever the cell, but it is at most all of them: were it a part of the cell's,
    a view would be found to be of its cell by its length, and embeddings would tell how many genes
    a cell has before all else. Of a cell of fewer than twice `least_genes` the smallest number is
    half of its genes. Which genes is drawn without regard to their ranks; special tokens stay.

    Args:
      batch: rows whose genes are not masked; JAX arrays.
      seed: of the run.
      step: number of the step.
      config: how much of a cell a view has.
      first_gene_token: tokens below it are special.
      pad_token: what stands behind the last token of a row.
    """
    places = _places(batch, first_gene_token)
    ranks_BT = batch.packing.ranks_BT if batch.packing else _positions(batch.tokens_BT)
    cells_BT = _of_cell(places.cells_BC, places.segments_BT)
    bits_BT, _ = random_bits(seed ^ _GENES, step, cells_BT, ranks_BT)
    zeros_BC = jnp.zeros_like(places.cells_BC)
    share_BC, _ = random_bits(seed ^ _NUMBERS, step, places.cells_BC, zeros_BC)
    kept_BC = _kept_genes(places.genes_BC, share_BC, config)
    length = view_length(batch.tokens_BT.shape[1], places.cells_BC.shape[1], config)
    return _taken(batch, places, _kept_positions(places, bits_BT, kept_BC)[:, :length], pad_token)


def _positions(tokens_BT: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)


def _places(batch: Batch, first_gene_token: int) -> _Places:
    if batch.packing is None:
        real_BT = _positions(batch.tokens_BT) < batch.lengths_B[:, None]
        segments_BT, cells_BC = real_BT.astype(jnp.int32), batch.cells_B[:, None]
    else:
        segments_BT, cells_BC = batch.packing.segments_BT, batch.cells_B
    is_gene_BT = (segments_BT > 0) & (batch.tokens_BT >= first_gene_token)
    genes_BC = count_of_cells(is_gene_BT, segments_BT, cells_BC.shape[1])
    return _Places(segments_BT, cells_BC, is_gene_BT, genes_BC)


def count_of_cells(chosen_BT: jax.Array, segments_BT: jax.Array, cells: int) -> jax.Array:
    """Returns how many chosen tokens each cell of a row has, int32 [B, cells]."""
    is_of_cell_BTC = segments_BT[..., None] == jnp.arange(1, cells + 1)
    return (is_of_cell_BTC & chosen_BT[..., None]).sum(axis=1, dtype=jnp.int32)


def _of_cell(values_BC: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Returns for each token the value of its cell; that of the first where it has none."""
    return jnp.take_along_axis(values_BC, jnp.maximum(segments_BT - 1, 0), axis=1)


def _before(counts_BC: jax.Array) -> jax.Array:
    """Returns the sum of the counts of the cells before each."""
    return jnp.cumsum(counts_BC, axis=1) - counts_BC


def _kept_genes(genes_BC: jax.Array, bits_BC: jax.Array, config: ViewConfig) -> jax.Array:
    """Returns how many genes the view of each cell has."""
    share_BC = bits_BC.astype(jnp.float32) / 2.0**32
    drawn_BC = _drawn_genes(jnp.maximum(genes_BC, 1), share_BC, config, jnp)
    return jnp.clip(drawn_BC.astype(jnp.int32), 1, genes_BC)


def _taken(batch: Batch, places: _Places, positions_BT: jax.Array, pad_token: int) -> Batch:
    """Returns the batch's tokens at these positions; there is none where they are its length."""
    real_BT = positions_BT < batch.tokens_BT.shape[1]
    source_BT = jnp.where(real_BT, positions_BT, 0)

    def taken(values_BT: jax.Array, empty: int) -> jax.Array:
        return jnp.where(real_BT, jnp.take_along_axis(values_BT, source_BT, axis=1), empty)

    packing = None
    if batch.packing is not None:
        segments_BT = taken(places.segments_BT, 0)
        cells = places.cells_BC.shape[1]
        starts_BC = _before(count_of_cells(real_BT, segments_BT, cells))
        ranks_BT = _positions(segments_BT) - _of_cell(starts_BC, segments_BT)
        packing = Packing(segments_BT, jnp.where(real_BT, ranks_BT, 0))
    return batch._replace(
        tokens_BT=taken(batch.tokens_BT, pad_token),
        lengths_B=real_BT.sum(axis=1, dtype=jnp.int32),
        packing=packing,
    )


def _kept_positions(places: _Places, bits_BT: jax.Array, kept_BC: jax.Array) -> jax.Array:
    """Returns the positions of kept tokens in ascending order, then T as often as there is room."""
    T = bits_BT.shape[1]
    is_special_BT = (places.segments_BT > 0) & ~places.is_gene_BT
    # The genes of each cell in random order, cell after cell; then everything else.
    cell_BT = jnp.where(places.is_gene_BT, places.segments_BT, T + 1)
    keys = cell_BT, bits_BT, _positions(bits_BT)
    segments_BT, _, order_BT = jax.lax.sort(keys, dimension=1, num_keys=2)
    segments_BT = jnp.where(segments_BT <= T, segments_BT, 0)
    place_BT = _positions(bits_BT) - _of_cell(_before(places.genes_BC), segments_BT)
    is_kept_BT = (segments_BT > 0) & (place_BT < _of_cell(kept_BC, segments_BT))
    is_kept_BT |= jnp.take_along_axis(is_special_BT, order_BT, axis=1)
    return jnp.sort(jnp.where(is_kept_BT, order_BT, T), axis=1)
