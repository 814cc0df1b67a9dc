"""Attention as a plain einsum, at once or a chunk of queries at a time.

Both take segments, int32 [B, T]: a position attends the positions of its own segment. Pads are
segment 0 and attend each other, so no row of scores is empty and nothing becomes NaN.
"""

from functools import partial

import jax
import jax.numpy as jnp

# Not the smallest float32: subtracting two of those overflows to -inf, and then to NaN.
MASKED = -1e30
# Queries per step of chunked attention. On a CPU 128 and 256 take the same time within the noise;
# fewer, larger products should suit a GPU better.
CHUNK = 256


def attention_scores(q_BTNH, k_BSNH, q_segments_BT, k_segments_BS):
    """Returns q k^T / sqrt(H) within each segment and `MASKED` elsewhere, float32 [B, N, T, S]."""
    scale = q_BTNH.shape[-1] ** -0.5
    scores_BNTS = scale * einsum_f32("btnh,bsnh->bnts", q_BTNH, k_BSNH)
    same_BTS = q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
    return jnp.where(same_BTS[:, None], scores_BNTS, MASKED)


def softmax_weights(q_BTNH, k_BSNH, q_segments_BT, k_segments_BS):
    """Returns softmax(q k^T / sqrt(H)) within each segment, float32 [B, N, T, S]."""
    return jax.nn.softmax(attention_scores(q_BTNH, k_BSNH, q_segments_BT, k_segments_BS), axis=-1)


def attend_plain(q_BTNH, k_BSNH, v_BSNH, q_segments_BT, k_segments_BS, rate, key):
    """Returns the attention of queries over all keys, [B, T, N, H] in the dtype of the queries.

    With a `rate` above 0, drops weights by one Bernoulli draw of `key` of shape [B, N, T, S].
    """
    weights_BNTS = softmax_weights(q_BTNH, k_BSNH, q_segments_BT, k_segments_BS)
    if rate:
        kept_BNTS = jax.random.bernoulli(key, 1 - rate, weights_BNTS.shape)
        weights_BNTS = jnp.where(kept_BNTS, weights_BNTS / (1 - rate), 0)
    out_BTNH = einsum_f32("bnts,bsnh->btnh", weights_BNTS.astype(v_BSNH.dtype), v_BSNH)
    return out_BTNH.astype(q_BTNH.dtype)


def attend_chunked(q_BTNH, k_BTNH, v_BTNH, segments_BT, rate, key, chunk=CHUNK):
    """Returns what `attend_plain` returns, in memory linear in T, forward and backward.

    Scans over chunks of queries, each of which sees all keys, so that an ordinary softmax serves
    and only [B, N, chunk, T] scores exist at a time. Chunk i drops weights by `fold_in(key, i)`.
    """
    positions = q_BTNH.shape[1]
    queries = split_positions(q_BTNH, chunk), split_positions(segments_BT, chunk)
    out_ABTNH = _scan_chunks(rate, *queries, k_BTNH, v_BTNH, segments_BT, key)
    out_BTNH = jnp.moveaxis(out_ABTNH, 0, 1).reshape(len(q_BTNH), -1, *q_BTNH.shape[2:])
    return out_BTNH[:, :positions]


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


def _attend_chunk(rate, q_BTNH, k_BSNH, v_BSNH, q_segments_BT, k_segments_BS, key, step):
    key = jax.random.fold_in(key, step) if rate else None
    return attend_plain(q_BTNH, k_BSNH, v_BSNH, q_segments_BT, k_segments_BS, rate, key)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan_chunks(rate, q_ABTNH, q_segments_ABT, k_BSNH, v_BSNH, segments_BS, key):
    def step(_, chunk):
        index, q_BTNH, q_segments_BT = chunk
        masks = q_segments_BT, segments_BS, key, index
        return None, _attend_chunk(rate, q_BTNH, k_BSNH, v_BSNH, *masks)

    return jax.lax.scan(step, None, (jnp.arange(len(q_ABTNH)), q_ABTNH, q_segments_ABT))[1]


def _scan_chunks_forward(rate, *operands):
    return _scan_chunks(rate, *operands), operands


def _scan_chunks_backward(rate, operands, d_out_ABTNH):
    """Recomputes each chunk's weights; sums the gradients of keys and values in float32."""
    q_ABTNH, q_segments_ABT, k_BSNH, v_BSNH, segments_BS, key = operands

    def step(sums, chunk):
        index, q_BTNH, q_segments_BT, d_out_BTNH = chunk

        def attend(q_BTNH, k_BSNH, v_BSNH):
            masks = q_segments_BT, segments_BS, key, index
            return _attend_chunk(rate, q_BTNH, k_BSNH, v_BSNH, *masks)

        d_q_BTNH, *d_keys_values = jax.vjp(attend, q_BTNH, k_BSNH, v_BSNH)[1](d_out_BTNH)
        return jax.tree.map(jnp.add, sums, tuple(d_keys_values)), d_q_BTNH

    sums = (jnp.zeros(k_BSNH.shape, jnp.float32),) * 2
    chunks = jnp.arange(len(q_ABTNH)), q_ABTNH, q_segments_ABT, d_out_ABTNH
    (d_k_BSNH, d_v_BSNH), d_q_ABTNH = jax.lax.scan(step, sums, chunks)
    gradients = d_q_ABTNH, None, d_k_BSNH.astype(k_BSNH.dtype), d_v_BSNH.astype(v_BSNH.dtype)
    return *gradients, None, None


_scan_chunks.defvjp(_scan_chunks_forward, _scan_chunks_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_f32(spec: str, a, b):
    """Returns the einsum of two arrays of one dtype, accumulated in float32.

    Its gradient rounds the cotangent to the dtype of the operands first. Left to itself, JAX
    multiplies a float32 cotangent with a half-precision operand, and that runs as float32.
    """
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _einsum_f32_forward(spec, a, b):
    return einsum_f32(spec, a, b), (a, b)


def _einsum_f32_backward(spec, operands, cotangent):
    a, b = operands
    _, transpose = jax.vjp(partial(jnp.einsum, spec), a, b)
    return transpose(cotangent.astype(a.dtype))


einsum_f32.defvjp(_einsum_f32_forward, _einsum_f32_backward)
