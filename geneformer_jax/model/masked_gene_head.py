"""The head of pretraining: which gene stands at a masked position."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from geneformer_jax.model.config import EncoderConfig


class MaskedGeneHead(nnx.Module):
    """Predicts masked genes as BERT does: dense, ReLU, norm, then the tied embedding and a bias."""

    def __init__(self, config: EncoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.transform = nnx.Linear(
            config.width,
            config.width,
            kernel_init=nnx.initializers.normal(config.initializer_range),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = nnx.LayerNorm(
            config.width,
            epsilon=config.layer_norm_eps,
            dtype=dtype,
            use_fast_variance=False,
            rngs=rngs,
        )
        self.bias = nnx.Param(jnp.zeros(config.vocabulary_size))

    def __call__(self, hidden_BMD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
        """Returns float32 logits [B, M, V] for hidden states [B, M, D]."""
        x_BMD = self.norm(jax.nn.relu(self.transform(hidden_BMD)))
        logits_BMV = jnp.einsum(
            "bmd,vd->bmv",
            x_BMD,
            embedding_VD.astype(x_BMD.dtype),
            preferred_element_type=jnp.float32,
        )
        return logits_BMV + self.bias[...]
