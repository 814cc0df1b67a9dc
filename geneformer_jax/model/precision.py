"""Precision presets: which floating point type computes, and which one is stored."""

import dataclasses

import jax
import jax.numpy as jnp

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.model.config import PRECISIONS


@dataclasses.dataclass(frozen=True)
class Precision:
    """Where each number format is used.

    Attributes:
      name: the preset's name.
      compute: type of activations and of weights at the place of use.
      scaled_loss: whether gradients need dynamic loss scaling so as not to underflow.

    Weights, optimizer state, layer norm statistics, softmax, logits and losses are float32 in every
    preset.
    """

    name: str
    compute: jax.typing.DTypeLike
    scaled_loss: bool = False


_PRESETS = {
    name: Precision(name, getattr(jnp, name), scaled_loss=name == "float16") for name in PRECISIONS
}


def precision_preset(name: str) -> Precision:
    """Returns a preset by name; raises InputError if there is none."""
    if name not in _PRESETS:
        known = ", ".join(PRECISIONS)
        raise InputError(f'no precision "{name}"{did_you_mean(name, PRECISIONS)}; known: {known}')
    return _PRESETS[name]
