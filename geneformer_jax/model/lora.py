"""Low-rank adaptation: a pretrained kernel W trained as W + (alpha / rank) A B, W itself fixed.

The factors lie beside the weights as `lora/TARGET/{into,out}/kernel`, stacked along the layers. A
is drawn as BERT draws weights and B is zero, so that training begins with the pretrained model (Hu
et al. 2021). The sum is formed before the encoder runs: its gradients are those of a full kernel,
and only the factors, their optimizer state and their checkpoint are small. Beside quantised kernels
it is formed for a layer as that is computed (QLoRA, Dettmers et al. 2023).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from geneformer_jax.model.attention.products import FLOAT32_PRODUCTS
from geneformer_jax.model.config import EncoderConfig, LoraConfig
from geneformer_jax.model.quantization import QuantizedWeight

LORA = "lora"
_EQUATIONS = {
    "query": "ldr,lrnh->ldnh",
    "key": "ldr,lrnh->ldnh",
    "value": "ldr,lrnh->ldnh",
    "attention_output": "lnhr,lrd->lnhd",
    "up": "ldr,lrf->ldf",
    "down": "lfr,lrd->lfd",
}


def init_lora(config: EncoderConfig, lora: LoraConfig, key: jax.Array) -> dict[str, Any]:
    """Draws the factors: A normal(0, initializer_range), B zero."""
    factors = {}
    keys = jax.random.split(key, len(lora.targets))
    for target, own in zip(lora.targets, keys, strict=True):
        into, out = _shapes(config, target)
        kernel = config.initializer_range * jax.random.normal(own, (*into, lora.rank), jnp.float32)
        zeros = jnp.zeros((config.layers, lora.rank, *out), jnp.float32)
        factors[target] = {"into": {"kernel": kernel}, "out": {"kernel": zeros}}
    return factors


def _shapes(config: EncoderConfig, target: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of what a projection takes, layers first, and of what it gives."""
    heads = (config.heads, config.head_size)
    width, forward = (config.width,), (config.feed_forward,)
    into = {"attention_output": heads, "down": forward}.get(target, width)
    out = {"attention_output": width, "down": width, "up": forward}.get(target, heads)
    return (config.layers, *into), out


def merge_lora(blocks: dict[str, Any], factors: dict[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """Returns stacked blocks with the adapted kernels in place of the pretrained ones."""
    merged = dict(blocks)
    for target, factor in factors.items():
        into, out = (factor[side]["kernel"] for side in ("into", "out"))
        kernel, scaling = blocks[target]["kernel"], lora.alpha / lora.rank
        if isinstance(kernel, QuantizedWeight):
            into = into.reshape(len(into), -1, lora.rank)
            kernel = kernel.adapted(into, scaling * out.reshape(len(out), lora.rank, -1))
        else:
            kernel = kernel + scaling * jnp.einsum(
                _EQUATIONS[target], into, out, precision=FLOAT32_PRODUCTS
            )
        merged[target] = {**blocks[target], "kernel": kernel}
    return merged


def lora_parameters(config: EncoderConfig, lora: LoraConfig) -> int:
    """Returns the number of weights that the factors have."""
    return sum(
        math.prod(into) * lora.rank + config.layers * lora.rank * math.prod(out)
        for into, out in (_shapes(config, target) for target in lora.targets)
    )
