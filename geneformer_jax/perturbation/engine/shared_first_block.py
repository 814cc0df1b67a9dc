"""The first block of many copies of one cell that differ in the place of one gene each.

Delete the gene at position d: the tokens below d stay where they are ("low"), those above move by
one position ("high"). What the first block sees of a token depends on the token and its position
alone, so over all such edits each token has two embeddings, queries, keys and values, not one for
each edit. For edits of consecutive genes most of the attention sums agree as well: the tokens
below the first of these genes are low in all of them, those above the last one high. Only the genes
in between, a few, are weighed for each edit by itself. The same holds for genes moved to the front.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from geneformer_jax.model.attention.plain import MASKED, split_positions
from geneformer_jax.model.attention.products import einsum_f32
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Block, Encoder, Params, module
from geneformer_jax.model.partial_encoding import single_block
from geneformer_jax.model.runtime import Runtime


class ConsecutiveEdits(NamedTuple):
    """A cell, and edits of some genes that follow each other in it.

    Attributes:
      tokens_T: int32 the cell's tokens, padded on the right.
      length: int32 its number of tokens.
      start: int32 position of the first edited gene; edit r is of the gene at start + r.
      front: position to which the gene moves, or None where it is deleted.
    """

    tokens_T: jax.Array
    length: jax.Array
    start: jax.Array
    front: int | None

    @property
    def low_T(self) -> jax.Array:
        """Positions of the tokens where they stand before the edited gene; int32 [T]."""
        position_T = jnp.arange(len(self.tokens_T))
        # All before the gene make room for it, but `<cls>`.
        return position_T if self.front is None else position_T + (position_T >= self.front)

    @property
    def high_T(self) -> jax.Array:
        """Positions of the tokens where they stand behind the edited gene; int32 [T]."""
        position_T = jnp.arange(len(self.tokens_T))
        return position_T - 1 if self.front is None else position_T


class _Tokens(NamedTuple):
    """Of some tokens: embeddings [S, D], and queries, keys and values [N, S, H]."""

    x: jax.Array
    q: jax.Array
    k: jax.Array
    v: jax.Array


class _Sums(NamedTuple):
    """Attention so far: largest score [N, S], and weights [N, S] and weighted values [N, S, H]."""

    largest: jax.Array
    weight: jax.Array
    values: jax.Array


class SharedFirstBlock(NamedTuple):
    """What R edits of a cell share of the first block.

    Attributes:
      layer: the block.
      start, length: int32 as in `ConsecutiveEdits`.
      low, high: the R edited genes where they stand before and after the edited one.
      moved: the same at the front, or None.
      queries: all T tokens as they are outside of these genes, high where they are one of them;
        then `low`, then `moved`.
      sums: their attention to the tokens outside of these genes.
    """

    layer: Block
    start: jax.Array
    length: jax.Array
    low: _Tokens
    high: _Tokens
    moved: _Tokens | None
    queries: _Tokens
    sums: _Sums


def share_first_block(
    config: EncoderConfig, params: Params, cell: ConsecutiveEdits, edits: int, runtime: Runtime
) -> SharedFirstBlock:
    """Computes what edits of consecutive genes share.

    Args:
      config: shape of the model, of at least one block.
      params: its weights.
      cell: the cell and its edits.
      edits: R, their number; the last of them may be fillers, also beyond the end of the cell.
      runtime: how to compute; the attention is always plain.
    """
    encoder = module(config, params, runtime.precision)
    layer = single_block(config, params, 0, runtime)
    look_up = partial(_look_up, encoder, layer, config.positions - 1)
    position_T = jnp.arange(len(cell.tokens_T))
    # Beyond the cell are fillers, which no edit attends to.
    edited_R = jnp.minimum(cell.start + jnp.arange(edits), len(position_T) - 1)
    is_low_T = position_T < cell.start
    common = look_up(cell.tokens_T, jnp.where(is_low_T, cell.low_T, cell.high_T))
    tokens_R = cell.tokens_T[edited_R]
    low = look_up(tokens_R, cell.low_T[edited_R])
    high = look_up(tokens_R, cell.high_T[edited_R])
    queries, moved = _joined(common, low), None
    if cell.front is not None:
        moved = look_up(tokens_R, jnp.full_like(edited_R, cell.front))
        queries = _joined(queries, moved)
    is_outside_T = is_low_T | (position_T >= cell.start + edits)
    sums = _attend_outside(queries.q, common, is_outside_T & (position_T < cell.length))
    return SharedFirstBlock(layer, cell.start, cell.length, low, high, moved, queries, sums)


def finish_first_block(
    shared: SharedFirstBlock, edits_G: jax.Array, order_GT: jax.Array
) -> jax.Array:
    """Returns the first block's hidden states [G, T, D] of some edited cells.

    Args:
      shared: what they share.
      edits_G: int32 which of the edits, 0 to R - 1.
      order_GT: int32 position in the original of each token of the edited cells. States at or
        beyond their lengths are meaningless but finite.
    """
    x_GTD, attended_GTNH = jax.vmap(partial(_attend_inside, shared))(edits_G, order_GT)
    return shared.layer.finish(x_GTD, attended_GTNH.astype(x_GTD.dtype))


def _look_up(
    encoder: Encoder, layer: Block, last: int, tokens_S: jax.Array, positions_S: jax.Array
) -> _Tokens:
    # Beyond the model's positions is no token of any edit; its embedding must be finite, though.
    positions_S = jnp.clip(positions_S, 0, last)
    x_BSD = encoder.embeddings(tokens_S[None], positions_S[None], None)
    return _Tokens(x_BSD[0], *(x_BSNH[0].swapaxes(0, 1) for x_BSNH in layer.project(x_BSD)))


def _joined(first: _Tokens, second: _Tokens) -> _Tokens:
    # Embeddings are [S, D], the others [N, S, H].
    pairs = zip(first, second, strict=True)
    return _Tokens(*(jnp.concatenate(pair, axis=-2) for pair in pairs))


def _attend_outside(q_NSH: jax.Array, keys: _Tokens, is_allowed_K: jax.Array) -> _Sums:
    """Sums over the keys that all edits share, a chunk of queries at a time."""

    def one_chunk(q_NSH: jax.Array) -> _Sums:
        return _sums(q_NSH, keys, is_allowed_K, jnp.array(MASKED))

    sums = jax.lax.map(one_chunk, split_positions(q_NSH))
    joined = (jnp.moveaxis(x, 0, 1).reshape(len(q_NSH), -1, *x.shape[3:]) for x in sums)
    return _Sums(*(x[:, : q_NSH.shape[1]] for x in joined))


def _sums(
    q_NSH: jax.Array, keys: _Tokens, is_allowed_K: jax.Array, smallest_NS: jax.Array
) -> _Sums:
    scores_NSK = einsum_f32("nsh,nkh->nsk", q_NSH, keys.k) * q_NSH.shape[-1] ** -0.5
    scores_NSK = jnp.where(is_allowed_K, scores_NSK, MASKED)
    largest_NS = jnp.maximum(scores_NSK.max(axis=-1), smallest_NS)
    # Where no key is allowed, the largest score is that of a masked key.
    weights_NSK = jnp.where(is_allowed_K, jnp.exp(scores_NSK - largest_NS[..., None]), 0)
    values_NSH = einsum_f32("nsk,nkh->nsh", weights_NSK.astype(keys.v.dtype), keys.v)
    return _Sums(largest_NS, weights_NSK.sum(axis=-1), values_NSH)


def _attend_inside(
    shared: SharedFirstBlock, edit: jax.Array, order_T: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds the keys in which edits differ; returns embeddings [T, D] and attended [T, N, H]."""
    rows, start = len(shared.low.x), shared.start
    other_R = jnp.arange(rows)
    is_edited_R, low = other_R == edit, shared.low
    is_low_R = other_R < edit
    if shared.moved is not None:
        # The edited gene is neither low nor high; its own place is free for it at the front.
        chosen = zip(shared.moved, low, strict=True)
        low = _Tokens(*(jnp.where(is_edited_R[:, None], *pair) for pair in chosen))
        is_low_R = other_R <= edit
    is_there_R = start + other_R < shared.length
    is_allowed_K = jnp.concatenate([is_low_R & is_there_R, (other_R > edit) & is_there_R])
    before, keys = shared.sums, _joined(low, shared.high)
    inside = _sums(shared.queries.q, keys, is_allowed_K, before.largest)
    scale_NS = jnp.exp(before.largest - inside.largest)
    total_NS = scale_NS * before.weight + inside.weight
    attended_NSH = scale_NS[..., None] * before.values + inside.values
    attended_NSH = attended_NSH / total_NS[..., None]
    query_T = _queries_of(shared, edit, order_T)
    return shared.queries.x[query_T], attended_NSH[:, query_T].swapaxes(0, 1)


def _queries_of(shared: SharedFirstBlock, edit: jax.Array, order_T: jax.Array) -> jax.Array:
    """Returns which of the shared queries each token of an edited cell is, int32 [T]."""
    tokens, rows = len(order_T), len(shared.low.x)
    place_T = order_T - shared.start
    query_T = jnp.where((place_T >= 0) & (place_T < edit), tokens + place_T, order_T)
    if shared.moved is None:
        return query_T
    return jnp.where(place_T == edit, tokens + rows + edit, query_T)
