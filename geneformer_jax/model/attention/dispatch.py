"""Bidirectional attention over padded or packed cells, in interchangeable implementations.

One rule for all: a position takes weight only from positions of its own cell, and the output at a
pad position is exactly zero, so that nothing a pad computes reaches a value or a gradient. The
original masks keys only and lets pad queries attend; what they yield is never used, so real
positions agree with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.model.attention.by_head import attend_by_head
from geneformer_jax.model.attention.plain import attend_chunked, attend_plain, softmax_weights
from geneformer_jax.model.attention.splash import attend_splash

IMPLEMENTATIONS = ("xla", "chunked", "by_head", "cudnn", "splash")
# Longest cells for which "auto" materialises all scores. On a CPU a training step took a tenth less
# time in chunks at 512 tokens, and far less memory; elsewhere this is not measured.
LONGEST_PLAIN = 512
LONGEST_PLAIN_ON_CPU = 256
_UNPACKED = "needs rows of one cell each, not packed cells"

PROFILED = ("xla", "chunked", "by_head")


class AttentionChoice(NamedTuple):
    """An implementation, and why it was chosen (printed at start)."""

    implementation: str
    reason: str


class _Situation(NamedTuple):
    platform: str
    compute_dtype: jnp.dtype
    head_size: int
    dropout_rate: float
    packed: bool
    compute_capability: float | None


def choose_attention(
    requested: str,
    *,
    platform: str,
    compute_dtype: DTypeLike,
    head_size: int,
    dropout_rate: float,
    packed: bool,
    positions: int,
    inference: bool = False,
    compute_capability: float | None = None,
) -> AttentionChoice:
    """Returns the implementation to run, resolving "auto" and refusing what cannot run.

    "auto" takes the fused kernel of the platform where that can run, "by_head" for inference on a
    CPU, else "xla" for cells of up to `LONGEST_PLAIN` tokens (on a CPU `LONGEST_PLAIN_ON_CPU`) and
    "chunked" for longer ones.

    Args:
      requested: "auto" or one of `IMPLEMENTATIONS`.
      platform: of the devices that compute, as `jax.default_backend()` names it.
      compute_dtype: of queries, keys and values.
      head_size: H.
      dropout_rate: on the attention weights in training; 0 for inference.
      packed: whether rows hold several cells.
      positions: T of the longest batch.
      inference: whether no gradients will be asked for.
      compute_capability: of the GPU, such as 7.0 (V100) or 9.0 (H100). By default the first local
        device is asked.

    Raises:
      InputError: an unknown name, or an implementation that cannot run here.
    """
    if requested not in ("auto", *IMPLEMENTATIONS):
        raise InputError(_unknown(requested, ("auto", *IMPLEMENTATIONS)))
    if compute_capability is None and platform in ("gpu", "cuda"):
        compute_capability = compute_capability_of(jax.local_devices()[0])
    situation = _Situation(
        platform, jnp.dtype(compute_dtype), head_size, dropout_rate, packed, compute_capability
    )
    if requested == "auto":
        return _choose_automatically(situation, positions, inference)
    _require_none(requested, _obstacle(requested, situation))
    return AttentionChoice(requested, "asked for")


def _choose_automatically(
    situation: _Situation, positions: int, inference: bool
) -> AttentionChoice:
    fused = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(situation.platform)
    obstacle = _obstacle(fused, situation)
    if fused and not obstacle:
        return AttentionChoice(fused, f"the fused kernel for {situation.platform}")
    on_cpu = situation.platform == "cpu"
    if on_cpu and inference:
        return AttentionChoice("by_head", "inference on a CPU")
    without = f'; "{fused}" {obstacle}' if fused else ""
    longest = LONGEST_PLAIN_ON_CPU if on_cpu else LONGEST_PLAIN
    if positions <= longest:
        return AttentionChoice("xla", f"cells of at most {longest} tokens{without}")
    return AttentionChoice("chunked", f"cells of more than {longest} tokens{without}")


def _obstacle(implementation: str | None, situation: _Situation) -> str | None:
    """Returns what a fused kernel needs and does not find, or None where it can run."""
    match implementation:
        case "cudnn":
            return _cudnn_obstacle(situation)
        case "splash":
            return _splash_obstacle(situation)
    return None


def _cudnn_obstacle(situation: _Situation) -> str | None:
    capability = situation.compute_capability
    if situation.platform not in ("gpu", "cuda"):
        return f"needs an NVIDIA GPU, not {situation.platform}"
    if capability is None or capability < 8:
        return f"needs an NVIDIA GPU of compute capability 8.0 or more, not {capability}"
    if situation.compute_dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs precision bfloat16 or float16, not {situation.compute_dtype}"
    largest = 256 if capability >= 9 else 128
    if situation.head_size % 8 or situation.head_size > largest:
        return f"needs a head size of 8, 16, ... {largest}, not {situation.head_size}"
    if situation.packed:
        return _UNPACKED
    return _dropout_obstacle(situation.dropout_rate)


def _splash_obstacle(situation: _Situation) -> str | None:
    if situation.platform != "tpu":
        return f"needs a TPU, not {situation.platform}"
    if situation.compute_dtype not in (jnp.bfloat16, jnp.float32):
        return f"needs precision bfloat16 or float32, not {situation.compute_dtype}"
    return _dropout_obstacle(situation.dropout_rate)


def _dropout_obstacle(rate: float) -> str | None:
    return f"needs attention dropout 0, not {rate}" if rate else None


def _require_none(implementation: str, obstacle: str | None) -> None:
    if obstacle:
        raise InputError(
            f'attention "{implementation}" {obstacle}: change that, or use attention "auto"'
        )


def compute_capability_of(device: jax.Device) -> float | None:
    """Returns a device's compute capability, such as 9.0; None where it is no NVIDIA GPU."""
    try:
        return float(getattr(device, "compute_capability", ""))
    except ValueError:
        return None


