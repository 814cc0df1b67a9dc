"""Random bits that are a pure function of (seed, step, cell, rank), the same on host and device.

Threefry-2x32 with 20 rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3; SC 2011),
the generator under `jax.random`. Being counter-based it has no state: neither the batch a cell
comes in, nor hosts, nor devices change the bits of its tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numba.extending import register_jitable

from geneformer_jax.common.threads import compiled

_WORD = np.uint32(0xFFFFFFFF)
_PARITY = np.uint32(0x1BD11BDA)
_ROTATIONS = tuple(np.uint32(by) for by in (13, 15, 26, 6, 17, 29, 16, 24))
_BITS = np.uint32(32)
_ONE = np.uint32(1)


@register_jitable
def _rotate(word: Any, by: Any) -> Any:
    return (word << by | word >> (_BITS - by)) & _WORD


@register_jitable
def _four_rounds(x: Any, y: Any, a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any]:
    for by in (a, b, c, d):
        x = (x + y) & _WORD
        y = _rotate(y, by) ^ x
    return x, y


@register_jitable
def threefry(key: tuple[Any, Any], x: Any, y: Any) -> tuple[Any, Any]:
    """Returns two random uint32 of a key of two and a counter of two.

    Takes scalars in compiled host code and uint32 arrays on the device. Every sum is cut to 32
    bits, because the former are added in 64.
    """
    first, second = key
    third = first ^ second ^ _PARITY
    a, b, c, d, e, f, g, h = _ROTATIONS
    x, y = (x + first) & _WORD, (y + second) & _WORD
    x, y = _four_rounds(x, y, a, b, c, d)
    x, y = (x + second) & _WORD, (y + third + _ONE) & _WORD
    x, y = _four_rounds(x, y, e, f, g, h)
    x, y = (x + third) & _WORD, (y + first + _ONE + _ONE) & _WORD
    x, y = _four_rounds(x, y, a, b, c, d)
    x, y = (x + first) & _WORD, (y + second + np.uint32(3)) & _WORD
    x, y = _four_rounds(x, y, e, f, g, h)
    x, y = (x + second) & _WORD, (y + third + np.uint32(4)) & _WORD
    x, y = _four_rounds(x, y, a, b, c, d)
    return (x + third) & _WORD, (y + first + np.uint32(5)) & _WORD


@compiled
def _fill(seed, step, cells, ranks, into, also_into):
    for i in range(len(cells)):
        bits = threefry((seed, step), cells[i], ranks[i])
        into[i], also_into[i] = bits


def random_bits(seed: int, step: Any, cells_BT: Any, ranks_BT: Any) -> tuple[Any, Any]:
    """Returns two uint32 arrays [B, T] of bits that are uniform and independent of each other.

    Args:
      seed: of the run; counts modulo 2^32.
      step: number of the step; a JAX scalar where the arrays are JAX arrays.
      cells_BT: int32, the cell each token belongs to.
      ranks_BT: int32, its place in that cell.
    """
    seed = np.uint32(seed & int(_WORD))
    if isinstance(cells_BT, jax.Array):
        key = jnp.uint32(seed), jnp.asarray(step).astype(jnp.uint32)
        return threefry(key, cells_BT.astype(jnp.uint32), ranks_BT.astype(jnp.uint32))
    bits = np.empty((2, *cells_BT.shape), np.uint32)
    counters = (array.astype(np.uint32).reshape(-1) for array in (cells_BT, ranks_BT))
    _fill(seed, np.uint32(step), *counters, *bits.reshape(2, -1))
    return bits[0], bits[1]
