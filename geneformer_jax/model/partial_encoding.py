"""Parts of the encoder by themselves, for those who need less than a whole pass, or more of it."""

import jax
import jax.numpy as jnp

from geneformer_jax.model.attention.plain import attend_plain
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Block, Params, stacked_blocks
from geneformer_jax.model.runtime import Runtime


def run_blocks(
    config: EncoderConfig,
    params: Params,
    hidden_BTD: jax.Array,
    lengths_B: jax.Array,
    *,
    first: int,
    last: int,
    runtime: Runtime,
) -> jax.Array:
    """Runs blocks `first` to before `last` on hidden states; returns hidden states [B, T, D].

    `encode` to layer m, and from there with this to layer n, is `encode` to layer n.
    """
    build, blocks = stacked_blocks(config, params, runtime.precision)

    def body(x_BTD: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        x_BTD = build(weights)(x_BTD, lengths_B, None, runtime.attention, None)
        return runtime.constrain(x_BTD), None

    chosen = jax.tree.map(lambda leaf: leaf[first:last], blocks)
    return jax.lax.scan(body, hidden_BTD, chosen)[0]


def first_token(
    config: EncoderConfig,
    params: Params,
    hidden_BTD: jax.Array,
    lengths_B: jax.Array,
    *,
    block: int,
    runtime: Runtime,
) -> jax.Array:
    """Returns what a block makes of the first token alone, [B, D]: one query, all keys.

    For whoever needs nothing but `<cls>`, this leaves out nearly all of the last block.
    """
    layer = single_block(config, params, block, runtime)
    x_BTD = hidden_BTD[:, :1]
    real_BT = (jnp.arange(hidden_BTD.shape[1]) < lengths_B[:, None]).astype(jnp.int32)
    keys_values = layer.key(hidden_BTD), layer.value(hidden_BTD)
    attended = attend_plain(
        layer.query(x_BTD), *keys_values, jnp.ones_like(real_BT[:, :1]), real_BT, 0.0, None
    )
    return layer.finish(x_BTD, attended)[:, 0]


def single_block(config: EncoderConfig, params: Params, block: int, runtime: Runtime) -> Block:
    """Returns one of the stacked blocks, counted from 0 at the bottom."""
    build, blocks = stacked_blocks(config, params, runtime.precision)
    return build(jax.tree.map(lambda leaf: leaf[block], blocks))