def attend(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    lengths_B: jax.Array | None,
    *,
    implementation: str,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """Returns softmax(q k^T / sqrt(H)) v within each cell, [B, T, N, H] in the dtype of `q_BTNH`.

    Scores and softmax are float32 whatever the compute dtype. A row may be all pads.

    Args:
      q_BTNH, k_BTNH, v_BTNH: queries, keys and values of one floating dtype.
      lengths_B: int32, tokens of each row; positions from there on are pads. None with segments.
      implementation: one of `IMPLEMENTATIONS`, as `choose_attention` returns it.
      dropout_rate: as in BERT, on the softmax weights, the kept ones divided by 1 - rate. Without
        `dropout_key` nothing is dropped.
      dropout_key: a JAX random key, or None.
      segments_BT: int32, 1.. for each packed cell, 0 for pads; attention stays within a segment.

    Raises:
      InputError: an unknown implementation, or one that has no dropout or no segments where these
        are asked for; both or neither of lengths and segments.
    """
    if (lengths_B is None) == (segments_BT is None):
        raise InputError("attend got both or neither of lengths_B and segments_BT: give one")
    if dropout_key is None:
        dropout_rate = 0.0
    if segments_BT is None:
        segments_BT = _segments(lengths_B, q_BTNH.shape[1])
    qkv = q_BTNH, k_BTNH, v_BTNH
    match implementation:
        case "xla":
            out_BTNH = attend_plain(*qkv, segments_BT, segments_BT, dropout_rate, dropout_key)
        case "chunked":
            out_BTNH = attend_chunked(*qkv, segments_BT, dropout_rate, dropout_key)
        case "by_head":
            out_BTNH = attend_by_head(*qkv, segments_BT, dropout_rate, dropout_key)
        case "cudnn":
            _require_none(implementation, _dropout_obstacle(dropout_rate))
            out_BTNH = _attend_cudnn(*qkv, lengths_B)
        case "splash":
            _require_none(implementation, _dropout_obstacle(dropout_rate))
            out_BTNH = attend_splash(*qkv, segments_BT)
        case _:
            raise InputError(_unknown(implementation, IMPLEMENTATIONS))
    return jnp.where((segments_BT > 0)[:, :, None, None], out_BTNH, 0)


def attention_weights(q_BTNH: jax.Array, k_BTNH: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Returns the softmax weights, float32 [B, N, T, T] (query, key), for attention analysis.

    The row of a real query sums to 1 over the real keys; rows of pads are zero.
    """
    segments_BT = _segments(lengths_B, q_BTNH.shape[1])
    weights_BNTT = softmax_weights(q_BTNH, k_BTNH, segments_BT, segments_BT)
    return jnp.where((segments_BT > 0)[:, None, :, None], weights_BNTT, 0)


def _segments(lengths_B: jax.Array, positions: int) -> jax.Array:
    """Returns 1 where a token stands and 0 at pads, int32 [B, T]."""
    return (jnp.arange(positions) < lengths_B[:, None]).astype(jnp.int32)


def _attend_cudnn(
    q_BTNH: jax.Array, k_BTNH: jax.Array, v_BTNH: jax.Array, lengths_B: jax.Array | None
) -> jax.Array:
    """Returns cuDNN's fused attention, given the lengths: a mask would become a [B, T, T] bias."""
    if lengths_B is None:
        _require_none("cudnn", _UNPACKED)
    # No kernel is trusted with a softmax over no keys at all: an empty row attends its first pad.
    lengths_B = jnp.maximum(lengths_B, 1)
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BTNH,
        v_BTNH,
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        implementation="cudnn",
    )


def _unknown(name: str, known: tuple[str, ...]) -> str:
    return (
        f'attention "{name}" is unknown: use one of {", ".join(known)}{did_you_mean(name, known)}'
    )


def require_profiled(attention: str) -> None:
    """Raises InputError for an implementation that never holds its weights."""
    if attention not in PROFILED:
        raise InputError(
            f'attention "{attention}" never holds its weights, so none can be read off; use '
            f"{', '.join(PROFILED)} or auto"
        )
