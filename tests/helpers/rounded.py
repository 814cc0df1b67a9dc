"""Quantised weights by hand: how nf4 and int8 are defined, without the package or qwix."""

import dataclasses

import jax
import numpy as np
from scipy.stats import norm

from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.quantization import QuantizedWeight

# Dettmers et al. 2023, section 3: quantiles of the normal distribution for 8 levels below zero and
# 8 above, zero among them, scaled to [-1, 1].
_OFFSET = 0.9677083
_ABOVE = norm.ppf(np.linspace(_OFFSET, 0.5, 9))
_BELOW = -norm.ppf(np.linspace(_OFFSET, 0.5, 8))
NF4_LEVELS = np.sort(np.concatenate([_BELOW[:-1], [0.0], _ABOVE[:-1]])) / _ABOVE[0]


def read_codes(weight: QuantizedWeight) -> np.ndarray:
    """Returns the float64 rows [rows, *row_shape] that the codes stand for, adapters added."""
    codes, scales = np.asarray(weight.codes), np.asarray(weight.scales).astype(np.float64)
    if codes.dtype == np.uint8:
        values = np.empty((*codes.shape[:2], 64))
        values[..., 0::2], values[..., 1::2] = NF4_LEVELS[codes % 16], NF4_LEVELS[codes // 16]
    else:
        values = codes.astype(np.float64)
    rows = (values * scales).reshape(len(codes), -1)[:, : np.prod(weight.row_shape)]
    if weight.into is not None:
        product = np.asarray(weight.into, np.float64) @ np.asarray(weight.out, np.float64)
        rows = rows + product.reshape(rows.shape)
    return rows.reshape(len(codes), *weight.row_shape)


def is_rounded(leaf: object) -> bool:
    return isinstance(leaf, QuantizedWeight)


def in_floats(params):
    """The weights with what their codes stand for in float32."""
    return jax.tree.map(
        lambda leaf: read_codes(leaf).astype(np.float32) if is_rounded(leaf) else leaf,
        params,
        is_leaf=is_rounded,
    )


def model_in_floats(model: PretrainedModel) -> PretrainedModel:
    return dataclasses.replace(model, params=in_floats(model.params), quantization=None)
