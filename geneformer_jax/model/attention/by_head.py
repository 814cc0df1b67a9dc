"""Attention one head after the other, as a CPU likes it best: plain matrices in its caches."""

from functools import partial

import jax
import jax.numpy as jnp

from geneformer_jax.model.attention.plain import attend_matrix, dropout_bits, split_positions
from geneformer_jax.model.attention.sharded import on_each_shard

_OPERANDS = (*(("batch", "heads"),) * 3, ("batch",), *(("batch", "heads"),) * 2)


def attend_by_head(q_BTNH, k_BTNH, v_BTNH, segments_BT, rate, key):
    """Returns what `attend_chunked` returns, holding the scores of one chunk of one head at a time.

    The same products over [B, N] at once, as accelerators want them, took a CPU a fifth to a third
    longer. Under `jax.set_mesh` each device goes through its own cells and heads: a loop over all
    of them could not be cut up.
    """
    bits = dropout_bits(key, q_BTNH, k_BTNH) if rate else ()
    operands = [x.swapaxes(1, 2) for x in (q_BTNH, k_BTNH, v_BTNH)] + [segments_BT]
    operands += [x.swapaxes(1, 2) for x in bits]
    attend = partial(_attend_shard, rate)
    attend = on_each_shard(attend, operands[0], _OPERANDS[: len(operands)])
    return attend(*operands).swapaxes(1, 2)


def _attend_shard(rate, q_BNTH, k_BNTH, v_BNTH, segments_BT, *bits):
    shape = q_BNTH.shape
    segments_BNT = jnp.broadcast_to(segments_BT[:, None], shape[:3])
    operands = q_BNTH, k_BNTH, v_BNTH, segments_BNT, *bits
    heads = [x.reshape(-1, *x.shape[2:]) for x in operands]
    return jax.lax.map(partial(_attend_head, rate), heads).reshape(shape)


def _attend_head(rate, operands):
    q_TH, k_TH, v_TH, segments_T, *bits = operands
    keys = k_TH, v_TH, segments_T, *bits[1:]
    # [chunks, 1, ...]: the gradient computes each chunk's weights again.
    queries = [split_positions(x[None])[:, 0] for x in (q_TH, segments_T, *bits[:1])]
    attend = jax.checkpoint(partial(_attend_chunk, rate, keys))
    out_ATH = jax.lax.map(attend, queries)
    return out_ATH.reshape(-1, q_TH.shape[-1])[: len(q_TH)]


def _attend_chunk(rate, keys, queries):
    k_SH, v_SH, segments_S, *key_bits = keys
    q_TH, segments_T, *query_bits = queries
    bits = *query_bits, *key_bits
    out_TH = attend_matrix(rate, q_TH, k_SH, v_SH, segments_T, segments_S, bits)
    return out_TH.astype(q_TH.dtype)
