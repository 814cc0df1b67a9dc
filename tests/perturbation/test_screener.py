"""Estimates of deletions from a few passes, beside the same in plain JAX and exact encodings."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from geneformer_jax.cells.tokenization.vocabulary import V2_SPECIAL_TOKENS
from geneformer_jax.model.encoder import encode
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine.screening.screener import Screener, bridge
from geneformer_jax.perturbation.prepare import make_plan, make_spec, resolve_edits
from tests.helpers.plain_screen import plain_cosine, plain_probability, plain_screen
from tests.helpers.slow_perturbation import LIMIT, cosine, make_cells, make_model
from tests.helpers.tolerances import SHIFTS

RAGGED = [LIMIT, 20, 9, 3, 2, 17]
STATES = ("a", "b")


@pytest.fixture(scope="module")
def v1():
    return make_model()


@pytest.fixture(scope="module")
def v2():
    return make_model(V2_SPECIAL_TOKENS)


def vectors(width: int = 16) -> np.ndarray:
    drawn = np.random.default_rng(3).normal(size=(len(STATES), width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def screen(model, lengths, split_points, devices=1, tokens=None, **options):
    """Returns (screener, shifts) of cells of so many genes."""
    options = PerturbationOptions(**options)
    spec = make_spec(model, options, jax.devices()[:devices])
    spec = replace(spec, states=STATES)
    plan = make_plan(make_cells(model, lengths), options, spec, *resolve_edits(model, options))
    sizes = {"split_points": split_points, "tokens_per_device": tokens}
    screener = Screener(model, plan, spec, vectors(), **sizes)
    with screener.progress(plan.edits) as progress:
        return screener, screener.shifts(0, plan.edits, progress)


def splits_of(first: int, last: int, number: int) -> list[int]:
    return sorted({round(first + (last - first) * i / (number - 1)) for i in range(number)})


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("version", "mode", "layer"),
    [("v1", "cell", -1), ("v2", "cls", 0), *(slow("v1", "cell", 0), slow("v2", "cell", -2))],
)
def test_estimates_are_those_of_a_plain_computation(request, version, mode, layer):
    model = request.getfixturevalue(version)
    screener, found = screen(model, [19, 8], 4, mode=mode, hidden_layer=layer)
    tokens = screener.plan.cells.read([1])[0].astype(int)
    first = screener.plan.special.first
    values_GM = found.values_EM[found.cells == 1]
    splits = splits_of(first, len(tokens) - 1, 4)
    for state, vector in enumerate(vectors()):
        cosine = partial(plain_cosine, model, layer, mode, vector)
        expected = plain_screen(model, cosine, tokens, splits)
        wanted = np.array([expected[first + rank] for rank in range(8)])
        np.testing.assert_allclose(values_GM[:, [state, 2 + state]], wanted, atol=2e-6)
    np.testing.assert_array_equal(found.sets_EK[found.cells == 1, 0], tokens[first : first + 8])


@pytest.mark.parametrize(
    ("special", "pooling"),
    [
        (V2_SPECIAL_TOKENS, "mean"),
        slow(V2_SPECIAL_TOKENS, "first"),
        slow(("<pad>", "<mask>"), "first"),
    ],
)
def test_changes_of_class_probabilities_are_those_of_a_plain_computation(special, pooling):
    model = make_model(special, classifier=True)
    model = replace(model, head=replace(model.head, pooling=pooling))
    screener, found = screen(model, [10], 4, classes=True)
    tokens = screener.plan.cells.read([0])[0].astype(int)
    first = screener.plan.special.first
    for label in range(2):
        probability = partial(plain_probability, model, label)
        expected = plain_screen(model, probability, tokens, splits_of(first, len(tokens) - 1, 4))
        wanted = np.array([expected[first + rank] for rank in range(10)])
        np.testing.assert_allclose(found.values_EM[:, [2 + label, 6 + label]], wanted, atol=2e-6)


@pytest.mark.parametrize("version", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_with_a_split_at_every_position_the_reranking_is_exact(request, version):
    model = request.getfixturevalue(version)
    screener, found = screen(model, [11], LIMIT)
    tokens = screener.plan.cells.read([0])[0].astype(np.int32)
    first, is_gene = screener.plan.special.first, tokens >= model.vocabulary.first_gene_token

    def embedded(position: int) -> np.ndarray:
        """The cell encoded with every token behind a position one place up."""
        places = np.arange(len(tokens)) - (np.arange(len(tokens)) > position)
        hidden = encode(
            model.config,
            model.params,
            tokens[None],
            np.array([len(tokens)]),
            layers=model.config.layers - 1,
            positions_BT=places[None],
        )[0]
        return np.asarray(hidden[0] if first else hidden[is_gene].mean(0), float)

    whole = embedded(len(tokens))
    for rank in range(11):
        moved = embedded(first + rank)
        for state, vector in enumerate(vectors()):
            expected = cosine(moved, vector) - cosine(whole, vector)
            assert found.values_EM[rank, 2 + state] == pytest.approx(expected, abs=1e-6)
    # Behind the last gene of a V1 cell nothing moves, and in V2 `<eos>` does.
    assert (found.values_EM[10, 2:] == 0).all() == (version == "v1")


@pytest.mark.parametrize(
    ("devices", "tokens"),
    [
        pytest.param(1, LIMIT, marks=pytest.mark.slow),
        pytest.param(1, 9 * LIMIT, marks=pytest.mark.slow),
        (8, 2 * LIMIT),
    ],
)
def test_batches_padding_and_devices_change_nothing(v1, devices, tokens):
    _, expected = screen(v1, RAGGED, 6)
    _, found = screen(v1, RAGGED, 6, devices, tokens)
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    np.testing.assert_array_equal(found.cells, expected.cells)
    np.testing.assert_allclose(found.values_EM, expected.values_EM, atol=SHIFTS)


def test_a_bridge_meets_its_split_points_and_follows_the_derivatives_between():
    moving = np.array([[0.0, 1.0, 2.0, 3.0, 4.0, 0.0]])
    # The last token is at 4; behind 2 two tokens have moved, behind 0 all four.
    found = bridge(np.array([0, 2, 4]), np.array([[20.0], [6.0], [0.0]]), moving)
    # By derivatives 10, 9, 7, 4, 0; 10, 4.5 (between 10 and -1), -1, -0.5 and 0 are missing.
    np.testing.assert_allclose(found[0, :5], [20.0, 13.5, 6.0, 3.5, 0.0])
