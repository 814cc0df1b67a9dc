"""Bidirectional attention over padded or packed cells, in interchangeable implementations.

One law for all of them: a position takes weight only from positions of its own cell, and the output
at a pad position is exactly zero, so that nothing a pad computes reaches a value or a gradient. The
original masks keys only and lets pad queries attend; what they yield is never used, so real
positions agree with it.

Shape suffixes: B batch, T tokens, N heads, H head size, as in `model/config.py`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from geneformer_jax.common.errors import InputError, did_you_mean

IMPLEMENTATIONS = ("xla",)
# Not the smallest float32: subtracting two of those overflows to -inf, and then to NaN.
NEG = -1e30


class AttentionChoice(NamedTuple):
    """An implementation, and why it was chosen (printed at start)."""

    implementation: str
    reason: str


def choose_attention(
    requested: str,
    *,
    platform: str,
    compute_dtype,
    head_size: int,
    dropout_rate: float,
    packed: bool,
    positions: int,
) -> AttentionChoice:
    """Returns the implementation to run, resolving "auto" and refusing what cannot run.

    Raises:
      InputError: an unknown name, or an implementation that cannot run here.
    """
    del platform, compute_dtype, head_size, dropout_rate, packed, positions
    if requested not in ("auto", *IMPLEMENTATIONS):
        raise InputError(_unknown(requested))
    return AttentionChoice("xla", "the only implementation")


def attend(
    q_BTNH,
    k_BTNH,
    v_BTNH,
    lengths_B,
    *,
    implementation: str,
    dropout_rate: float = 0.0,
    dropout_key=None,
    segments_BT=None,
):
    """Returns softmax(q k^T / sqrt(H)) v within each cell, [B, T, N, H] in the dtype of `q_BTNH`.

    Scores and softmax are float32 whatever the compute dtype.

    Args:
      q_BTNH, k_BTNH, v_BTNH: queries, keys and values of one floating dtype.
      lengths_B: int32, tokens of each row; positions from there on are pads. None with segments.
      implementation: one of `IMPLEMENTATIONS`, as `choose_attention` returns it.
      dropout_rate: as in BERT, on the softmax weights, the kept ones divided by 1 - rate. Without
        `dropout_key` nothing is dropped.
      dropout_key: a JAX random key, or None.
      segments_BT: int32, 1.. for each packed cell, 0 for pads; attention stays within a segment.

    Raises:
      InputError: an unknown implementation, or both or neither of lengths and segments.
    """
    if (lengths_B is None) == (segments_BT is None):
        raise InputError("attend takes either lengths_B or segments_BT: give exactly one of them")
    if implementation not in IMPLEMENTATIONS:
        raise InputError(_unknown(implementation))
    if dropout_key is None:
        dropout_rate = 0.0
    segments_BT = _segments(lengths_B, q_BTNH.shape[1]) if segments_BT is None else segments_BT
    out_BTNH = _attend_xla(q_BTNH, k_BTNH, v_BTNH, segments_BT, dropout_rate, dropout_key)
    return jnp.where((segments_BT > 0)[:, :, None, None], out_BTNH, 0)


def attention_weights(q_BTNH, k_BTNH, lengths_B):
    """Returns the softmax weights, float32 [B, N, T, T] (query, key); rows of pads are zero."""
    segments_BT = _segments(lengths_B, q_BTNH.shape[1])
    weights_BNTT = _softmax_weights(q_BTNH, k_BTNH, segments_BT)
    return jnp.where((segments_BT > 0)[:, None, :, None], weights_BNTT, 0)


def _unknown(name: str) -> str:
    known = ", ".join(IMPLEMENTATIONS)
    return f'attention "{name}" is unknown: use one of {known}{did_you_mean(name, IMPLEMENTATIONS)}'


def _segments(lengths_B, positions: int):
    """Returns 1 where a token stands and 0 at pads, int32 [B, T]."""
    return (jnp.arange(positions) < lengths_B[:, None]).astype(jnp.int32)


def _softmax_weights(q_BTNH, k_BTNH, segments_BT):
    scale = q_BTNH.shape[-1] ** -0.5
    scores_BNTT = scale * einsum_f32("btnh,bsnh->bnts", q_BTNH, k_BTNH)
    same_BNTT = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    return jax.nn.softmax(jnp.where(same_BNTT, scores_BNTT, NEG), axis=-1)


def _attend_xla(q_BTNH, k_BTNH, v_BTNH, segments_BT, dropout_rate, dropout_key):
    weights_BNTT = _softmax_weights(q_BTNH, k_BTNH, segments_BT)
    if dropout_rate:
        kept = jax.random.bernoulli(dropout_key, 1 - dropout_rate, weights_BNTT.shape)
        weights_BNTT = jnp.where(kept, weights_BNTT / (1 - dropout_rate), 0)
    out_BTNH = einsum_f32("bnts,bsnh->btnh", weights_BNTT.astype(v_BTNH.dtype), v_BTNH)
    return out_BTNH.astype(q_BTNH.dtype)


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
