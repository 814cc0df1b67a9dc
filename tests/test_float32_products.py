"""Float32 arrays are multiplied in float32 on every device: nothing is left to its default.

By default GPUs since the A100 and TPUs round the operands, which a CPU cannot show: so this asks
the programs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.attention_analysis import extractor
from geneformer_jax.attention_analysis.cell_groups import CellGroups
from geneformer_jax.common.progress import Progress
from geneformer_jax.embedding import embedder
from geneformer_jax.model.heads import HeadConfig, head_module
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine import perturber
from geneformer_jax.perturbation.engine.screening import screener
from geneformer_jax.perturbation.prepare import make_plan, make_spec, resolve_edits
from geneformer_jax.training.objectives.contrastive import ViewedBatch
from geneformer_jax.training.state import init_state, train_step
from tests.helpers.slow_perturbation import make_cells, make_model
from tests.training import test_contrastive as contrastive
from tests.training.test_step import initial, masked_batch, recipe_of

EXACT = (jax.lax.Precision.HIGHEST,) * 2


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def products(jaxpr):
    """Every product in a program, and in all programs that it runs on others than CPUs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        programs = dict(equation.params)
        if programs.get("branches_platforms"):
            branches = zip(programs["branches"], programs["branches_platforms"], strict=True)
            programs["branches"] = [each for each, names in branches if names != ("cpu",)]
        for inner in jax.tree.leaves(
            list(programs.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def assert_exact(function, *arguments, static=(), at_least=1, **options):
    traced = jax.make_jaxpr(function, static_argnums=static)(*arguments, **options)
    found = list(products(traced.jaxpr))
    assert len(found) >= at_least
    for each in found:
        types = {operand.aval.dtype.name for operand in each.invars}
        assert types != {"float32"} or each.params["precision"] == EXACT, str(each)
    return found


@pytest.fixture
def programs(monkeypatch):
    """Returns what records the calls of a compiled function, and lets them go on."""
    calls = []

    def record(module, name):
        function = getattr(module, name)

        def call(*arguments):
            calls.append((function, arguments))
            return function(*arguments)

        monkeypatch.setattr(module, name, call)

    record.calls = calls
    return record


@pytest.mark.parametrize("precision", [slow("float32"), "bfloat16"])
@pytest.mark.parametrize("attention", ["xla", slow("chunked"), slow("by_head")])
def test_a_training_step_multiplies_as_its_precision_says(precision, attention):
    """In float32, or in half precision: both operands of a product, forward and backward."""
    recipe = recipe_of()
    runtime = Runtime(precision=precision_preset(precision), attention=attention)
    recipe = dataclasses.replace(recipe, runtime=runtime)
    step = functools.partial(train_step, recipe=recipe)
    found = assert_exact(step, initial(recipe), masked_batch(), at_least=20)
    types = {operand.aval.dtype.name for each in found for operand in each.invars}
    assert types == {precision}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_contrastive_loss_multiplies_in_float32(precision):
    recipe, batch = contrastive.recipe_of(), masked_batch()
    runtime = Runtime(precision=precision_preset(precision))
    recipe = dataclasses.replace(recipe, runtime=runtime)
    viewed = ViewedBatch(batch, batch)

    def loss(params):
        return recipe.loss(params, viewed, recipe.size(viewed), jax.random.key(0))[0]

    assert_exact(jax.grad(loss), init_state(recipe).params, at_least=20)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_perturbing_embedding_and_attending_multiply_in_float32(precision, programs):
    model = make_model(classifier=True)
    cells, runtime = make_cells(model, [24, 20]), Runtime(precision=precision_preset(precision))
    options = PerturbationOptions(classes=True)
    spec = make_spec(model, options, jax.devices()[:1])
    spec = dataclasses.replace(spec, runtime=runtime, states=("a",))
    plan = make_plan(cells, options, spec, *resolve_edits(model, options))
    states = np.ones((1, model.config.width), np.float32) / 4
    for name in ("encode_baseline", "perturb_batch"):
        programs(perturber, name)
    for name in ("differentiate", "values_when_moved"):
        programs(screener, name)
    programs(embedder, "take_states")
    programs(extractor, "_add_cells")
    for kind in (perturber.Perturber, screener.Screener):
        kind(model, plan, spec, states).shifts(0, plan.edits)
    embed = embedder.Embedder(model, cells, runtime=runtime, devices=jax.devices()[:1])
    groups = CellGroups(("all",), np.zeros(2, np.int32))
    attend = extractor.AttentionExtractor(
        model, cells, groups, runtime=runtime, devices=jax.devices()[:1]
    )
    with Progress(2, "", "cells") as progress:
        embed.rows(0, 2, progress)
        attend.run(0, 2, progress)
    made = {function.__name__: (function, given) for function, given in programs.calls}
    assert len(made) == 6
    for function, given in made.values():
        assert_exact(function.__wrapped__, *given, static=0)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_heads_multiply_in_float32(pooling):
    model = make_model(classifier=True)
    head = HeadConfig("cell_classifier", ("a", "b"), 0.0, pooling=pooling)
    weights = dict(model.params["cell_classifier"])
    if pooling == "attention":
        weights["scores"] = {"kernel": jnp.zeros((model.config.width, 1))}
    built = head_module(model.config, head, weights, precision_preset("float32"))
    assert_exact(built, jnp.zeros((2, 8, model.config.width)), jnp.array([8, 3]), at_least=3)
