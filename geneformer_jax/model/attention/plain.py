"""Attention as a plain einsum, at once or a chunk of queries at a time.

Both take segments, int32 [B, T]: a position attends the positions of its own segment. Pads are
segment 0 and attend each other, so no row of scores is empty and nothing becomes NaN.
"""

from functools import partial

import jax
import jax.numpy as jnp

from geneformer_jax.model.attention.dropout import are_kept
from geneformer_jax.model.attention.products import einsum_f32, product

# Not the smallest float32: subtracting two of those overflows to -inf, and then to NaN.
MASKED = -1e30
# Queries per step of chunked attention. On a CPU 128, 256 and 512 take the same time within the
# noise; fewer, larger products should suit a GPU better.
CHUNK = 256


def softmax_weights(q_BTNH, k_BSNH, q_segments_BT, k_segments_BS):
    """Returns softmax(q k^T / sqrt(H)) within each segment, float32 [B, N, T, S]."""
    scale = q_BTNH.shape[-1] ** -0.5
    scores_BNTS = scale * einsum_f32("btnh,bsnh->bnts", q_BTNH, k_BSNH)
    same_BTS = q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
    return jax.nn.softmax(jnp.where(same_BTS[:, None], scores_BNTS, MASKED), axis=-1)


def attend_plain(q_BTNH, k_BSNH, v_BSNH, q_segments_BT, k_segments_BS, rate, key):
    """Returns the attention of queries over all keys, [B, T, N, H] in the dtype of the queries.

    With a `rate` above 0, drops weights by `key`, see dropout.py.
    """
    bits = dropout_bits(key, q_BTNH, k_BSNH) if rate else ()
    return _attend(rate, q_BTNH, k_BSNH, v_BSNH, q_segments_BT, k_segments_BS, bits)


def dropout_bits(key, q_BTNH, k_BSNH):
    """Returns a random uint32 word of each query [B, T, N] and of each key [B, S, N]."""
    of_queries, of_keys = jax.random.split(key)
    return jax.random.bits(of_queries, q_BTNH.shape[:3]), jax.random.bits(of_keys, k_BSNH.shape[:3])


def attend_matrix(rate, q_TH, k_SH, v_SH, q_segments_T, k_segments_S, bits):
    """Returns what one head's queries attend, float32 [T, H]; `bits` are () where none is dropped.

    Everything is a plain matrix; whoever has batches and heads maps this over them.
    """
    return _attend_and_sum(rate, q_TH, k_SH, v_SH, q_segments_T, k_segments_S, bits)[0]


def _attend_and_sum(rate, q_TH, k_SH, v_SH, q_segments_T, k_segments_S, bits):
    """Returns what `attend_matrix` returns, and the logsumexp of each query's scores, [T]."""
    scores_TS = einsum_f32("th,sh->ts", q_TH, k_SH) * q_TH.shape[-1] ** -0.5
    scores_TS = jnp.where(q_segments_T[:, None] == k_segments_S, scores_TS, MASKED)
    highest_T1 = jax.lax.stop_gradient(scores_TS.max(axis=-1, keepdims=True))
    weights_TS = jnp.exp(scores_TS - highest_T1)
    sums_T1 = weights_TS.sum(axis=-1, keepdims=True)
    log_sums_T = (highest_T1 + jnp.log(sums_T1))[:, 0]
    if rate:
        of_queries_T, of_keys_S = bits
        kept_TS = are_kept(of_queries_T[:, None] + of_keys_S, rate)
        weights_TS, sums_T1 = jnp.where(kept_TS, weights_TS, 0), sums_T1 * (1 - rate)
    # Divided by the sums at last: the output has fewer elements than the weights.
    return einsum_f32("ts,sh->th", weights_TS.astype(v_SH.dtype), v_SH) / sums_T1, log_sums_T


def _matrix_gradients(
    rate, q_TH, k_SH, v_SH, q_segments_T, k_segments_S, bits, out_TH, log_sums_T, d_out_TH
):
    """Returns the gradients of queries, keys and values in their dtype, given what was attended.

    Computes the weights again, and those with keys along the first axis: so two of the three
    products over weights need no transposed weights, which took a CPU a tenth less time.
    """
    scale = q_TH.shape[-1] ** -0.5
    scores_ST = scale * einsum_f32("sh,th->st", k_SH, q_TH)
    same_ST = k_segments_S[:, None] == q_segments_T
    weights_ST = jnp.exp(jnp.where(same_ST, scores_ST, MASKED) - log_sums_T)
    d_weights_ST = einsum_f32("sh,th->st", v_SH, d_out_TH)
    used_ST = weights_ST
    if rate:
        of_queries_T, of_keys_S = bits
        kept_ST = are_kept(of_keys_S[:, None] + of_queries_T, rate)
        used_ST, d_weights_ST = (
            jnp.where(kept_ST, each / (1 - rate), 0) for each in (weights_ST, d_weights_ST)
        )
    # What the softmax takes off each query's gradients: their mean, weighted.
    means_T = (out_TH.astype(jnp.float32) * d_out_TH).sum(axis=-1)
    d_scores_ST = (scale * weights_ST * (d_weights_ST - means_T)).astype(q_TH.dtype)
    return (
        product("st,sh->th", d_scores_ST, k_SH),
        product("st,th->sh", d_scores_ST, q_TH),
        product("st,th->sh", used_ST.astype(v_SH.dtype), d_out_TH),
    )


