"""Encoding with a handle on each token: where it stands, and how much attention it takes.

At their neutral values the handles change nothing. Derivatives with respect to them tell what
moving a token, or taking it away, would do, for all tokens of a cell in one backward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from geneformer_jax.model.attention.dispatch import attend
from geneformer_jax.model.attention.plain import split_positions
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Block, Params, module, stacked_blocks
from geneformer_jax.model.runtime import REMAT_POLICIES, Runtime

# Fused kernels want multiples of it; one is used.
_FEATURES = 8


def embed_moved(
    config: EncoderConfig,
    params: Params,
    tokens_BT: jax.Array,
    moved_BT: jax.Array,
    runtime: Runtime,
) -> jax.Array:
    """Returns embeddings [B, T, D] of tokens that have moved up by a part of one position.

    Args:
      config: shape of the model.
      params: its weights.
      tokens_BT: token ids, padded on the right.
      moved_BT: 0 where a token stands at its own position, 1 where at the one before, and what lies
        between on the line from one position's embedding to the other's.
      runtime: how to compute.
    """
    embeddings = module(config, params, runtime.precision).embeddings

    def embed(tokens_BT: jax.Array, position_BT: jax.Array, moved_BT: jax.Array) -> jax.Array:
        own_BTD, above_BTD = (embeddings.position(jnp.maximum(position_BT - n, 0)) for n in (0, 1))
        moved_BT1 = moved_BT[..., None].astype(own_BTD.dtype)
        places_BTD = (1 - moved_BT1) * own_BTD + moved_BT1 * above_BTD
        return embeddings.at_places(tokens_BT, places_BTD)

    position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return _in_chunks(embed, tokens_BT, position_BT, moved_BT)


def run_gated_blocks(
    config: EncoderConfig,
    params: Params,
    hidden_BTD: jax.Array,
    lengths_B: jax.Array,
    bias_BT: jax.Array,
    *,
    first: int = 0,
    last: int,
    runtime: Runtime,
) -> jax.Array:
    """Runs blocks `first` to before `last` with a bias on each token's attention; [B, T, D].

    Args:
      config: shape of the model.
      params: its weights.
      hidden_BTD: hidden states that block `first` takes.
      lengths_B: tokens of each row.
      bias_BT: float32, added to all attention scores of the token as a key; 0 changes nothing, and
        at minus infinity no other token would see it.
      first, last: which blocks to run.
      runtime: how to compute. A backward pass keeps what its `remat` says.
    """
    build, blocks = stacked_blocks(config, params, runtime.precision)

    def body(x_BTD: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        # Picked one by one: slices of the stacked weights would be copies.
        layer = build(jax.tree.map(lambda leaf: leaf[number], blocks))
        attended_BTNH = _attend_biased(layer, x_BTD, lengths_B, bias_BT, runtime.attention)
        return _in_chunks(layer.finish, x_BTD, attended_BTNH), None

    if runtime.remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[runtime.remat], prevent_cse=False)
    return jax.lax.scan(body, hidden_BTD, jnp.arange(first, last))[0]


def _attend_biased(
    layer: Block, x_BTD: jax.Array, lengths_B: jax.Array, bias_BT: jax.Array, attention: str
) -> jax.Array:
    """Attends with the bias as one more feature of the keys, which every implementation takes."""
    q_BTNH, k_BTNH, v_BTNH = layer.project(x_BTD)
    size = q_BTNH.shape[-1]
    # Implementations divide scores by the root of all features.
    root = (size + _FEATURES) ** 0.5
    bias_BTN = jnp.broadcast_to(bias_BT[..., None], k_BTNH.shape[:3]).astype(k_BTNH.dtype)
    attended_BTNH = attend(
        _with_feature(q_BTNH * (root / size**0.5), jnp.full_like(bias_BTN, root)),
        _with_feature(k_BTNH, bias_BTN),
        _with_feature(v_BTNH, jnp.zeros_like(bias_BTN)),
        lengths_B,
        implementation=attention,
    )
    return attended_BTNH[..., :size]


def _in_chunks(function: Callable[..., jax.Array], *inputs_BT: jax.Array) -> jax.Array:
    """Applies a function of single tokens to a chunk of them at a time, forward and backward."""
    chunks = [split_positions(each) for each in inputs_BT]
    made_ABT = jax.lax.map(lambda each: jax.checkpoint(function)(*each), chunks)
    made_BT = jnp.moveaxis(made_ABT, 0, 1).reshape(len(inputs_BT[0]), -1, *made_ABT.shape[3:])
    return made_BT[:, : inputs_BT[0].shape[1]]


def _with_feature(x_BTNH: jax.Array, feature_BTN: jax.Array) -> jax.Array:
    zeros_BTNF = jnp.zeros((*feature_BTN.shape, _FEATURES - 1), x_BTNH.dtype)
    return jnp.concatenate([x_BTNH, feature_BTN[..., None], zeros_BTNF], axis=-1)
