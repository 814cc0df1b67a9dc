"""Heads on top of the encoder."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.precision import Precision


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


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """What a classification head tells apart.

    Attributes:
      kind: a key of HEADS, and of the weights: "cell_classifier" or "gene_classifier".
      labels: names of the C classes, in the order of the logits.
      dropout: rate on what the classifier sees.
    """

    kind: str
    labels: tuple[str, ...]
    dropout: float

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.kind not in HEADS:
            known = ", ".join(HEADS)
            raise InputError(f'no head "{self.kind}"{did_you_mean(self.kind, HEADS)}; use {known}')
        if not self.labels:
            raise InputError(f"a {self.kind} without labels tells nothing apart; give two or more")
        if not 0 <= self.dropout < 1:
            raise InputError(f"the head's dropout is {self.dropout}; it must be in [0, 1)")


def _classifier(config: EncoderConfig, classes: int, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        config.width,
        classes,
        kernel_init=nnx.initializers.normal(config.initializer_range),
        dtype=dtype,
        preferred_element_type=jnp.float32,
        rngs=rngs,
    )


class CellClassifierHead(nnx.Module):
    """Classifies cells as the original does: tanh pooler on position 0, dropout, linear.

    Position 0 is `<cls>` in a V2 cell; a V1 cell has none, there it is the top-ranked gene.
    """

    def __init__(self, config: EncoderConfig, head: HeadConfig, dtype: Any, rngs: nnx.Rngs):
        self.pooler = nnx.Linear(
            config.width,
            config.width,
            kernel_init=nnx.initializers.normal(config.initializer_range),
            dtype=dtype,
            rngs=rngs,
        )
        self.dropout = nnx.Dropout(head.dropout)
        self.classifier = _classifier(config, len(head.labels), dtype, rngs)

    def pool(self, hidden_BTD: jax.Array) -> jax.Array:
        """Returns what stands for each cell [B, D]."""
        return jnp.tanh(self.pooler(hidden_BTD[:, 0]))

    def __call__(self, hidden_BTD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Returns float32 logits [B, C] of the last hidden state; a key switches dropout on."""
        return self.classifier(_drop(self.dropout, self.pool(hidden_BTD), dropout_key))


class GeneClassifierHead(nnx.Module):
    """Classifies each gene of a cell as the original does: dropout and linear, no pooler."""

    def __init__(self, config: EncoderConfig, head: HeadConfig, dtype: Any, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(head.dropout)
        self.classifier = _classifier(config, len(head.labels), dtype, rngs)

    def __call__(self, hidden_BTD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Returns float32 logits [B, T, C] of the last hidden state; a key switches dropout on."""
        return self.classifier(_drop(self.dropout, hidden_BTD, dropout_key))


HEADS = {"cell_classifier": CellClassifierHead, "gene_classifier": GeneClassifierHead}


def _drop(dropout: nnx.Dropout, x: jax.Array, key: jax.Array | None) -> jax.Array:
    return x if key is None else dropout(x, deterministic=False, rngs=key)


def init_head(config: EncoderConfig, head: HeadConfig, key: jax.Array) -> dict[str, Any]:
    """Draws a head's initial weights as BERT does: normal(0, initializer_range), zero biases."""
    built = HEADS[head.kind](config, head, jnp.float32, nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(built, nnx.Param))


def head_module(
    config: EncoderConfig, head: HeadConfig, weights: dict[str, Any], precision: Precision
) -> CellClassifierHead | GeneClassifierHead:
    """Returns the head holding `weights`, which are `params[head.kind]` of a model."""
    build = functools.partial(HEADS[head.kind], config, head, precision.compute)
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)
