"""Exact deletions with the part of each that is re-ranking, beside plain JAX."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.cells.tokenization.vocabulary import V2_SPECIAL_TOKENS
from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.api import perturb_cells
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine.edits import EditRule, SpecialTokens
from geneformer_jax.perturbation.engine.gene_sets import GeneSets
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.engine.plan import EditPlan, plan_edits
from geneformer_jax.perturbation.engine.screening.reranking import (
    RerankingPerturber,
    encodings_of_reranking,
)
from geneformer_jax.perturbation.prepare import make_plan, make_spec, resolve_edits
from tests.helpers.plain_screen import plain_cosine, plain_screen
from tests.helpers.slow_perturbation import make_cells, make_model

# With one state a screen takes 18 encodings of a cell: the first is interpolated.
LENGTHS = [22, 9]
STATES = {"column": "kind", "goal": "b", "start": "a"}


def engines(model, **options):
    """Returns both engines of deletions in the same cells, and a state."""
    options = PerturbationOptions(**options)
    spec = make_spec(model, options, jax.devices()[:1])
    plan = make_plan(make_cells(model, LENGTHS), options, spec, *resolve_edits(model, options))
    plan = plan.in_whole_cells(plan.counts)
    drawn = np.random.default_rng(3).normal(size=(1, model.config.width))
    state = (drawn / np.linalg.norm(drawn)).astype(np.float32)
    given = model, plan, replace(spec, states=("goal",)), state
    return Perturber(*given), RerankingPerturber(*given), state[0]


@pytest.mark.parametrize(
    ("special", "mode", "layer"),
    [
        (("<pad>", "<mask>"), "cell", -1),
        (V2_SPECIAL_TOKENS, "cls", 0),
        pytest.param(V2_SPECIAL_TOKENS, "cell", -2, marks=pytest.mark.slow),
    ],
)
def test_the_part_is_that_of_cells_whose_later_genes_move_up(special, mode, layer):
    model = make_model(special)
    perturber, both, state = engines(model, mode=mode, hidden_layer=layer)
    plan, first = both.plan, both.plan.special.first
    assert encodings_of_reranking(plan, 1) == 18 + 9
    exact = perturber.shifts(0, plan.edits)
    # In two parts, of which the bound lies within the first cell.
    made = [both.shifts(*bounds) for bounds in ((0, 5), (5, plan.edits))]
    values_EM = np.concatenate([part.values_EM for part in made])
    np.testing.assert_allclose(values_EM[:, :-1], exact.values_EM, atol=1e-6)
    for cell, tokens in enumerate(plan.cells.read(np.arange(len(LENGTHS)))):
        tokens = tokens.astype(int)
        places = first + np.arange(LENGTHS[cell])
        splits = np.rint(np.linspace(first, len(tokens) - 1, 12)).astype(int)
        splits = splits if cell == 0 else np.arange(first, len(tokens))
        cosine = partial(plain_cosine, model, layer, mode, state)
        expected = plain_screen(model, cosine, tokens, splits.tolist())
        found = values_EM[exact.cells == cell, -1]
        np.testing.assert_allclose(found, [expected[p][1] for p in places], atol=2e-6)


def test_tables_have_both_parts_of_shifts_towards_states():
    model = make_model()
    cells = make_cells(model, [23, 8, 8, 9])
    plain = perturb_cells(model, cells, states=STATES)
    found = perturb_cells(model, cells, states=STATES, controls="reranking")
    pd.testing.assert_frame_equal(found[list(plain)], plain)
    towards = found["measure"] == "state_shift"
    assert found[~towards][["reranking", "removal"]].isna().all(axis=None)
    parts = found[towards]["reranking"] + found[towards]["removal"]
    np.testing.assert_allclose(parts, found[towards]["value"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"states": None}, "needs cell states to compare"),
        ({"edit": "overexpress"}, "needs deletions of one gene at a time, where later genes move"),
        ({"positions": "keep"}, "needs deletions of one gene at a time, where later genes move"),
        ({"combine": "pairs"}, "needs deletions of one gene at a time, where later genes move"),
    ],
)
def test_what_has_no_such_part_is_refused_in_one_line(options, words):
    model = make_model()
    asked = {"states": STATES, "controls": ["reranking"], **options}
    with pytest.raises(InputError) as refused:
        perturb_cells(model, make_cells(model, [9, 9]), **asked)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_cell_that_is_cut_is_screened_in_each_part_of_it(monkeypatch):
    cells = make_cells(make_model(), [50, 40, 2])
    plan = plan_edits(cells, EditRule("delete"), SpecialTokens.of(cells.vocabulary, 64), GeneSets())
    monkeypatch.setattr(EditPlan, "parts", [(0, 30), (30, 60), (60, 92)])
    # With one state a screen takes 18 encodings of a cell; the last is made exactly.
    assert encodings_of_reranking(plan, 1) == 2 * 18 + 2 * 18 + 2
