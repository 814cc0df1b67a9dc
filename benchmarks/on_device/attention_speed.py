"""Attention alone, forward and with gradients, at the lengths of the published models."""

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.attention.dispatch import IMPLEMENTATIONS, attend, choose_attention
from on_device.made_up import random_operands
from on_device.sizes import Sizes
from on_device.stages import Row
from on_device.timing import rates, warm_seconds

_SECONDS = 1.0


def measure(sizes: Sizes) -> Iterator[Row]:
    """Yields how many cells of full length each implementation goes through in a second."""
    platform = jax.devices()[0].platform
    for config, rows in zip((sizes.v1, sizes.v2), sizes.full_rows, strict=True):
        shape = rows, config.positions, config.heads, config.head_size
        operands = [jax.device_put(x) for x in random_operands(shape, sizes.precision)]
        lengths = np.full(rows, config.positions, np.int32)
        for name in IMPLEMENTATIONS:
            try:
                choose_attention(
                    name, platform=platform, compute_dtype=sizes.precision,
                    head_size=config.head_size, dropout_rate=0.0, packed=False,
                    positions=config.positions,
                )  # fmt: skip
            except InputError:
                continue
            for what, run in (("forward", _forward), ("with gradients", _with_gradients)):
                yield _measured(f"{name}, {shape}, {what}", run, name, operands, lengths)


def _measured(title: str, run, name: str, operands: list[jax.Array], lengths: np.ndarray) -> Row:
    program = jax.jit(partial(run, name)).lower(*operands, lengths).compile()
    temporaries = program.memory_analysis().temp_size_in_bytes
    jax.block_until_ready(program(*operands, lengths))
    seconds = warm_seconds(
        lambda: jax.block_until_ready(program(*operands, lengths)), _SECONDS, repeats=20
    )
    gib = round(temporaries / 2**30, 3)
    return rates(title, "cells/s", len(lengths), seconds, temporaries_gib=gib)


def _forward(name, q, k, v, d_out, lengths):
    return attend(q, k, v, lengths, implementation=name)


def _with_gradients(name, q, k, v, d_out, lengths):
    out, transpose = jax.vjp(lambda q, k, v: _forward(name, q, k, v, None, lengths), q, k, v)
    return out, transpose(d_out)
