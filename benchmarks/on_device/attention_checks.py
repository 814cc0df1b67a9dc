"""Attention on this device beside plain attention in float32 on the host, gradients included."""

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from geneformer_jax.model.attention.dispatch import (
    IMPLEMENTATIONS,
    PROFILED,
    attend,
    choose_attention,
)
from geneformer_jax.model.config import PRECISIONS
from on_device.made_up import random_operands
from on_device.sizes import Sizes
from on_device.stages import Row
from on_device.verdicts import attempt, largest, largest_of, verdict
from tests.helpers.tolerances import ATTENTION

_SHORT, _HEADS, _HEAD_SIZE, _DROPOUT = 320, 4, 64, 0.3
_PARTS = ("out", "d_q", "d_k", "d_v")


def check(sizes: Sizes) -> Iterator[Row]:
    """Yields what each implementation gives in each precision, and which cannot run here."""
    short = _lengths(_SHORT)
    for name in IMPLEMENTATIONS:
        for precision in PRECISIONS:
            yield _check(name, precision, f"ragged, {_SHORT} tokens", lengths=short)
    for name in PROFILED:
        yield _check(name, "float32", "ragged, dropout", lengths=short, rate=_DROPOUT)
    packed = _packed_segments()
    for name in IMPLEMENTATIONS:
        yield _check(name, "float32", "packed", segments=packed)
    long = _lengths(sizes.long)
    for name, precision in (
        ("cudnn", "bfloat16"),
        ("cudnn", "float16"),
        ("splash", "bfloat16"),
        ("chunked", "bfloat16"),
        ("chunked", "float32"),
    ):
        yield _check(name, precision, f"ragged, {sizes.long:,} tokens", lengths=long)


def _lengths(tokens: int) -> np.ndarray:
    """Returns a full row, one that is cut within a block of any kernel, an empty one, one gene."""
    return np.array([tokens, tokens // 2 + 11, 0, 1], np.int32)


def _packed_segments() -> np.ndarray:
    """Returns rows of several cells and a tail of pads, of two, of none, of one."""
    segments = np.zeros((4, _SHORT), np.int32)
    segments[0, :310] = np.repeat([1, 2, 3, 4], [60, 1, 200, 49])
    segments[1] = np.repeat([1, 2], _SHORT // 2)
    segments[3] = 1
    return segments


def _check(name: str, precision: str, case: str, **options) -> Row:
    name_of_row = f"{name} {precision}, {case}"
    return attempt(name_of_row, lambda: _compare(name_of_row, name, precision, **options))


def _compare(name_of_row, name, precision, *, lengths=None, segments=None, rate=0.0) -> Row:
    choose_attention(
        name,
        platform=jax.devices()[0].platform,
        compute_dtype=precision,
        head_size=_HEAD_SIZE,
        dropout_rate=rate,
        packed=segments is not None,
        positions=_SHORT,
    )
    is_real = np.arange(lengths[0]) < lengths[:, None] if segments is None else segments > 0
    operands = random_operands((*is_real.shape, _HEADS, _HEAD_SIZE), precision)
    masks = lengths, segments
    got = jax.device_get(_value_and_gradients(*operands, *masks, name, rate))
    with jax.default_device(jax.devices("cpu")[0]):
        wide = [np.asarray(each, np.float32) for each in operands]
        expected = jax.device_get(_value_and_gradients(*wide, *masks, "xla", rate))
    pairs = zip(_PARTS, got, expected, strict=True)
    errors = {part: largest(a, e, relative=True) for part, a, e in pairs}
    bounds = dict.fromkeys(_PARTS, ATTENTION[precision]) | {"at pads": 0.0}
    errors["at pads"] = largest_of([each[~is_real] for each in got], [np.zeros(1)] * len(got))
    return verdict(name_of_row, errors, bounds)


@partial(jax.jit, static_argnums=(6, 7))
def _value_and_gradients(q, k, v, d_out, lengths, segments, implementation, rate):
    def run(q, k, v):
        return attend(
            q, k, v, lengths, segments_BT=segments, implementation=implementation,
            dropout_rate=rate, dropout_key=jax.random.key(7) if rate else None,
        )  # fmt: skip

    out, transpose = jax.vjp(run, q, k, v)
    return out, *transpose(d_out)
