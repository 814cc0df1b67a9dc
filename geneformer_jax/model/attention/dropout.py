"""Dropout by a random word of each row and of each column, in place of one for each element.

A generator's word for each attention weight took half of a training step at 2,048 tokens on a CPU,
and one for each hidden state a twentieth of it at 512. So the words of an element's row and column
are added and the sum is mixed.
"""

import jax
import jax.numpy as jnp


def are_kept(words: jax.Array, rate: float) -> jax.Array:
    """Returns which elements dropout keeps, given uint32 sums of the words of row and column."""
    # The finaliser of MurmurHash3.
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return (words ^ (words >> 16)) >= jnp.uint32(round(rate * 2**32))


def drop(x_BTD: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Returns hidden states of which each element is 0 with probability `rate`, else / (1 - rate).

    Without a key nothing is dropped.
    """
    if key is None or not rate:
        return x_BTD
    of_rows, of_columns = jax.random.split(key)
    of_rows_BT1 = jax.random.bits(of_rows, (*x_BTD.shape[:-1], 1))
    words_BTD = of_rows_BT1 + jax.random.bits(of_columns, x_BTD.shape[-1:])
    return jnp.where(are_kept(words_BTD, rate), x_BTD / (1 - rate), 0)
