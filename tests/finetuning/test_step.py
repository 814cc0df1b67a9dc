"""One step of fine-tuning: PyTorch's loss, gradients, updates, frozen weights, rates, meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from geneformer_jax.batches.labelled import LabelledBatch
from geneformer_jax.finetuning.config import TuningConfig
from geneformer_jax.finetuning.network.losses import label_losses, task_totals, weighted_means
from geneformer_jax.finetuning.network.step import (
    Constants,
    FinetuneRecipe,
    StepSpec,
    TracedHyperparams,
    compile_steps,
    tuned_adamw,
)
from geneformer_jax.finetuning.network.trainable import join_weights, split_weights
from geneformer_jax.interop.huggingface import read_model
from geneformer_jax.interop.weights.bert_layout import places
from geneformer_jax.interop.weights.conversion import bert_values
from geneformer_jax.model.config import EncoderConfig, MeshConfig, RuntimeConfig
from geneformer_jax.model.encoder import init_params
from geneformer_jax.model.heads import HeadConfig, HeadTask, init_head
from geneformer_jax.model.pretrained import StackedArray, quantized_params
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import put_batch
from geneformer_jax.training.config import OptimizerConfig
from geneformer_jax.training.optimizer import make_optimizer
from tests.helpers.rounded import in_floats
from tests.helpers.torch_bert import SHAPES, assert_gradients, random_bert, random_cells

TINY = EncoderConfig(
    64, 3, 32, 4, 64, 32, dropout=0.0, attention_dropout=0.0, initializer_range=0.1
)
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2, warmup_steps=0, weight_decay=0.01, eps=1e-3, clip_norm=1.0
)
PLAIN = HeadConfig("cell_classifier", ("a", "b", "c"), dropout=0.0)
RICH = dataclasses.replace(PLAIN, pooling="attention", extra_layer=True)
EVERYTHING, ONE_DEVICE = TuningConfig(), MeshConfig(1)
GENES = HeadConfig("gene_classifier", ("a", "b", "c"), dropout=0.0)


def labelled_batch(head: HeadConfig, B: int = 8, T: int = 24) -> LabelledBatch:
    rng = np.random.default_rng(0)
    lengths_B = rng.integers(4, T + 1, B).astype(np.int32)
    lengths_B[-1] = 0  # a filler row
    real_BT = np.arange(T) < lengths_B[:, None]
    tokens_BT = np.where(real_BT, rng.integers(2, 64, (B, T)), 0).astype(np.int32)
    shape = (B, T, 1) if head.kind == "gene_classifier" else (B, 1)
    known = real_BT[..., None] if len(shape) == 3 else real_BT[:, :1]
    weights = (known & (rng.random(shape) < 0.8)).astype(np.float32)
    targets = rng.integers(0, 3, shape).astype(np.float32) * weights
    return LabelledBatch(tokens_BT, lengths_B, targets, weights, np.arange(B, dtype=np.int32))


def filled(batch: LabelledBatch, multiple: int) -> LabelledBatch:
    """The batch with empty rows up to a multiple."""
    missing = -len(batch.lengths_B) % multiple
    return LabelledBatch(
        *(np.pad(each, [(0, missing), *[(0, 0)] * (each.ndim - 1)]) for each in batch)
    )


def hyperparams(steps: int = 10, **changes) -> TracedHyperparams:
    values = {"learning_rate": 1e-2, "weight_decay": 0.01} | changes
    scalars = {name: jnp.float32(value) for name, value in values.items()}
    return TracedHyperparams(
        **scalars, warmup=jnp.int32(0), steps=jnp.int32(steps), seed=jnp.int32(0)
    )


def spec_of(
    head: HeadConfig = PLAIN,
    tuning: TuningConfig = EVERYTHING,
    mesh: MeshConfig = ONE_DEVICE,
    **runtime,
) -> StepSpec:
    return StepSpec(TINY, head, tuning, OPTIMIZER, RuntimeConfig(**runtime), mesh)


@functools.cache
def whole_weights(head: HeadConfig):
    key = jax.random.key(3)
    params = jax.jit(functools.partial(init_params, TINY))(key)
    del params["masked_gene_head"]
    return params | {head.kind: jax.jit(functools.partial(init_head, TINY, head))(key)}


@functools.cache
def steps_of(chosen: StepSpec, steps: int = 2, cells: int = 8):
    """Returns (trainable weights at first, frozen weights, state and metrics after steps)."""
    weights = whole_weights(chosen.head)
    trainable, frozen = split_weights(weights, TINY, chosen.tuning, jax.random.key(5))
    trainable = jax.device_get(trainable)
    return trainable, frozen, *state_after(chosen, trainable, frozen, steps, cells)


def state_after(chosen: StepSpec, trainable, frozen, steps: int, cells: int = 8):
    compiled = compile_steps(chosen, 24)
    constants = jax.device_put(Constants(frozen, hyperparams()), compiled.constants)
    with jax.set_mesh(compiled.mesh):
        state = compiled.start(trainable)
        for _ in range(steps):
            batch = filled(labelled_batch(chosen.head, cells), compiled.mesh.size)
            batch = put_batch(batch, compiled.mesh)
            state, metrics = compiled.step(state, batch, constants)
    return jax.device_get(state), jax.device_get(metrics)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "architecture"),
    [("V2", "BertForSequenceClassification"), ("V1", "BertForTokenClassification")],
)
def test_steps_are_those_of_transformers(torch, tmp_path, name, architecture):
    """Loss, every gradient, and the weights after two updates with the Trainer's decay groups."""
    shape = SHAPES[name]
    bert = random_bert(torch, shape, architecture, "sdpa", seed=3, num_labels=3)
    bert.save_pretrained(tmp_path / "hf")
    model = read_model(tmp_path / "hf").model
    cells = random_cells(shape, np.random.default_rng(3))
    rng = np.random.default_rng(5)
    per_gene = model.head.kind == "gene_classifier"
    labels = rng.integers(0, 3, cells.real_BT.shape if per_gene else len(cells.real_BT))
    known = cells.real_BT & (rng.random(cells.real_BT.shape) < 0.5) if per_gene else labels >= 0
    labels = np.where(known, labels, -100)
    batch = LabelledBatch(
        cells.batch.tokens_BT,
        cells.batch.lengths_B,
        np.where(known, labels, 0)[..., None].astype(np.float32),
        known[..., None].astype(np.float32),
        cells.batch.cells_B,
    )
    chosen = StepSpec(
        model.config, model.head, TuningConfig(), OPTIMIZER, RuntimeConfig(), MeshConfig(1)
    )
    compiled = compile_steps(chosen, cells.real_BT.shape[1])
    constants = Constants({}, hyperparams())
    recipe = FinetuneRecipe(chosen, Runtime(), constants)

    def loss(params):
        return recipe.loss(params, batch, recipe.size(batch), None)[0]

    found, gradients = jax.jit(jax.value_and_grad(loss))(model.params)
    inputs = {
        "input_ids": torch.from_numpy(cells.batch.tokens_BT).long(),
        "attention_mask": torch.from_numpy(cells.real_BT).long(),
        "labels": torch.from_numpy(labels),
    }
    expected = bert(**inputs)
    expected.loss.backward()
    assert float(found) == pytest.approx(expected.loss.item(), rel=2e-6)
    assert_gradients(model, gradients, dict(bert.named_parameters()))

    _train_bert(torch, bert, inputs)
    with jax.set_mesh(compiled.mesh):
        state = compiled.start(jax.device_get(model.params))
        for _ in range(2):
            state, _ = compiled.step(state, put_batch(batch, compiled.mesh), constants)
    wanted = places(model.config, model.head)
    after = dict(bert.named_parameters())
    found = bert_values(wanted, jax.device_get(state.params))
    for name, got in found.items():
        expected = after[name].detach().numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5, err_msg=name)


