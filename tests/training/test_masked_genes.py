"""The loss of masked genes: as optax has it, and without an array that is added into."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from geneformer_jax.training.objectives.masked_genes import logits_of

_CELLS, _MASKED, _GENES = 3, 5, 40


@pytest.fixture
def targets_BM():
    return jnp.asarray(np.random.default_rng(1).integers(0, _GENES - 4, (_CELLS, _MASKED)))


@pytest.fixture
def logits_BMV():
    drawn = np.random.default_rng(0).normal(size=(_CELLS, _MASKED, _GENES), scale=30)
    # As rows are that a table has beyond the vocabulary.
    drawn[..., -4:] = -np.inf
    return jnp.asarray(drawn, jnp.float32)


def _loss(logits_BMV, targets_BM):
    return (jax.nn.logsumexp(logits_BMV, axis=-1) - logits_of(logits_BMV, targets_BM)).sum()


def _reference(logits_BMV, targets_BM):
    return optax.softmax_cross_entropy_with_integer_labels(logits_BMV, targets_BM).sum()


def test_loss_and_gradient_are_those_of_optax(logits_BMV, targets_BM):
    loss, gradient = jax.value_and_grad(_loss)(logits_BMV, targets_BM)
    expected, reference = jax.value_and_grad(_reference)(logits_BMV, targets_BM)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, reference, rtol=1e-6, atol=1e-7)
    assert np.abs(gradient).max() > 0.5


def test_the_gradient_adds_into_no_array_of_logits(logits_BMV, targets_BM):
    programs = [
        jax.jit(jax.grad(loss)).lower(logits_BMV, targets_BM).as_text()
        for loss in (_loss, _reference)
    ]
    assert ["scatter" in program for program in programs] == [False, True]
