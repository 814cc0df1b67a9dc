"""Which of a model's weights are trainable; frozen ones have no gradient and no optimizer state."""

from typing import Any

import jax
import jax.numpy as jnp

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.config import TuningConfig
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.lora import LORA, init_lora, merge_lora

_EMBEDDINGS, _BLOCKS = "embeddings", "blocks"


def check_tuning(tuning: TuningConfig, encoder: EncoderConfig) -> None:
    """Raises InputError if more layers are to be frozen than there are."""
    if tuning.freeze_layers > encoder.layers:
        raise InputError(
            f"`config.tuning.freeze_layers` is {tuning.freeze_layers}, but the model has "
            f"{encoder.layers} layers; freeze at most so many"
        )


def split_weights(
    params: Params, encoder: EncoderConfig, tuning: TuningConfig, key: jax.Array
) -> tuple[Params, Params]:
    """Returns (trainable weights, frozen weights), which `join_weights` joins again.

    Args:
      params: of the encoder and one head.
      encoder: shape of the model.
      tuning: which weights are trainable.
      key: of new low-rank factors.
    """
    heads = {name: params[name] for name in params if name not in (_EMBEDDINGS, _BLOCKS)}
    embeddings = {_EMBEDDINGS: params[_EMBEDDINGS]}
    whole = embeddings | {_BLOCKS: params[_BLOCKS]}
    if tuning.lora is not None:
        return heads | {LORA: init_lora(encoder, tuning.lora, key)}, whole
    if tuning.head_only:
        return heads, whole
    k = tuning.freeze_layers
    trainable, frozen = dict(heads), {}
    (frozen if tuning.freeze_embeddings else trainable).update(embeddings)
    if k < encoder.layers:
        trainable[_BLOCKS] = jax.tree.map(lambda leaf: leaf[k:], params[_BLOCKS])
    if k:
        frozen[_BLOCKS] = jax.tree.map(lambda leaf: leaf[:k], params[_BLOCKS])
    return trainable, frozen


def join_weights(trainable: Params, frozen: Params, tuning: TuningConfig) -> Params:
    """Returns the weights of the whole model, low-rank factors merged in."""
    params = {**frozen, **trainable}
    if _BLOCKS in trainable and _BLOCKS in frozen:
        params[_BLOCKS] = jax.tree.map(
            lambda low, high: jnp.concatenate([low, high]), frozen[_BLOCKS], trainable[_BLOCKS]
        )
    if LORA in params:
        factors = params.pop(LORA)
        params[_BLOCKS] = merge_lora(params[_BLOCKS], factors, tuning.lora)
    return params


def constant_layers(tuning: TuningConfig, encoder: EncoderConfig) -> int:
    """Returns how many of the lowest layers need no gradient of their weights, though others do."""
    partly = tuning.freeze_layers and not tuning.head_only
    return tuning.freeze_layers if partly and tuning.freeze_layers < encoder.layers else 0


def rate_factors(trainable: Params, encoder: EncoderConfig, tuning: TuningConfig) -> Any:
    """Returns for each trainable weight its learning rate as a multiple of the head's.

    Scalars, or arrays that broadcast along the stacked layers. Layer i of L has
    decay^(L - i), embeddings decay^(L + 1) (as ELECTRA's layer-wise rates).
    """
    L, decay = encoder.layers, tuning.layer_decay

    def factor(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        match path[0].key:
            case "embeddings":
                return decay ** (L + 1)
            case "blocks" | "lora":
                height = jnp.arange(leaf.shape[0], 0, -1, dtype=jnp.float32)
                return (decay**height).reshape(-1, *(1,) * (leaf.ndim - 1))
        return 1.0

    return jax.tree_util.tree_map_with_path(factor, trainable)
