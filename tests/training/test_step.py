"""One training step: golden numbers, the mesh, the gradient of padding, and PyTorch's optimizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.loader import Batch
from geneformer_jax.batches.masking import mask_cells
from geneformer_jax.model.config import EncoderConfig, MeshConfig
from geneformer_jax.model.encoder import init_params
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import make_mesh, put_batch, shardings
from geneformer_jax.training.config import OptimizerConfig
from geneformer_jax.training.optimizer import decayed, learning_rate, make_optimizer
from geneformer_jax.training.state import (
    GROWTH_PERIOD,
    Recipe,
    abstract_state,
    init_state,
    initial_loss_scale,
    jit_train_step,
    next_loss_scale,
    train_step,
)
from tests.helpers.tolerances import GRADIENTS
from tests.helpers.toy import toy_vocabulary

TINY = EncoderConfig(
    vocabulary_size=64,
    layers=2,
    width=32,
    heads=4,
    feed_forward=64,
    positions=32,
    dropout=0.0,
    attention_dropout=0.0,
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.01)


def masked_batch(B: int = 8, T: int = 32) -> Batch:
    rng = np.random.default_rng(0)
    lengths_B = rng.integers(8, T + 1, B).astype(np.int32)
    tokens_BT = rng.integers(2, 64, (B, T)).astype(np.int32)
    tokens_BT[np.arange(T) >= lengths_B[:, None]] = 0
    masked = mask_cells(
        tokens_BT,
        lengths_B,
        np.arange(B),
        seed=0,
        step=0,
        config=MaskingConfig(),
        vocabulary=toy_vocabulary(genes=62),
    )
    return Batch(masked.tokens_BT, lengths_B, *masked[1:], cells_B=np.arange(B, dtype=np.int32))


@functools.cache
def recipe_of(config: EncoderConfig = TINY, **changes) -> Recipe:
    return Recipe(config, make_optimizer(OPTIMIZER, 10), Runtime(), seed=0, **changes)


@functools.cache
def compiled(mesh_config: MeshConfig | None, recipe: Recipe):
    """Returns (mesh, initial state, step), compiled for a mesh or one device."""
    mesh = make_mesh(mesh_config or MeshConfig(), None if mesh_config else jax.devices()[:1])
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(recipe, mesh))
    start = jax.jit(lambda: init_state(recipe), out_shardings=placed)
    return mesh, start, jit_train_step(recipe, mesh)


def run_steps(mesh_config: MeshConfig | None, recipe: Recipe, batch: Batch, steps: int = 1):
    """Returns the state and metrics after some steps."""
    mesh, start, step = compiled(mesh_config, recipe)
    with jax.set_mesh(mesh):
        state = start()
        for _ in range(steps):
            state, metrics = step(state, put_batch(batch, mesh))
    return jax.device_get(state), jax.device_get(metrics)


@functools.cache
def one_step(mesh_config: MeshConfig | None, recipe: Recipe | None = None, steps: int = 2):
    """Returns the state and metrics after some steps, on a mesh or on one device."""
    return run_steps(mesh_config, recipe or recipe_of(), masked_batch(), steps)


@functools.cache
def initial(recipe: Recipe):
    """The state before the first step."""
    return jax.jit(lambda: init_state(recipe))()


GOLDEN = {
    "loss": 4.1401124,
    "accuracy": 2 / 19,
    "targets": 19,
    "tokens": 127,
    "padded_tokens": 8 * 32,
    "contrastive_loss": 0,
    "gradient_norm": 3.1498911,
    "parameter_norm": 14.1497965,
    "loss_scale": 1,
    "skipped_updates": 0,
}


def test_golden_metrics_after_one_step():
    """A change here means that the model, its initial weights or the objective changed.

    If that was not intended, it is a defect. If it was, update GOLDEN and say why in the commit.
    """
    _, metrics = one_step(None, steps=1)
    got = {name: float(value) for name, value in metrics._asdict().items()}
    assert got == pytest.approx(GOLDEN, rel=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((8, 1, 1), marks=pytest.mark.slow),
        (2, 2, 2),
        pytest.param((1, 8, 1), marks=pytest.mark.slow),
        pytest.param((2, 1, 4), marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_what_one_device_gives(shape):
    expected, expected_metrics = one_step(None)
    state, metrics = one_step(MeshConfig(*shape))
    np.testing.assert_allclose(metrics.loss, expected_metrics.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.gradient_norm, expected_metrics.gradient_norm, rtol=1e-4)
    # Moments are the gradients themselves, where Adam's update would hide or amplify differences.
    moments = [jax.tree.leaves(each.optimizer[1][0].mu) for each in (expected, state)]
    for one, other in zip(*moments, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-6)


def test_state_is_sharded_as_the_tables_say():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    state = abstract_state(recipe_of(), mesh)
    specs = {
        "query": state.params["blocks"]["query"]["kernel"],
        "up": state.params["blocks"]["up"]["kernel"],
        "word": state.params["embeddings"]["word"]["embedding"],
        "moment": state.optimizer[1][0].mu["blocks"]["up"]["kernel"],
        "norm": state.params["blocks"]["output_norm"]["scale"],
    }
    assert {name: tuple(leaf.sharding.spec) for name, leaf in specs.items()} == {
        "query": (None, "fsdp", "tensor", None),
        "up": (None, "fsdp", "tensor"),
        "word": ("tensor", None),
        "moment": (None, "fsdp", "tensor"),
        "norm": (None, None),
    }


def test_an_array_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="no sharding rule for new/kernel"):
        shardings(make_mesh(MeshConfig()), {"new": {"kernel": jnp.zeros((4, 4))}})


def test_filler_rows_and_padding_change_nothing():
    batch = masked_batch()
    filled = jax.tree.map(lambda rows: np.concatenate([rows, np.zeros_like(rows)]), batch)
    garbage = filled._replace(
        tokens_BT=np.where(np.arange(32) < filled.lengths_B[:, None], filled.tokens_BT, 17)
    )
    expected = one_step(None, steps=1)[0].optimizer
    for other in (filled, garbage):
        got = run_steps(None, recipe_of(), other)[0].optimizer
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, got)


def test_dropout_is_drawn_anew_at_each_step():
    config = dataclasses.replace(TINY, dropout=0.3, attention_dropout=0.3)
    recipe = recipe_of(config)
    run = jax.jit(functools.partial(train_step, recipe=recipe))
    state = initial(recipe)
    losses = [
        float(run(state._replace(step=jnp.asarray(step)), masked_batch())[1].loss)
        for step in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_micro_batches_add_up_to_the_batch():
    expected, expected_metrics = one_step(None)
    for mesh, parts in ((None, 4), (MeshConfig(2, 2, 2), 2)):
        state, metrics = one_step(mesh, recipe_of(micro_batches=parts))
        np.testing.assert_allclose(metrics.loss, expected_metrics.loss, rtol=1e-5)
        assert metrics.targets == expected_metrics.targets
        moments = [jax.tree.leaves(each.optimizer[1][0].mu) for each in (expected, state)]
        for one, other in zip(*moments, strict=True):
            np.testing.assert_allclose(other, one, atol=2e-6)


def test_the_optimizers_state_may_live_in_host_memory():
    mesh, recipe = MeshConfig(1, 2, 1), recipe_of(optimizer_on_host=True)
    placed = abstract_state(recipe, make_mesh(mesh)).optimizer[1][0]
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(placed.mu)}
    assert kinds == {"pinned_host"}
    expected, _ = one_step(None)
    state, _ = one_step(mesh, recipe)
    moments = [jax.tree.leaves(each.optimizer[1][0].mu) for each in (expected, state)]
    for one, other in zip(*moments, strict=True):
        np.testing.assert_allclose(other, one, atol=GRADIENTS)


def test_an_overflow_halves_the_scale_and_skips_the_update():
    recipe = dataclasses.replace(
        recipe_of(), runtime=Runtime(precision=precision_preset("float16"))
    )
    state = initial(recipe)
    run = jax.jit(functools.partial(train_step, recipe=recipe))
    good, metrics = run(state, masked_batch())
    assert np.isfinite(metrics.gradient_norm)
    assert metrics.loss_scale == 2**15
    assert good.loss_scale.good_steps == 1
    assert not np.array_equal(
        good.params["blocks"]["up"]["kernel"], state.params["blocks"]["up"]["kernel"]
    )

    huge = state._replace(loss_scale=state.loss_scale._replace(scale=jnp.float32(2.0**100)))
    skipped, metrics = run(huge, masked_batch())
    assert np.isfinite(metrics.loss)
    assert skipped.loss_scale.scale == 2.0**99
    assert metrics.skipped_updates == skipped.loss_scale.skipped == 1
    assert skipped.step == 1, "the batch is used up"
    kept = (skipped.params, skipped.optimizer), (state.params, state.optimizer)
    jax.tree.map(np.testing.assert_array_equal, *kept)


def test_the_scale_doubles_after_a_run_of_good_steps_and_has_a_floor():
    state = initial_loss_scale()._replace(good_steps=jnp.int32(GROWTH_PERIOD - 1))
    grown = next_loss_scale(state, jnp.asarray(True))
    assert (grown.scale, grown.good_steps) == (2 * state.scale, 0)
    lowest = next_loss_scale(state._replace(scale=jnp.float32(1.0)), jnp.asarray(False))
    assert (lowest.scale, lowest.skipped) == (1.0, 1)


def test_scaling_by_itself_changes_no_gradient():
    expected, _ = one_step(None, steps=1)
    recipe = recipe_of()
    state = initial(recipe)._replace(loss_scale=initial_loss_scale())
    scaled, _ = jax.jit(functools.partial(train_step, recipe=recipe))(state, masked_batch())
    moments = [jax.tree.leaves(each.optimizer[1][0].mu) for each in (expected, scaled)]
    for one, other in zip(*moments, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)


def test_schedules_are_the_originals():
    def rates(schedule: str, warmup: int) -> list[float]:
        config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=warmup)
        return [float(learning_rate(config, 14)(step)) for step in range(15)]

    def expected(decay, warmup: int) -> list[float]:
        return [
            2.0 * (step / warmup if step < warmup else decay((step - warmup) / (14 - warmup)))
            for step in range(15)
        ]

    for warmup in (0, 4):
        linear = expected(lambda done: 1 - done, warmup)
        cosine = expected(lambda done: 0.5 * (1 + np.cos(np.pi * done)), warmup)
        constant = expected(lambda done: 1.0, warmup)
        np.testing.assert_allclose(rates("linear", warmup), linear, atol=1e-6)
        np.testing.assert_allclose(rates("cosine", warmup), cosine, atol=1e-6)
        np.testing.assert_allclose(rates("constant", warmup), constant, atol=1e-6)


def test_warmup_as_a_ratio_is_rounded_up():
    by_ratio = OptimizerConfig(learning_rate=1.0, warmup_steps=0, warmup_ratio=0.25)
    by_steps = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    rates = [[float(learning_rate(c, 14)(t)) for t in range(15)] for c in (by_ratio, by_steps)]
    assert rates[0] == rates[1]


def test_biases_and_norms_do_not_decay():
    params = init_params(TINY, jax.random.key(0))
    flat = jax.tree_util.tree_leaves_with_path(decayed(params))
    names = {jax.tree_util.keystr(path): decays for path, decays in flat}
    assert {name for name, decays in names.items() if not decays} == {
        name for name in names if "bias" in name or "scale" in name
    }
    assert names["['embeddings']['word']['embedding']"]


@pytest.mark.parity
def test_updates_are_pytorchs(torch):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (5, 3), "bias": (3,), "scale": (3,), "embedding": (4, 3)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [
        {name: 3 * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(4)
    ]
    optimizer = make_optimizer(OPTIMIZER, 4)
    ours, state = jax.tree.map(jnp.asarray, params), optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)

    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    groups = [
        {"params": [theirs["kernel"], theirs["embedding"]], "weight_decay": 0.01},
        {"params": [theirs["bias"], theirs["scale"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    decay = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 - step / 4)
    for gradient in gradients:
        for name, value in gradient.items():
            theirs[name].grad = torch.tensor(value)
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        adamw.step()
        decay.step()
    for name in shapes:
        np.testing.assert_allclose(ours[name], theirs[name].detach().numpy(), atol=1e-5)


def test_muon_orthogonalises_the_kernels_of_each_layer_and_nothing_else():
    """One update of random gradients: all singular values alike, whatever the gradient's are."""
    params = init_params(TINY, jax.random.key(0))
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    changes = {"name": "muon", "clip_norm": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    optimizer = make_optimizer(dataclasses.replace(OPTIMIZER, **changes), 10)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    inputs = {"attention_output": 2}
    kernels = {name: leaf["kernel"] for name, leaf in updates["blocks"].items() if "kernel" in leaf}
    assert len(kernels) == 6
    for name, kernel in kernels.items():
        into = int(np.prod(kernel.shape[1 : 1 + inputs.get(name, 1)]))
        for matrix, gradient in zip(kernel, gradients["blocks"][name]["kernel"], strict=True):
            after, before = (
                np.quantile(np.linalg.svd(each.reshape(into, -1), compute_uv=False), [0.1, 0.9])
                for each in (matrix, gradient)
            )
            assert before[1] / before[0] > 2.2 > 1.8 > after[1] / after[0]
            # Of the size that Adam's updates have, 0.2 of the learning rate.
            assert np.sqrt((matrix**2).mean()) == pytest.approx(0.2 * 1e-2, rel=0.2)
    for leaf in (updates["embeddings"]["word"]["embedding"], updates["blocks"]["up"]["bias"]):
        np.testing.assert_allclose(np.abs(leaf), 1e-2, rtol=1e-3)


@pytest.mark.slow
def test_muon_does_on_a_mesh_what_it_does_on_one_device():
    optimizer = make_optimizer(dataclasses.replace(OPTIMIZER, name="muon"), 10)
    recipe = Recipe(TINY, optimizer, Runtime(), seed=0)
    expected, _ = run_steps(None, recipe, masked_batch(), steps=2)
    state, _ = run_steps(MeshConfig(2, 2, 2), recipe, masked_batch(), steps=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, atol=2e-4), expected.params, state.params
    )


def test_a_stable_rate_falls_to_zero_at_last():
    config = dataclasses.replace(OPTIMIZER, schedule="stable_decay", warmup_steps=10)
    rate = learning_rate(config, 100)
    got = [float(rate(step)) / config.learning_rate for step in (0, 5, 10, 79, 80, 90, 99, 100)]
    np.testing.assert_allclose(got, [0, 0.5, 1, 1, 1, 0.5, 0.05, 0], atol=1e-6)
