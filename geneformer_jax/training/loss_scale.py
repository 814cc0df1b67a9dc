"""Dynamic loss scaling, which keeps float16 gradients from underflowing to zero.

The loss is multiplied by a scale before differentiation and gradients are divided by it after. If a
gradient overflows, the update is skipped and the scale halved; after a run of good steps the scale
doubles again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

INITIAL_SCALE = 2.0**15
GROWTH_PERIOD = 2_000
_SMALLEST_SCALE = 1.0


class LossScale(NamedTuple):
    """State of the scaling; scalars.

    Attributes:
      scale: float32 factor of the loss.
      good_steps: int32, steps without overflow since the scale last changed.
      skipped: int32, updates skipped so far.
    """

    scale: jax.Array
    good_steps: jax.Array
    skipped: jax.Array


def initial_loss_scale() -> LossScale:
    """Returns the state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return LossScale(jnp.asarray(INITIAL_SCALE, jnp.float32), zero, zero)


def all_finite(tree: Any) -> jax.Array:
    """Returns whether every number of every array in `tree` is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def next_loss_scale(state: LossScale, finite: jax.Array) -> LossScale:
    """Returns the state after a step whose gradients were all finite, or not."""
    good = jnp.where(finite, state.good_steps + 1, 0)
    grows = good >= GROWTH_PERIOD
    scale = jnp.where(finite, state.scale, jnp.maximum(state.scale / 2, _SMALLEST_SCALE))
    return LossScale(
        scale=jnp.where(grows, scale * 2, scale),
        good_steps=jnp.where(grows, 0, good),
        skipped=state.skipped + jnp.where(finite, 0, 1),
    )
