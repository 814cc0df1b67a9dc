"""Configurations: what is refused, and that every shipped one can be built."""

import functools
import json

import jax
import numpy as np
import pytest

from geneformer_jax.batches.loader import Batch
from geneformer_jax.batches.masking import masked_capacity
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import abstract_params
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.training.config import pretrain_config, typed_config
from geneformer_jax.training.flops import bytes_per_device, step_flops
from geneformer_jax.training.objectives.masked_genes import masked_gene_sums
from geneformer_jax.training.optimizer import make_optimizer
from geneformer_jax.training.run import prepare_run
from geneformer_jax.training.state import Recipe, init_state, train_step
from tests.helpers.configs import CONFIGS, load, toy_config
from tests.helpers.toy import make_store, toy_cells, toy_vocabulary


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_evaluates_its_shapes(path):
    config = load(path)
    encoder = config.encoder(config.model["vocabulary_size"] or 1_000)
    recipe = Recipe(
        encoder,
        make_optimizer(config.optimizer, 100),
        Runtime(precision=precision_preset(config.runtime.precision)),
        config.seed,
        config.runtime.micro_batches,
    )
    B, T = 4 * recipe.micro_batches, encoder.positions
    M = masked_capacity(T)

    def array(*shape: int, dtype=np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = Batch(
        array(B, T), array(B), array(B, M), array(B, M), array(B, M, dtype=np.float32), array(B)
    )
    state = jax.eval_shape(lambda: init_state(recipe))
    after, metrics = jax.eval_shape(functools.partial(train_step, recipe=recipe), state, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert metrics.loss.shape == ()
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert weights == encoder.parameters


def test_a_configuration_survives_json():
    config = pretrain_config("v1_10m").to_dict()
    assert typed_config(json.loads(json.dumps(config))) == typed_config(config)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.learning_rat", 1, 'did you mean "optimizer.learning_rate"|did you mean'),
        ("optimizer.learning_rate", 0.0, "learning_rate` is 0.0"),
        ("optimizer.schedule", "step", "linear, cosine, constant, stable_decay"),
        ("optimizer.name", "lion", "optimizer.name` is 'lion'; choose one of adamw, muon"),
        ("optimizer.decay_ratio", 0.0, r"decay_ratio` is 0.0; in \(0, 1\]"),
        ("objective.contrastive", -1.0, r"objective.contrastive` is -1.0; from 0 \(off\) to 1e6"),
        ("objective.contrastive", 1e300, r"contrastive` is 1e\+300; from 0"),
        ("objective.contrastiv", 1.0, 'did you mean "contrastive"'),
        ("objective.temperature", 0.0, "temperature` is 0.0; from 1e-6 to 1e6, such as 0.1"),
        ("objective.temperature", 1e-300, "temperature` is 1e-300; from 1e-6"),
        ("objective.hidden_layer", 1, "objective.hidden_layer` is 1; 0 or below"),
        ("objective.views.least_genes", 0, "least_genes` is 0; from 1 to 2,147,483,647"),
        ("objective.views.most_genes", 20, "most_genes` is 20; from 48 to 2,147,483,647"),
        ("objective.views.most_genes", 2**31, "most_genes` is 2147483648; from 48 to"),
        ("runtime.precision", "float8", "float32, bfloat16, float16"),
        ("runtime.remat", "all", "none, full, dots"),
        ("mesh.fsdp", 0, "mesh.fsdp` is 0"),
        ("checkpoint.keep", 0, "checkpoint.keep` is 0"),
        ("steps", -1, r"steps` is -1; from 0 \(count epochs\) to 2,147,483,647"),
        ("steps", 2**31, "steps` is 2147483648; from 0"),
        ("optimizer.warmup_steps", 2**31, "warmup_steps` is 2147483648; from 0 to"),
        ("seed", 2**63, "seed` is 9223372036854775808; from 0 to"),
        ("model.depth", 3, 'no key "model.depth"'),
        ("model.width", "256", "config.model.width` is '256'; give a whole number"),
        ("model", None, "config.model` is None; give its keys"),
        ("mesh", 4, "config.mesh` is 4; give its keys"),
        ("steps", 10.5, "config.steps` is 10.5; give a whole number"),
        ("epochs", True, "config.epochs` is True; give a whole number"),
        ("optimizer.learning_rate", "1e-3", "learning_rate` is '1e-3'; give a finite number"),
        ("optimizer.eps", float("nan"), "optimizer.eps` is nan; give a finite number"),
        ("data.packing", 1, "data.packing` is 1; give true or false"),
        ("data.store", 3, "data.store` is 3; give a text"),
    ],
)
def test_values_that_cannot_be_are_refused(key, value, words):
    config = pretrain_config("v1_10m").to_dict()
    *folders, name = key.split(".")
    node = config
    for folder in folders:
        node = node[folder]
    node[name] = value
    with pytest.raises(InputError, match=words):
        typed_config(config)


def test_what_a_configuration_needs_is_named():
    config = pretrain_config("v1_10m").to_dict()
    del config["model"]
    with pytest.raises(InputError, match='no "model", which is needed'):
        typed_config(config)
    with pytest.raises(InputError, match="`config` is a list; give its keys"):
        typed_config([])


