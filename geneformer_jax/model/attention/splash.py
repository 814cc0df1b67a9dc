"""Attention on TPU: JAX's splash kernel, one call per cell, under the mesh."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from geneformer_jax.model.attention.sharded import on_each_shard

# The kernel's lanes: it takes lengths that are multiples of this only.
LANES = 128
# Largest first; the kernel needs a block that divides the length.
_BLOCKS = (512, 384, 256, LANES)
_OPERANDS = (*(("batch", "heads"),) * 3, ("batch",))


def attend_splash(q_BTNH, k_BTNH, v_BTNH, segments_BT):
    """Returns the attention within segments, [B, T, N, H]; pads (segment 0) attend each other.

    On a CPU the kernel is interpreted, which is slow and meant for tests. Under `jax.set_mesh` it
    runs on each device's own cells and heads, since XLA cannot partition a kernel.
    """
    positions = q_BTNH.shape[1]
    tail = -positions % LANES
    # The kernel does not scale.
    q_BTNH = q_BTNH * jnp.asarray(q_BTNH.shape[-1] ** -0.5, q_BTNH.dtype)
    # [B, N, T, H]
    heads_first = [
        jnp.pad(x, ((0, 0), (0, tail), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (q_BTNH, k_BTNH, v_BTNH)
    ]
    segments_BT = jnp.pad(segments_BT, ((0, 0), (0, tail)))
    attend = on_each_shard(_attend_shard, heads_first[0], _OPERANDS)
    out_BNTH = attend(*heads_first, segments_BT)
    return out_BNTH.swapaxes(1, 2)[:, :positions]


def _attend_shard(*operands):
    return jax.lax.platform_dependent(
        *operands,
        cpu=partial(_run_kernel, interpret=True),
        default=partial(_run_kernel, interpret=False),
    )


def _run_kernel(q_BNTH, k_BNTH, v_BNTH, segments_BT, *, interpret: bool):
    _, heads, positions, _ = q_BNTH.shape
    block = next(size for size in _BLOCKS if positions % size == 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((positions, positions))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segment_ids = splash.SegmentIds(q=segments_BT, kv=segments_BT)
    # The kernel takes what is set around it, and for bfloat16 does not compile with "highest". Its
    # gradient is made later, out of reach from here.
    products = "highest" if q_BNTH.dtype == jnp.float32 else "default"
    with jax.default_matmul_precision(products):
        return jax.vmap(kernel)(q_BNTH, k_BNTH, v_BNTH, segment_ids)
