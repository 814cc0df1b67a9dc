"""Dropout of hidden states against a mask made by the integers of Python."""

import jax
import jax.numpy as jnp
import numpy as np

from geneformer_jax.model.attention.dropout import drop

B, T, D = 4, 256, 64
RATE = 0.2


def multipliers(key):
    """What dropout multiplies hidden states [B, T, D] with."""
    of_rows, of_columns = jax.random.split(key)
    rows = np.asarray(jax.random.bits(of_rows, (B, T, 1))).astype(object)
    x = (rows + np.asarray(jax.random.bits(of_columns, (D,))).astype(object)) % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return (x >= round(RATE * 2**32)).astype(float) / (1 - RATE)


def test_equals_an_explicit_mask_forward_and_backward():
    key = jax.random.key(3)
    x, d_out = np.random.default_rng(0).normal(size=(2, B, T, D)).astype(np.float32)
    out, transpose = jax.vjp(lambda x: drop(x, RATE, key), jnp.asarray(x))
    np.testing.assert_allclose(out, x * multipliers(key), rtol=1e-6)
    np.testing.assert_allclose(
        transpose(jnp.asarray(d_out))[0], d_out * multipliers(key), rtol=1e-6
    )


def test_nothing_is_dropped_without_a_key_or_rate():
    x = jnp.ones((B, T, D))
    assert drop(x, RATE, None) is x
    assert drop(x, 0.0, jax.random.key(0)) is x


def test_elements_are_kept_independently():
    kept = np.asarray(drop(jnp.ones((B, T, D)), RATE, jax.random.key(0))) > 0
    spread = np.sqrt(RATE * (1 - RATE))
    assert abs(kept.mean() - (1 - RATE)) < 5 * spread / np.sqrt(kept.size)
    # Two rows and two columns share four words: their four elements are independent all the same.
    signs = np.where(kept, RATE, RATE - 1) / spread
    for by in (1, 7, T // 2):
        rows = signs * np.roll(signs, by, axis=1)
        for apart in (1, D // 2):
            columns = signs * np.roll(signs, apart, axis=2)
            four = rows * np.roll(rows, apart, axis=2)
            for product in (rows, columns, four):
                assert abs(product.mean()) < 5 / np.sqrt(product.size / 4)
