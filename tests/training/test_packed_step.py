"""Packed rows, masks drawn on the device and odd vocabularies: the same loss and gradients."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.loader import Batch, mask_batch, pack_cells, pad_cells
from geneformer_jax.model.config import EncoderConfig, MeshConfig
from geneformer_jax.model.encoder import init_params
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import make_mesh, put_batch, vocabulary_rows
from geneformer_jax.training.config import OptimizerConfig
from geneformer_jax.training.objectives.masked_genes import masked_gene_sums
from geneformer_jax.training.optimizer import make_optimizer
from geneformer_jax.training.state import (
    Recipe,
    abstract_state,
    init_state,
    jit_train_step,
    resize_state,
    train_step,
)
from tests.helpers.tolerances import GRADIENTS, LOSS
from tests.helpers.toy import toy_vocabulary

ODD = EncoderConfig(
    vocabulary_size=67,
    layers=2,
    width=32,
    heads=8,
    feed_forward=64,
    positions=128,
    dropout=0.0,
    attention_dropout=0.0,
)
MASKING = MaskingConfig()
VOCABULARY = toy_vocabulary(genes=65)
ROW = 128


@functools.cache
def plain_batches() -> tuple[Batch, Batch]:
    """The same 16 cells, (one a row, packed into 8 rows of which one is empty), not yet masked."""
    rng = np.random.default_rng(0)
    cells = [rng.integers(2, 67, n).astype(np.uint16) for n in rng.integers(8, 60, 16)]
    numbers = np.arange(16, dtype=np.int32)
    lengths_B = np.array([len(cell) for cell in cells], np.int32)
    alone = Batch(pad_cells(cells, 64, 0), lengths_B, None, None, None, numbers)
    rows = np.minimum(numbers // 2, 6)
    cells_BC = np.full((8, 4), -1, np.int32)
    for row in range(7):
        cells_BC[row, : (rows == row).sum()] = numbers[rows == row]
    tokens_BT, lengths_B, packing = pack_cells(cells, rows, (8, 4 * 60), 0)
    T = -(-int(lengths_B.max()) // ROW) * ROW
    packing = jax.tree.map(lambda rows: rows[:, :T], packing)
    return alone, Batch(tokens_BT[:, :T], lengths_B, None, None, None, cells_BC, packing)


def masked(batch: Batch) -> Batch:
    return mask_batch(batch, seed=3, step=0, config=MASKING, vocabulary=VOCABULARY)


def assert_trees_near(one, other, atol=GRADIENTS) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=atol), one, other)


@pytest.mark.parametrize(
    "attention", ["xla", "chunked", pytest.param("splash", marks=pytest.mark.slow)]
)
def test_packed_cells_give_the_loss_and_gradients_of_cells_alone(attention):
    alone, packed = map(masked, plain_batches())
    config = dataclasses.replace(ODD, positions=packed.tokens_BT.shape[1])
    params = init_params(config, jax.random.key(0))

    def loss(params, batch, runtime):
        sums = masked_gene_sums(config, params, batch, runtime)
        return sums.loss / sums.targets, sums

    differentiate = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    expected, sums = differentiate(params, alone, Runtime())
    gradients, packed_sums = differentiate(params, packed, Runtime(attention=attention))
    assert sums.targets == packed_sums.targets > 50
    np.testing.assert_allclose(packed_sums, sums, rtol=LOSS)
    assert_trees_near(expected, gradients)


def recipe_of(**changes) -> Recipe:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.01)
    config = dataclasses.replace(ODD, positions=256)
    optimizer = make_optimizer(optimizer, 10)
    return Recipe(config, optimizer, Runtime(), seed=3, vocabulary=VOCABULARY, **changes)


@pytest.mark.parametrize(
    "which",
    [pytest.param(0, id="padded", marks=pytest.mark.slow), pytest.param(1, id="packed")],
)
def test_a_step_that_masks_does_what_one_given_masks_does(which):
    plain = plain_batches()[which]
    given, own = recipe_of(), recipe_of(masking=MASKING, micro_batches=2)
    state = jax.jit(lambda: init_state(given))()
    expected, metrics = jax.jit(functools.partial(train_step, recipe=given))(state, masked(plain))
    after, own_metrics = jax.jit(functools.partial(train_step, recipe=own))(state, plain)
    assert own_metrics.targets == metrics.targets
    assert own_metrics.tokens == metrics.tokens == plain.lengths_B.sum()
    np.testing.assert_allclose(own_metrics.loss, metrics.loss, rtol=1e-5)
    assert_trees_near(expected.optimizer[1][0].mu, after.optimizer[1][0].mu)


@functools.cache
def stepped(mesh_shape: tuple[int, int, int]):
    """Returns the stored state, metrics and compiled step of two packed steps on a mesh."""
    mesh = make_mesh(MeshConfig(*mesh_shape))
    rows = vocabulary_rows(mesh, ODD.vocabulary_size)
    recipe = recipe_of(masking=MASKING, vocabulary_rows=rows)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(recipe, mesh))
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(recipe), out_shardings=placed)()
        batch = put_batch(plain_batches()[1], mesh)
        step = jit_train_step(recipe, mesh).lower(state, batch).compile()
        for _ in range(2):
            state, metrics = step(state, batch)
        assert state.params["embeddings"]["word"]["embedding"].shape[0] == rows
        true_size = dataclasses.replace(recipe, vocabulary_rows=ODD.vocabulary_size)
        stored = resize_state(state, true_size, mesh)
        again = resize_state(stored, recipe, mesh)
    return jax.device_get((stored, metrics, state, again)), step, placed.params


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1, 4), (1, 1, 8)])
def test_an_odd_vocabulary_is_sharded_and_changes_nothing(shape):
    (expected, expected_metrics, *_), _, _ = stepped((1, 1, 1))
    (stored, metrics, state, again), _, placed = stepped(shape)
    assert placed["embeddings"]["word"]["embedding"].spec[0] == "tensor"
    assert placed["masked_gene_head"]["bias"].spec[0] == "tensor"
    np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-4)
    # Moments are the gradients themselves, where Adam's update would hide or amplify differences.
    assert_trees_near(expected.optimizer[1][0].mu, stored.optimizer[1][0].mu)
    assert_trees_near(expected.params, stored.params, atol=1e-4)
    assert stored.params["embeddings"]["word"]["embedding"].shape == (67, 32)
    table = state.params["embeddings"]["word"]["embedding"]
    assert len(table) % (128 * shape[2]) == 0
    assert not table[67:].any(), "no gradient and no decay reaches rows of no token"
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize("shape", [(2, 1, 4), pytest.param((1, 1, 8), marks=pytest.mark.slow)])
def test_logits_are_split_over_the_vocabulary(shape):
    _, step, _ = stepped(shape)
    text = step.as_text()
    whole, part = 128 * shape[2], 128
    M = masked(plain_batches()[1]).positions_BM.shape[1]
    arrays = set(re.findall(r"f32\[([\d,]+)\]", text))
    sizes = {tuple(map(int, array.split(","))) for array in arrays}
    assert any(size[-2:] == (M, part) for size in sizes), "each device has its part of the logits"
    assert not any(size[-1] == whole for size in sizes), "no device has all logits"
    assert not any(size == (whole, 32) for size in sizes), "nor the whole table"


def test_a_vocabulary_that_the_tensor_axis_divides_is_left_alone():
    mesh = make_mesh(MeshConfig(1, 1, 8))
    assert vocabulary_rows(mesh, 25_424) == 25_424
    assert vocabulary_rows(mesh, 25_426) == 25_600
    assert vocabulary_rows(make_mesh(MeshConfig(4, 2, 1)), 20_275) == 20_275


def test_padding_rows_get_no_probability():
    config = dataclasses.replace(ODD, vocabulary_size=5)
    params = init_params(config, jax.random.key(0))
    batch = masked(plain_batches()[0])
    batch = batch._replace(tokens_BT=batch.tokens_BT % 5, targets_BM=batch.targets_BM % 5)
    sums = jax.jit(functools.partial(masked_gene_sums, config, runtime=Runtime()))
    expected = sums(params, batch)
    table = jnp.pad(params["embeddings"]["word"]["embedding"], ((0, 3), (0, 0)))
    params["embeddings"]["word"]["embedding"] = table
    bias = jnp.pad(params["masked_gene_head"]["bias"], (0, 3), constant_values=100.0)
    params["masked_gene_head"]["bias"] = bias
    padded = sums(params, batch)
    np.testing.assert_allclose(padded, expected, rtol=1e-6)
