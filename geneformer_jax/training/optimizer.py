"""AdamW with the original's decay groups and learning rate schedules, and Muon."""

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from optax.contrib import MuonDimensionNumbers

from geneformer_jax.model.encoder import Params
from geneformer_jax.training.config import OptimizerConfig

_DECAYED = ("kernel", "embedding")
# Which axes of a kernel go into its product and which come out of it; the layers that are stacked
# in front of them have an update each.
_PRODUCTS = {
    "query": MuonDimensionNumbers((1,), (2, 3)),
    "key": MuonDimensionNumbers((1,), (2, 3)),
    "value": MuonDimensionNumbers((1,), (2, 3)),
    "attention_output": MuonDimensionNumbers((1, 2), (3,)),
    "up": MuonDimensionNumbers((1,), (2,)),
    "down": MuonDimensionNumbers((1,), (2,)),
    "transform": MuonDimensionNumbers((0,), (1,)),
}
# Root mean square of AdamW's updates, as measured by Liu et al., Muon is scalable for LLM training,
# 2025.
_ADAM_SIZE = 0.2


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    As the original's scheduler: linear warmup from 0 (the first update has rate 0 if there is any
    warmup), then linear or half-cosine to 0 at `steps`, or constant; or constant until the last
    part of the steps, and in that linear to 0.
    """
    warmup = warmup_steps(config, steps)
    return lambda step: config.learning_rate * rate_fraction(config, warmup, steps, step)


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


def rate_fraction(
    config: OptimizerConfig, warmup: ArrayLike, steps: ArrayLike, step: ArrayLike
) -> jax.Array:
    """Returns the fraction of the peak rate after `step` updates; see `learning_rate`.

    All but the schedule's form may be traced: runs of other lengths share a compiled step.
    """
    rising = step / jnp.maximum(warmup, 1)
    done = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1), 0.0, 1.0)
    after = {
        "linear": lambda: 1 - done,
        "cosine": lambda: (1 + jnp.cos(jnp.pi * done)) / 2,
        "constant": lambda: jnp.ones_like(done),
        "stable_decay": lambda: jnp.clip((steps - step) / (config.decay_ratio * steps), 0.0, 1.0),
    }[config.schedule]()
    return jnp.where(step < warmup, rising, after)


def decayed(params: Params) -> Params:
    """Marks the weights that decay: all but biases and layer norms, embeddings included."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


def _axes(path: tuple[jax.tree_util.DictKey, ...], _: jax.Array) -> MuonDimensionNumbers | None:
    """Returns the axes of a kernel's product; None for what is no kernel of a layer."""
    *_, owner, name = (key.key for key in path)
    return _PRODUCTS[owner] if name == "kernel" else None


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns gradient clipping followed by AdamW, or by Muon and AdamW."""
    optimizer = {"adamw": _adamw, "muon": _muon}[config.name](config, steps)
    if not config.clip_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def _adamw(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    return optax.adamw(
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decayed,
    )


def _muon(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns Muon for kernels and AdamW for all else.

    optax's own AdamW beside its Muon is of another kind: with Nesterov's momentum, and decay of
    biases and norms too.
    """

    def axes(kernels: Params) -> Params:
        return jax.tree_util.tree_map_with_path(_axes, kernels)

    def labels(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: "adamw" if _axes(path, leaf) is None else "muon", params
        )

    muon = optax.contrib.muon(
        learning_rate(config, steps),
        eps=config.eps,
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=axes,
        consistent_rms=_ADAM_SIZE,
    )
    return optax.partition({"muon": muon, "adamw": _adamw(config, steps)}, labels)
