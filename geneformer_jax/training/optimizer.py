"""AdamW with the original's decay groups and learning rate schedules."""

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from geneformer_jax.model.encoder import Params
from geneformer_jax.training.config import OptimizerConfig

_DECAYED = ("kernel", "embedding")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    As the original's scheduler: linear warmup from 0 (the first update has rate 0 if there is any
    warmup), then linear or half-cosine to 0 at `steps`, or constant.
    """
    warmup = warmup_steps(config, steps)
    return lambda step: config.learning_rate * rate_fraction(config.schedule, warmup, steps, step)


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """Returns the number of warmup steps of a run of `steps` steps."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * steps)


def describe_long_warmup(config: OptimizerConfig, steps: int) -> str:
    """Returns what is wrong where a run of `steps` steps ends before its warmup does; else ""."""
    warmup = warmup_steps(config, steps)
    if warmup < steps:
        return ""
    return (
        f"{warmup:,} steps of warmup, but only {steps:,} steps: the learning rate never "
        f"reaches {config.learning_rate:g}, and little is learned; set "
        "`config.optimizer.warmup_steps`=0 and `config.optimizer.warmup_ratio`=0.1"
    )


def rate_fraction(schedule: str, warmup: ArrayLike, steps: ArrayLike, step: ArrayLike) -> jax.Array:
    """Returns the fraction of the peak rate after `step` updates; see `learning_rate`.

    All but the schedule's name may be traced: runs of other lengths share a compiled step.
    """
    rising = step / jnp.maximum(warmup, 1)
    done = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1), 0.0, 1.0)
    after = {
        "linear": lambda: 1 - done,
        "cosine": lambda: (1 + jnp.cos(jnp.pi * done)) / 2,
        "constant": lambda: jnp.ones_like(done),
    }[schedule]()
    return jnp.where(step < warmup, rising, after)


def decayed(params: Params) -> Params:
    """Marks the weights that decay: all but biases and layer norms, embeddings included."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns gradient clipping followed by AdamW."""
    adamw = optax.adamw(
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    if not config.clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
