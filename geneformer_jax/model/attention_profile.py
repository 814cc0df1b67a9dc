"""What each head attends to, reduced on the device: no weights [T, T] leave it.

The weights of a layer are made a chunk of queries at a time and summed up at once, so memory is
linear in T. Fused kernels (cudnn, splash) never hold their weights, so they cannot give any of
this; `PROFILED` lists the implementations that can.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, Runtime, module
from geneformer_jax.model.plain_attention import (
    CHUNK,
    attention_scores,
    einsum_f32,
    softmax_weights,
    split_positions,
)

PROFILED = ("xla", "chunked")


class AttentionProfile(NamedTuple):
    """Attention in each layer and head, float32; 0 at pads.

    Attributes:
      received_LBNT: weight on a key, mean over the cell's queries; sums to 1 over its tokens.
      entropy_LBNT: of the weights that a query gives, in nats.
      top_LBNT: weight that a query gives to the positions of `is_top_BT`.
      pairs_LBNSS: weight that one chosen position gives to another (query, key).
    """

    received_LBNT: jax.Array
    entropy_LBNT: jax.Array
    top_LBNT: jax.Array
    pairs_LBNSS: jax.Array


class _Cells(NamedTuple):
    """Where the tokens, the top ranks and the chosen genes of each cell stand."""

    lengths_B: jax.Array
    segments_BT: jax.Array
    is_top_BT: jax.Array
    chosen_BS: jax.Array


def require_profiled(attention: str) -> None:
    """Raises InputError for an implementation that never holds its weights."""
    if attention not in PROFILED:
        raise InputError(
            f'attention "{attention}" never holds its weights, so none can be read off; use '
            f"{' or '.join(PROFILED)}, or auto"
        )


def attention_profile(
    config: EncoderConfig,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    *,
    is_top_BT: jax.Array,
    chosen_BS: jax.Array | None = None,
    runtime: Runtime | None = None,
) -> AttentionProfile:
    """Runs all layers and returns what their heads attend to.

    Args:
      config: shape of the model.
      params: weights, as `encoder.init_params` returns them.
      tokens_BT: token ids, padded on the right.
      lengths_B: number of real tokens in each row.
      is_top_BT: positions that count as top ranks.
      chosen_BS: int32 positions of which to return the weights between each other; where one is
        T or more, its weights are 0. None chooses none.
      runtime: how to compute; attention "xla" (all queries at once) or "chunked".

    Raises:
      InputError: an attention implementation that never holds its weights.
    """
    runtime = runtime or Runtime()
    require_profiled(runtime.attention)
    T = tokens_BT.shape[1]
    encoder = module(config, params, runtime.precision)
    graph, blocks = nnx.split(encoder.blocks)
    if chosen_BS is None:
        chosen_BS = jnp.zeros((len(tokens_BT), 0), jnp.int32)
    segments_BT = (jnp.arange(T) < lengths_B[:, None]).astype(jnp.int32)
    cells = _Cells(lengths_B, segments_BT, is_top_BT & (segments_BT > 0), chosen_BS)
    chunk = T if runtime.attention == "xla" else CHUNK

    def layer(x_BTD: jax.Array, state: nnx.State) -> tuple[jax.Array, AttentionProfile]:
        block = nnx.merge(graph, state)
        q_BTNH, k_BTNH, v_BTNH = block.project(x_BTD)
        attended_BTNH, reduced = _attend(q_BTNH, k_BTNH, v_BTNH, cells, chunk)
        pairs_BNSS = _pairs(q_BTNH, k_BTNH, cells)
        return block.finish(x_BTD, attended_BTNH), AttentionProfile(*reduced, pairs_BNSS)

    embedded_BTD = encoder.embeddings(tokens_BT, jnp.arange(T, dtype=jnp.int32)[None], None)
    return jax.lax.scan(layer, embedded_BTD, blocks)[1]


def _attend(q_BTNH, k_BTNH, v_BTNH, cells, chunk):
    """Returns (what the heads attended [B, T, N, H], their reduced weights [B, N, T] x 3)."""
    B, T, N, H = q_BTNH.shape
    is_real_BT = cells.segments_BT > 0
    # The weight on top ranks comes out of the product with the values, as one more column of them.
    top_BTN1 = jnp.broadcast_to(cells.is_top_BT[:, :, None, None], (B, T, N, 1))
    values_BTNG = jnp.concatenate([v_BTNH, top_BTN1.astype(v_BTNH.dtype)], axis=-1)
    queries = split_positions(q_BTNH, chunk), split_positions(cells.segments_BT, chunk)

    def step(received_BNT, queries):
        out_BCNG, entropy_BNC, added_BNT = _weigh(*queries, k_BTNH, values_BTNG, cells.segments_BT)
        return received_BNT + added_BNT, (out_BCNG, entropy_BNC)

    start = jnp.zeros((B, N, T), jnp.float32)
    received_BNT, (out_ABCNG, entropy_ABNC) = jax.lax.scan(step, start, queries)
    out_BTNG = jnp.moveaxis(out_ABCNG, 0, 1).reshape(B, -1, N, H + 1)[:, :T]
    entropy_BNT = jnp.moveaxis(entropy_ABNC, 0, 2).reshape(B, N, -1)[:, :, :T]
    queries_B11 = jnp.maximum(cells.lengths_B, 1)[:, None, None]
    real_BNT = is_real_BT[:, None].astype(jnp.float32)
    top_BNT = jnp.moveaxis(out_BTNG[..., H], 1, 2)
    attended_BTNH = jnp.where(is_real_BT[:, :, None, None], out_BTNG[..., :H], 0)
    reduced = received_BNT / queries_B11 * real_BNT, entropy_BNT * real_BNT, top_BNT * real_BNT
    return attended_BTNH.astype(q_BTNH.dtype), reduced


def _weigh(q_BCNH, q_segments_BC, k_BTNH, values_BTNG, segments_BT):
    """Returns (weighted values, entropy of each query, summed weight of real queries on keys)."""
    scores_BNCT = attention_scores(q_BCNH, k_BTNH, q_segments_BC, segments_BT)
    scores_BNCT = scores_BNCT - scores_BNCT.max(axis=-1, keepdims=True)
    odds_BNCT = jnp.exp(scores_BNCT)
    total_BNC = odds_BNCT.sum(axis=-1)
    weights_BNCT = odds_BNCT / total_BNC[..., None]
    # -sum(w log w), with no logarithm of each weight.
    entropy_BNC = jnp.log(total_BNC) - (weights_BNCT * scores_BNCT).sum(axis=-1)
    out_BCNG = einsum_f32("bnct,btng->bcng", weights_BNCT.astype(values_BTNG.dtype), values_BTNG)
    is_real_BC = (q_segments_BC > 0).astype(jnp.float32)
    return out_BCNG, entropy_BNC, jnp.einsum("bnct,bc->bnt", weights_BNCT, is_real_BC)


def _pairs(q_BTNH, k_BTNH, cells):
    """Returns the weights between chosen positions, float32 [B, N, S, S]."""
    T = q_BTNH.shape[1]
    at_BS = jnp.minimum(cells.chosen_BS, T - 1)
    is_there_BS = cells.chosen_BS < cells.lengths_B[:, None]
    q_BSNH = jnp.take_along_axis(q_BTNH, at_BS[:, :, None, None], axis=1)
    q_segments_BS = jnp.take_along_axis(cells.segments_BT, at_BS, axis=1)
    weights_BNST = softmax_weights(q_BSNH, k_BTNH, q_segments_BS, cells.segments_BT)
    pairs_BNSS = jnp.take_along_axis(weights_BNST, at_BS[:, None, None, :], axis=3)
    return jnp.where((is_there_BS[:, :, None] & is_there_BS[:, None, :])[:, None], pairs_BNSS, 0)
