"""The contrastive objective: its loss, and that batches, packing and devices change nothing."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.model.config import MeshConfig
from geneformer_jax.model.encoder import encode, encode_twice
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import make_mesh, put_batch
from geneformer_jax.training.config import ObjectiveConfig, OptimizerConfig
from geneformer_jax.training.objectives.contrastive import (
    CellVectors,
    ContrastiveRecipe,
    info_nce,
    means_of_genes,
)
from geneformer_jax.training.optimizer import make_optimizer
from geneformer_jax.training.state import abstract_state, init_state, jit_train_step
from tests.training.test_packed_step import ODD, VOCABULARY, plain_batches

CONTRASTIVE = ObjectiveConfig(contrastive=0.5)


def by_hand(first_ND: np.ndarray, second_ND: np.ndarray, temperature: float) -> float:
    """The loss of a batch as a loop over cells, in float64."""
    total = 0.0
    for here, there in ((first_ND, second_ND), (second_ND, first_ND)):
        for i, vector in enumerate(here):
            cosines = [
                vector @ other / np.linalg.norm(vector) / np.linalg.norm(other) for other in there
            ]
            scaled = np.array(cosines) / temperature
            total += np.log(np.exp(scaled).sum()) - scaled[i]
    return total / (2 * len(first_ND))


def test_the_loss_is_that_of_a_loop_over_cells():
    rng = np.random.default_rng(0)
    wholes, views = rng.normal(size=(2, 4, 3, 16))
    is_cell = np.ones((4, 3), bool)
    is_cell[1, 1:] = is_cell[3:] = False
    pair = wholes.astype(np.float32), views.astype(np.float32)
    got = info_nce(CellVectors(*pair, is_cell), 0.2)
    assert float(got) == pytest.approx(by_hand(wholes[is_cell], views[is_cell], 0.2), rel=1e-5)
    nobody = np.zeros_like(is_cell)
    value, gradient = jax.value_and_grad(
        lambda wholes: info_nce(CellVectors(wholes, pair[1], nobody), 0.1)
    )(pair[0])
    assert value == 0
    assert not np.any(gradient), "and no NaN"


@pytest.mark.parametrize("packed", [False, True])
def test_masked_genes_and_padding_are_in_no_mean(packed):
    batch = plain_batches()[packed]
    D, first_gene = 5, VOCABULARY.first_gene_token
    hidden_BTD = np.random.default_rng(1).normal(size=(*batch.tokens_BT.shape, D))
    tokens_BT = np.array(batch.tokens_BT)
    tokens_BT[:, 1::3] = np.where(tokens_BT[:, 1::3] >= first_gene, 1, tokens_BT[:, 1::3])
    masked = batch._replace(tokens_BT=tokens_BT)
    means_BCD, is_cell_BC = means_of_genes(masked, hidden_BTD.astype(np.float32), first_gene)
    if packed:
        segments_BT = np.asarray(batch.packing.segments_BT)
    else:
        segments_BT = (np.arange(tokens_BT.shape[1]) < batch.lengths_B[:, None]).astype(int)
    cells = 0
    for row, column in np.ndindex(is_cell_BC.shape):
        inside = segments_BT[row] == column + 1
        assert is_cell_BC[row, column] == inside.any()
        if inside.any():
            genes = inside & (tokens_BT[row] >= first_gene)
            expected = hidden_BTD[row, genes].mean(axis=0)
            np.testing.assert_allclose(means_BCD[row, column], expected, atol=1e-5)
            cells += 1
    assert cells == 16


def test_a_cell_s_vector_is_of_the_layer_that_is_named():
    recipe, batch = recipe_of(), plain_batches()[0]
    params = init_state(recipe).params
    viewed = recipe.prepare(jax.tree.map(jax.numpy.asarray, batch), jax.numpy.int32(0))
    places = {"lengths_B": viewed.masked.lengths_B}
    for layers in range(recipe.config.layers + 1):
        below, last = encode_twice(
            recipe.config, params, viewed.masked.tokens_BT, layers=layers, **places
        )
        for hidden, run in ((below, layers), (last, recipe.config.layers)):
            expected = encode(recipe.config, params, viewed.masked.tokens_BT, layers=run, **places)
            np.testing.assert_allclose(hidden, expected, atol=1e-6)


@functools.cache
def recipe_of(micro_batches: int = 1) -> ContrastiveRecipe:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.01)
    return ContrastiveRecipe(
        dataclasses.replace(ODD, positions=256),
        make_optimizer(optimizer, 10),
        Runtime(),
        seed=3,
        micro_batches=micro_batches,
        masking=MaskingConfig(),
        objective=CONTRASTIVE,
        vocabulary=VOCABULARY,
    )


@functools.cache
def stepped(which: int = 0, mesh_shape: tuple[int, ...] = (1, 1, 1), micro_batches: int = 1):
    """Returns (first moments: the gradients; metrics) of a step on padded or packed rows."""
    mesh, recipe = make_mesh(MeshConfig(*mesh_shape)), recipe_of(micro_batches)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(recipe, mesh))
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(recipe), out_shardings=placed)()
        step = jit_train_step(recipe, mesh)
        state, metrics = step(state, put_batch(plain_batches()[which], mesh))
    return jax.device_get((state.optimizer[1][0].mu, metrics))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"micro_batches": 4}, id="parts"),
        pytest.param({"which": 1}, id="packed", marks=pytest.mark.slow),
        pytest.param({"mesh_shape": (4, 2, 1)}, id="devices", marks=pytest.mark.slow),
        pytest.param(
            {"which": 1, "mesh_shape": (2, 1, 2), "micro_batches": 2},
            id="packed-devices-parts",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_cells_are_told_from_those_of_all_parts_rows_and_devices(other):
    gradients, metrics = stepped()
    other_gradients, other_metrics = stepped(**other)
    assert metrics.targets == other_metrics.targets > 20
    assert metrics.tokens == other_metrics.tokens
    # 16 cells: a part that only knew its own would have a loss of about log 4.
    assert metrics.contrastive_loss > np.log(4) + 0.5
    for name in ("loss", "contrastive_loss"):
        np.testing.assert_allclose(getattr(other_metrics, name), getattr(metrics, name), rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, atol=2e-6), gradients, other_gradients
    )
