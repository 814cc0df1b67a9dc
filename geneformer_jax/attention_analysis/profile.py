"""What each head attends to, reduced on the device: no weights [T, T] leave it.

The weights of a layer are made a chunk of queries at a time and summed up at once, so memory is
linear in T. Fused kernels (cudnn, splash) never hold their weights, so they cannot give any of
this; `PROFILED` lists the implementations that can.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from geneformer_jax.model.attention.dispatch import require_profiled
from geneformer_jax.model.attention.plain import (
    CHUNK,
    MASKED,
    softmax_weights,
    split_positions,
)
from geneformer_jax.model.attention.products import einsum_f32
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, module, stacked_blocks
from geneformer_jax.model.runtime import Runtime

# Queries at a time, where not all of them: scores and weights of fewer queries, which are both gone
# through more than once, stay in a CPU's cache.
_CHUNKS = {"chunked": CHUNK, "by_head": CHUNK // 2}


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


def attention_profile(
    config: EncoderConfig,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    *,
    is_top_BT: jax.Array,
    chosen_BS: jax.Array | None = None,
    runtime: Runtime | None = None,
    chunk: int | None = None,
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
      runtime: how to compute; attention "xla" (all queries at once), "chunked", or
        "by_head" (one head after the other).
      chunk: queries at a time; None chooses for the attention.

    Raises:
      InputError: an attention implementation that never holds its weights.
    """
    runtime = runtime or Runtime()
    require_profiled(runtime.attention)
    T = tokens_BT.shape[1]
    build, blocks = stacked_blocks(config, params, runtime.precision)
    if chosen_BS is None:
        chosen_BS = jnp.zeros((len(tokens_BT), 0), jnp.int32)
    segments_BT = (jnp.arange(T) < lengths_B[:, None]).astype(jnp.int32)
    cells = _Cells(lengths_B, segments_BT, is_top_BT & (segments_BT > 0), chosen_BS)

    def layer(
        x_BTD: jax.Array, weights: Params, is_last: bool = False
    ) -> tuple[jax.Array, AttentionProfile]:
        block = build(weights)
        q_BTNH, k_BTNH, v_BTNH = block.project(x_BTD)
        if is_last:
            # Nothing above needs what these heads attend: columns left out here cost nothing.
            v_BTNH = v_BTNH[..., :0]
        attended_BTNH, *reduced = _attend(q_BTNH, k_BTNH, v_BTNH, cells, runtime.attention, chunk)
        profile = AttentionProfile(*reduced, _pairs(q_BTNH, k_BTNH, cells))
        return x_BTD if is_last else block.finish(x_BTD, attended_BTNH), profile

    embeddings = module(config, params, runtime.precision).embeddings
    x_BTD = embeddings(tokens_BT, jnp.arange(T, dtype=jnp.int32)[None], None)
    below = jax.tree.map(lambda leaf: leaf[:-1], blocks)
    x_BTD, profiles = jax.lax.scan(layer, x_BTD, below)
    last = jax.tree.map(lambda leaf: leaf[-1], blocks)
    _, profile = layer(x_BTD, last, is_last=True)
    return jax.tree.map(lambda of, above: jnp.concatenate([of, above[None]]), profiles, profile)


def _attend(q_BTNH, k_BTNH, v_BTNG, cells, attention, chunk):
    """Returns what the heads attended [B, T, N, G], and received, entropy and top [B, N, T]."""
    B, T, N = q_BTNH.shape[:3]
    of_heads = [x.swapaxes(1, 2) for x in (q_BTNH, k_BTNH, v_BTNG)]
    of_heads += [
        jnp.broadcast_to(x[:, None], (B, N, T)) for x in (cells.segments_BT, cells.is_top_BT)
    ]
    run = partial(_profile_head, chunk or _CHUNKS.get(attention, T))
    if attention == "by_head":
        flat = [jax.lax.collapse(x, 0, 2) for x in of_heads]
        profiled = jax.lax.map(lambda head: run(*head), flat)
        profiled = [x.reshape(B, N, *x.shape[1:]) for x in profiled]
    else:
        profiled = jax.vmap(jax.vmap(run))(*of_heads)
    out_BNTG, received_BNT, entropy_BNT, top_BNT = profiled
    is_real_BT = cells.segments_BT > 0
    real_BNT = is_real_BT[:, None].astype(jnp.float32)
    received_BNT = received_BNT / jnp.maximum(cells.lengths_B, 1)[:, None, None]
    attended_BNTG = jnp.where(is_real_BT[:, None, :, None], out_BNTG, 0)
    reduced = received_BNT * real_BNT, entropy_BNT * real_BNT, top_BNT * real_BNT
    return attended_BNTG.swapaxes(1, 2).astype(q_BTNH.dtype), *reduced


def _profile_head(chunk, q_TH, k_TH, v_TG, segments_T, is_top_T):
    """Returns weighted values [T, G], weight received by each key, entropy and top of each query.

    Goes through the queries a chunk at a time.
    """
    queries = [split_positions(x[None], chunk)[:, 0] for x in (q_TH, segments_T)]

    def step(received_T, queries):
        out_CG, added_T, *of_queries = _weigh(*queries, k_TH, v_TG, segments_T, is_top_T)
        return received_T + added_T, (out_CG, *of_queries)

    start = jnp.zeros(len(q_TH), jnp.float32)
    received_T, of_queries = jax.lax.scan(step, start, queries)
    out_TG, *of_queries = (jax.lax.collapse(x, 0, 2)[: len(q_TH)] for x in of_queries)
    return out_TG, received_T, *of_queries


def _weigh(q_CH, q_segments_C, k_TH, v_TG, segments_T, is_top_T):
    """Returns weighted values [C, G], weight real queries give to keys, entropy, weight on top.

    Weights are divided by their sum only where they have been summed up: that is far less to do.
    """
    scores_CT = einsum_f32("ch,th->ct", q_CH, k_TH) * q_CH.shape[-1] ** -0.5
    scores_CT = jnp.where(q_segments_C[:, None] == segments_T, scores_CT, MASKED)
    scores_CT = scores_CT - scores_CT.max(axis=-1, keepdims=True)
    odds_CT = jnp.exp(scores_CT)
    total_C = odds_CT.sum(axis=-1)
    # -sum(w log w), with no logarithm of each weight.
    entropy_C = jnp.log(total_C) - (odds_CT * scores_CT).sum(axis=-1) / total_C
    out_CG = einsum_f32("ct,tg->cg", odds_CT.astype(v_TG.dtype), v_TG)
    share_C = (q_segments_C > 0) / total_C
    top_C = einsum_f32("ct,t->c", odds_CT, is_top_T.astype(odds_CT.dtype))
    received_T = einsum_f32("c,ct->t", share_C, odds_CT)
    return out_CG / total_C[:, None], received_T, entropy_C, top_C / total_C


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