def _train_bert(torch, bert, inputs) -> None:
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, bert))
    assert 0 < len(decayed) < len(dict(bert.named_parameters()))
    groups = [
        {
            "params": [
                weight for name, weight in bert.named_parameters() if (name in decayed) == on
            ],
            "weight_decay": 0.01 if on else 0.0,
        }
        for on in (True, False)
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 - step / 10)
    for _ in range(2):
        adamw.zero_grad()
        bert(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(bert.parameters(), 1.0)
        adamw.step()
        schedule.step()


def test_rates_as_arguments_change_nothing():
    """The optimizer with traced rates is the one of pretraining."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (5, 3), "bias": (3,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    config = dataclasses.replace(OPTIMIZER, warmup_steps=2, schedule="cosine")
    given = hyperparams(6)._replace(warmup=jnp.int32(2))
    both = make_optimizer(config, 6), tuned_adamw(config, given, {"kernel": 1.0, "bias": 1.0})
    states = [each.init(params) for each in both]
    ours = [params, params]
    for _ in range(6):
        gradients = {
            name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
        }
        for i, optimizer in enumerate(both):
            updates, states[i] = optimizer.update(gradients, states[i], ours[i])
            ours[i] = jax.tree.map(jnp.add, ours[i], updates)
    for name in shapes:
        np.testing.assert_allclose(ours[1][name], ours[0][name], rtol=0, atol=1e-6)
        assert np.abs(ours[0][name] - params[name]).min() > 1e-4


TUNINGS = {
    "layers": TuningConfig(freeze_layers=2),
    "layers and embeddings": TuningConfig(freeze_layers=2, freeze_embeddings=True),
    "head only": TuningConfig(head_only=True),
    "lora": TuningConfig(lora_rank=2, lora_targets="query,value,attention_output,up,down,key"),
}


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("layers", "layers and embeddings")
        ),
        *(name for name in TUNINGS if not name.startswith("layers")),
    ],
)
def test_frozen_weights_take_no_optimizer_state_and_do_not_change(name):
    tuning = TUNINGS[name]
    head = RICH if name == "lora" else PLAIN
    trainable, frozen, state, _ = steps_of(spec_of(head, tuning))
    moments = jax.tree.leaves(state.optimizer[1].mu)
    assert sum(each.size for each in moments) == sum(
        each.size for each in jax.tree.leaves(trainable)
    )
    before = whole_weights(head)
    after = join_weights(state.params, frozen, tuning)
    changed = jax.tree.map(lambda one, other: np.abs(one - other).max(), before, after)
    layers = np.abs(after["blocks"]["query"]["kernel"] - before["blocks"]["query"]["kernel"])
    layers = layers.reshape(3, -1).max(axis=1)
    embeddings = changed["embeddings"]["word"]["embedding"]
    wanted = {
        "layers": (False, False, True, True),
        "layers and embeddings": (False, False, True, False),
        "head only": (False, False, False, False),
        "lora": (True, True, True, False),
    }[name]
    assert (*(layers > 1e-5), embeddings > 1e-5) == wanted
    assert changed["cell_classifier"]["classifier"]["kernel"] > 1e-5


@pytest.mark.slow
def test_factors_beside_rounded_weights_learn_as_beside_what_those_stand_for():
    """Updates of QLoRA, whose layers are computed twice, are those of LoRA on the same floats."""
    pytest.importorskip("qwix", reason='no qwix: pip install "geneformer_jax[quantize]"')
    tuning, key = TUNINGS["lora"], jax.random.key(5)
    weights = traverse_util.flatten_dict(whole_weights(PLAIN))
    arrays = (
        StackedArray(path, leaf.shape, iter([leaf])) for path, leaf in sorted(weights.items())
    )
    rounded = quantized_params(arrays, "nf4")[0]
    after = []
    for params, changes in ((rounded, {"remat": "dots"}), (in_floats(rounded), {})):
        chosen = dataclasses.replace(spec_of(PLAIN, tuning, **changes), quantized=bool(changes))
        trainable, frozen = split_weights(params, TINY, tuning, key)
        after.append(state_after(chosen, jax.device_get(trainable), frozen, 2)[0])
    for one, other in zip(*(jax.tree.leaves(state.params) for state in after), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)
    moved = jax.tree.map(np.subtract, after[0].params["lora"], jax.device_get(trainable)["lora"])
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(moved)) > 1e-4


def test_frozen_layers_leave_the_gradients_of_the_others_as_they_are():
    """Adam's first moments after one step are a tenth of the gradients."""
    frozen = steps_of(spec_of(tuning=TuningConfig(freeze_layers=2)), 1)[2].optimizer[1].mu
    free = steps_of(spec_of(), 1)[2].optimizer[1].mu
    # Both are clipped by their global norms, which differ.
    scale = (
        frozen["cell_classifier"]["classifier"]["bias"][0]
        / (free["cell_classifier"]["classifier"]["bias"][0])
    )
    upper = jax.tree.map(lambda leaf: leaf[2:], free["blocks"])
    wanted = free | {"blocks": upper}
    wanted = jax.tree.map(lambda leaf: scale * leaf, wanted)
    assert_close(frozen, wanted, rtol=1e-4, atol=1e-7)


def test_layers_learn_at_their_own_rates():
    trainable, _, plain, _ = steps_of(spec_of(), 1)
    _, _, decayed, _ = steps_of(spec_of(tuning=TuningConfig(layer_decay=0.5)), 1)
    moved, slower = (
        jax.tree.map(np.subtract, state.params, trainable) for state in (plain, decayed)
    )
    by_layer = np.array([1 / 8, 1 / 4, 1 / 2])
    factors = {
        "blocks": lambda leaf: by_layer.reshape(-1, *(1,) * (leaf.ndim - 1)),
        "embeddings": lambda _: 1 / 16,
        "cell_classifier": lambda _: 1,
    }
    for part, factor in factors.items():
        wanted = jax.tree.map(lambda leaf, factor=factor: factor(leaf) * leaf, moved[part])
        assert_close(slower[part], wanted, rtol=2e-3, atol=2e-7)


def assert_close(found, wanted, **tolerance) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


MESHES = [
    (RICH, TuningConfig(freeze_layers=1), (2, 2, 2)),
    pytest.param(GENES, TuningConfig(), (1, 4, 2), marks=pytest.mark.slow),
    pytest.param(PLAIN, TUNINGS["lora"], (2, 2, 2), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("head", "tuning", "shape"), MESHES)
def test_every_mesh_gives_what_one_device_gives(head, tuning, shape):
    _, _, expected, expected_metrics = steps_of(spec_of(head, tuning))
    _, _, state, metrics = steps_of(spec_of(head, tuning, MeshConfig(*shape)))
    np.testing.assert_allclose(metrics.loss, expected_metrics.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.targets, expected_metrics.targets)
    for one, other in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
def test_twelve_cells_on_eight_devices_learn_what_they_do_on_one():
    _, _, expected, expected_metrics = steps_of(spec_of(), cells=12)
    _, _, state, metrics = steps_of(spec_of(mesh=MeshConfig(8)), cells=12)
    np.testing.assert_allclose(metrics.loss, expected_metrics.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.targets, expected_metrics.targets)
    assert_close(state.params, expected.params, atol=2e-5)


def test_parts_of_a_batch_add_up_to_the_whole():
    _, _, whole, whole_metrics = steps_of(spec_of(GENES, TUNINGS["layers"]))
    _, _, parts, metrics = steps_of(spec_of(GENES, TUNINGS["layers"], micro_batches=2))
    for name in ("loss", "accuracy", "targets", "gradient_norm"):
        np.testing.assert_allclose(
            getattr(metrics, name), getattr(whole_metrics, name), rtol=1e-5, err_msg=name
        )
    for one, other in zip(
        jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parity
def test_losses_of_several_tasks_are_weighted_means(torch):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, 6)).astype(np.float32)
    targets = np.stack([rng.integers(0, 3, 9), rng.integers(0, 2, 9), rng.normal(size=9)], axis=1)
    targets = targets.astype(np.float32)
    weights = rng.choice([0.0, 1.0, 2.5], (9, 3)).astype(np.float32)
    weights[:2] = 0
    tasks = (
        HeadTask("type", ("a", "b", "c"), weight=3.0),
        HeadTask("sick", ("no", "yes"), weight=2.0),
        HeadTask("age", ("age",), weight=1.0, regression=True),
    )
    head = HeadConfig("cell_classifier", ("a", "b", "c", "no", "yes", "age"), 0.0, tasks=tasks)
    batch = LabelledBatch(None, None, targets, weights, None)
    losses, _ = label_losses(head, jnp.asarray(logits), jnp.asarray(targets))
    found = weighted_means(head, losses, jnp.asarray(weights), task_totals(batch))
    t = torch.from_numpy
    cross = functools.partial(torch.nn.functional.cross_entropy, reduction="none")
    parts = [
        cross(t(logits[:, :3]), t(targets[:, 0]).long()),
        cross(t(logits[:, 3:5]), t(targets[:, 1]).long()),
        torch.nn.functional.mse_loss(t(logits[:, 5]), t(targets[:, 2]), reduction="none"),
    ]
    means = [(part * t(w)).sum() / w.sum() for part, w in zip(parts, weights.T, strict=True)]
    assert float(found) == pytest.approx(
        float((3 * means[0] + 2 * means[1] + means[2]) / 6), rel=1e-6
    )
