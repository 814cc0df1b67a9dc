"""A model of the same shape with random weights: what a result must beat."""

import dataclasses

import jax

from geneformer_jax.model.encoder import init_params
from geneformer_jax.model.pretrained import PretrainedModel

MODEL, RANDOM = "model", "random weights"


def random_model(model: PretrainedModel, seed: int = 0) -> PretrainedModel:
    """Returns a model of the same shape and vocabulary with weights as before any training."""
    draw = jax.jit(init_params, static_argnums=0)
    params = draw(model.config, jax.random.key(seed))
    return dataclasses.replace(
        model, params=params, source=RANDOM, step=0, head=None, quantization=None
    )
