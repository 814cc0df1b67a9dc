"""AdamW with the original's decay groups and learning rate schedules."""

import math

import jax
import optax

from geneformer_jax.model.encoder import Params
from geneformer_jax.training.config import OptimizerConfig

_DECAYED = ("kernel", "embedding")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    As the original's scheduler: linear warmup from 0 (the first update has rate 0 if there is any
    warmup), then linear or half-cosine to 0 at `steps`, or constant.
    """
    peak = config.learning_rate
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * steps)
    rest = max(steps - warmup, 1)
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


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
