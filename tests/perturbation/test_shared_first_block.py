"""The first block of edits that share it, beside `encode` of each edited cell."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import encode, init_params
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.perturbation.engine.shared_first_block import (
    ConsecutiveEdits,
    finish_first_block,
    share_first_block,
)

POSITIONS = 24
CONFIG = EncoderConfig(
    vocabulary_size=60,
    layers=2,
    width=16,
    heads=2,
    feed_forward=32,
    positions=POSITIONS,
    initializer_range=0.3,
)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@jax.jit
def of_one_cell(params, tokens_1T, length):
    return encode(CONFIG, params, tokens_1T, length[None], layers=1)[0]


@partial(jax.jit, static_argnames=("front", "edits", "group"))
def of_edits(params, tokens_T, length, start, order_RT, *, front, edits, group):
    cell = ConsecutiveEdits(tokens_T, length, start, front)
    shared = share_first_block(CONFIG, params, cell, edits, Runtime())
    groups = [
        finish_first_block(shared, jnp.arange(g, g + group), order_RT[g : g + group])
        for g in range(0, edits, group)
    ]
    return jnp.concatenate(groups)


def order_of_edit(length: int, edited: int, front: int | None) -> np.ndarray:
    """Position in the original of each token of an edited cell, [tokens]."""
    order = np.delete(np.arange(length), edited)
    return order if front is None else np.insert(order, front, edited)


@pytest.mark.parametrize("edits", [4, 8])
@pytest.mark.parametrize("length", [9, POSITIONS])
@pytest.mark.parametrize("framed", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("moves", [False, True], ids=["delete", "overexpress"])
def test_hidden_states_are_those_of_each_edited_cell(params, moves, framed, length, edits):
    """From the first gene, from the middle, and over the end, where the last rows are fillers."""
    rng, front = np.random.default_rng(0), int(framed) if moves else None
    tokens_T = np.zeros(POSITIONS, np.int32)
    tokens_T[:length] = rng.permutation(np.arange(4, 60))[:length]
    first, last = int(framed), length - 1 - framed
    for start in (first, length // 2, last - 1, last):
        edited = [start + r for r in range(edits) if start + r <= last]
        order_RT = np.tile(np.arange(POSITIONS), (edits, 1))
        for r, position in enumerate(edited):
            order = order_of_edit(length, position, front)
            order_RT[r, : len(order)] = order
        sizes = {"front": front, "edits": edits, "group": 4}
        given = params, tokens_T, np.int32(length), np.int32(start), order_RT
        found_RTD = np.asarray(of_edits(*given, **sizes))
        assert np.isfinite(found_RTD).all()
        for r, position in enumerate(edited):
            order = order_of_edit(length, position, front)
            edited_1T = np.zeros((1, POSITIONS), np.int32)
            edited_1T[0, : len(order)] = tokens_T[order]
            expected_TD = of_one_cell(params, edited_1T, np.int32(len(order)))
            rest = slice(len(order))
            np.testing.assert_allclose(found_RTD[r, rest], expected_TD[rest], atol=1e-5)


def test_rows_that_are_all_fillers_are_finite(params):
    tokens_T = np.zeros(POSITIONS, np.int32)
    tokens_T[:5] = [4, 5, 6, 7, 8]
    order_RT = np.tile(np.arange(POSITIONS), (4, 1))
    for front in (None, 0):
        beyond = np.int32(5), np.int32(POSITIONS + 1)
        sizes = {"front": front, "edits": 4, "group": 4}
        assert np.isfinite(of_edits(params, tokens_T, *beyond, order_RT, **sizes)).all()