def test_flops_are_those_xla_counts():
    encoder = EncoderConfig(512, 1, 64, 2, 256, 64, dropout=0.0, attention_dropout=0.0)
    B, T, M = 4, 64, 16
    batch = Batch(
        np.ones((B, T), np.int32),
        np.full(B, T, np.int32),
        np.zeros((B, M), np.int32),
        np.zeros((B, M), np.int32),
        np.ones((B, M), np.float32),
        np.arange(B, dtype=np.int32),
    )

    def loss(params):
        return masked_gene_sums(encoder, params, batch, Runtime()).loss

    gradient = jax.jit(jax.grad(loss)).lower(abstract_params(encoder)).compile()
    counted = gradient.cost_analysis()["flops"]
    # XLA also counts norms, softmax and the like, which are of lower order but small models show.
    assert step_flops(encoder, batch.lengths_B, B * M) == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.vocabulary_size": 99}, "99 but the store's vocabulary has 152"),
        ({"mesh.tensor": 3}, "divides 8, or a product of at most 8"),
        ({"mesh.data": 3, "mesh.fsdp": 3}, "cannot be laid out on the 8 devices"),
        ({"mesh.tensor": 8}, "heads` 4 is not divisible by `config.mesh.tensor` 8"),
        ({"data.tokens_per_batch": 64}, "exactly one"),
        ({"evaluation.held_out_cells": 240}, "the store has 240 cells"),
        ({"runtime.attention": "cudnn"}, "needs an NVIDIA GPU"),
        (
            {"objective.contrastive": 1.0, "objective.hidden_layer": -2},
            "hidden_layer` is -2, but the model has 2 layers; choose one from -1 to 0",
        ),
        (
            {"objective.contrastive": 1.0, "data.cells_per_batch": 1},
            "contrastive` is 1, but a batch of cells of .* tokens holds one cell",
        ),
        (
            {"objective.contrastive": 1.0, "evaluation.held_out_cells": 239},
            "contrastive` is 1, but a step has 1.0 of the 1 cells to train on",
        ),
        ({"steps": 0, "epochs": 10**12}, "epochs` is 1,000,000,000,000, which makes .* steps"),
    ],
)
def test_runs_that_cannot_start_are_refused_before_anything_compiles(toy_store, changes, words):
    with pytest.raises(InputError, match=words):
        prepare_run(toy_config(toy_store, **changes), toy_store)


def test_a_contrastive_loss_needs_cells_of_eight_genes(tmp_path):
    adata = toy_cells(60)
    counts = adata.X.toarray()
    counts[:3, 7:] = 0
    adata.X = counts
    store = make_store(tmp_path / "store", adata, toy_vocabulary())
    with pytest.raises(InputError, match="but 3 of 60 cells have fewer than 8 genes"):
        prepare_run(toy_config(store, **{"objective.contrastive": 1.0}), store)


def test_runs_begun_before_there_were_other_objectives_go_on(toy_store):
    plain = prepare_run(toy_config(toy_store), toy_store).identity()
    assert not [name for name in plain if name.startswith("objective") or "decay_ratio" in name]
    changes = {"objective.contrastive": 0.5, "optimizer.name": "muon"}
    other = prepare_run(toy_config(toy_store, **changes), toy_store).identity()
    assert other["objective.contrastive"] == 0.5
    assert other["optimizer.name"] == "muon"


def test_a_second_objective_is_told_and_counted(toy_store):
    plain = prepare_run(toy_config(toy_store), toy_store)
    half = int(np.median(toy_store.lengths)) // 2
    views = {"objective.views.least_genes": half, "objective.views.most_genes": half}
    both = prepare_run(toy_config(toy_store, **{"objective.contrastive": 0.5}, **views), toy_store)
    told = [line for line in both.summary() if line not in plain.summary()]
    assert "masked genes, and 0.5 times a contrastive loss of each cell" in told[0]
    # Half of the genes through one layer of two, beside all of them, masked, in both layers.
    assert 1.1 < both.flops_per_step / plain.flops_per_step < 1.3


def test_a_run_says_what_it_will_do(toy_store):
    run = prepare_run(toy_config(toy_store), toy_store)
    text = "\n".join(run.summary())
    assert f"warning: 10,000 steps of warmup, but only {run.steps} steps" in text
    short = prepare_run(toy_config(toy_store, **{"optimizer.warmup_steps": 80}), toy_store)
    assert short.steps == 81 and "of warmup" not in "\n".join(short.summary())
    assert "216 to train on, 24 held out" in text
    assert "data 8 x fsdp 1 x tensor 1" in text
    assert "attention: xla" in text
    # 31,544 weights in float32, and two moments of each.
    state = run.abstract_state
    assert bytes_per_device(state.params) == 4 * run.encoder.parameters
    assert bytes_per_device(state.optimizer) == 8 * run.encoder.parameters + 8
    assert run.steps == 3 * run.steps_per_epoch


def test_cells_longer_than_the_model_are_cut_and_counted(toy_store):
    longer = int((toy_store.lengths > 16).sum())
    run = prepare_run(toy_config(toy_store, **{"model.positions": 16}), toy_store)
    assert f"{longer} of 240 cells have more than the 16 tokens" in "\n".join(run.summary())