def _attend(rate, q_BTNH, k_BSNH, v_BSNH, q_segments_BT, k_segments_BS, bits):
    operands = q_BTNH, k_BSNH, v_BSNH, q_segments_BT, k_segments_BS, bits
    return _of_heads(partial(attend_matrix, rate))(*operands).astype(q_BTNH.dtype)


def _of_heads(of_matrices, outputs=0):
    """Maps a function of what `attend_matrix` takes, and so many outputs, over cells and heads."""
    return jax.vmap(jax.vmap(of_matrices, (1, 1, 1, None, None, *(1,) * (1 + outputs)), 1))


def attend_chunked(q_BTNH, k_BTNH, v_BTNH, segments_BT, rate, key):
    """Returns what `attend_plain` returns, in memory linear in T, forward and backward.

    Scans over chunks of queries, each of which sees all keys, so that an ordinary softmax serves
    and only [B, N, chunk, T] scores exist at a time.
    """
    q_bits, k_bits = dropout_bits(key, q_BTNH, k_BTNH) if rate else (None, None)
    queries = split_positions(q_BTNH), split_positions(segments_BT)
    bits = None if q_bits is None else split_positions(q_bits), k_bits
    out_ABTNH = _scan_chunks(rate, *queries, k_BTNH, v_BTNH, segments_BT, bits)
    out_BTNH = jnp.moveaxis(out_ABTNH, 0, 1).reshape(len(q_BTNH), -1, *q_BTNH.shape[2:])
    return out_BTNH[:, : q_BTNH.shape[1]]


def split_positions(x_BT, chunk=CHUNK):
    """Returns [A, B, size, ...]: the fewest even chunks of at most `chunk` positions.

    The end is padded with zeros: pad positions of segment 0.
    """
    chunks = -(-x_BT.shape[1] // chunk)
    size = -(-x_BT.shape[1] // chunks)
    padding = [(0, 0)] * x_BT.ndim
    padding[1] = (0, chunks * size - x_BT.shape[1])
    x_BT = jnp.pad(x_BT, padding)
    return jnp.moveaxis(x_BT.reshape(len(x_BT), chunks, size, *x_BT.shape[2:]), 1, 0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan_chunks(rate, q_ABTNH, q_segments_ABT, k_BSNH, v_BSNH, segments_BS, bits):
    operands = q_ABTNH, q_segments_ABT, k_BSNH, v_BSNH, segments_BS, bits
    return _scan_chunks_forward(rate, *operands)[0]


def _scan_chunks_forward(rate, *operands):
    q_ABTNH, q_segments_ABT, k_BSNH, v_BSNH, segments_BS, (q_bits_ABTN, k_bits_BSN) = operands
    attend = _of_heads(partial(_attend_and_sum, rate))

    def step(_, chunk):
        q_BTNH, q_segments_BT, q_bits_BTN = chunk
        masks = q_segments_BT, segments_BS, (q_bits_BTN, k_bits_BSN)
        out_BTNH, log_sums_BTN = attend(q_BTNH, k_BSNH, v_BSNH, *masks)
        return None, (out_BTNH.astype(q_BTNH.dtype), log_sums_BTN)

    _, results = jax.lax.scan(step, None, (q_ABTNH, q_segments_ABT, q_bits_ABTN))
    return results[0], (operands, results)


def _scan_chunks_backward(rate, residuals, d_out_ABTNH):
    """Recomputes each chunk's weights; sums the gradients of keys and values in float32."""
    operands, results = residuals
    q_ABTNH, q_segments_ABT, k_BSNH, v_BSNH, segments_BS, (q_bits_ABTN, k_bits_BSN) = operands
    differentiate = _of_heads(partial(_matrix_gradients, rate), 3)

    def step(sums, chunk):
        q_BTNH, q_segments_BT, q_bits_BTN, *outputs = chunk
        masks = q_segments_BT, segments_BS, (q_bits_BTN, k_bits_BSN)
        d_q_BTNH, *d_keys_values = differentiate(q_BTNH, k_BSNH, v_BSNH, *masks, *outputs)
        return jax.tree.map(jnp.add, sums, tuple(d_keys_values)), d_q_BTNH

    sums = (jnp.zeros(k_BSNH.shape, jnp.float32),) * 2
    chunks = q_ABTNH, q_segments_ABT, q_bits_ABTN, *results, d_out_ABTNH
    (d_k_BSNH, d_v_BSNH), d_q_ABTNH = jax.lax.scan(step, sums, chunks)
    gradients = d_q_ABTNH, None, d_k_BSNH.astype(k_BSNH.dtype), d_v_BSNH.astype(v_BSNH.dtype)
    return *gradients, None, None


_scan_chunks.defvjp(_scan_chunks_forward, _scan_chunks_backward)
