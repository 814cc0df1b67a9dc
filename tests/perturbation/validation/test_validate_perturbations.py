"""A screen with what the model predicts planted in it is found so, and one of noise is not."""

import numpy as np
import pytest

import geneformer_jax as gf
from geneformer_jax.inference.cells import ChosenCells
from geneformer_jax.perturbation.validation.config import ValidationOptions
from geneformer_jax.perturbation.validation.prepare import make_validator
from geneformer_jax.perturbation.validation.scoring.effects import predicted_effects
from geneformer_jax.perturbation.validation.scoring.metrics import mean_of_others
from tests.helpers.toy import make_store, toy_model
from tests.helpers.toy_screens import CONTROL, TARGETS, gene_id, toy_screen

HOW = {"perturbation": "target", "control": CONTROL, "edited_cells": 48, "hidden_layer": 0}


@pytest.fixture(scope="module")
def model():
    return toy_model(positions=160, layers=1, initializer_range=0.2)


@pytest.fixture(scope="module")
def predicted(model):
    """The validator of a screen of noise, and what it predicts."""
    validator = make_validator(
        model, toy_screen(), ValidationOptions(**HOW), lambda longest: gf.Runtime()
    )
    plan = validator.perturber.plan
    with validator.perturber.progress(plan.edits) as progress:
        parts = [validator.perturb(*part, progress) for part in plan.parts]
    return validator, predicted_effects(parts, model.vocabulary.size, min_cells=10)


def test_a_planted_screen_is_found(model, predicted):
    effects = predicted[1]
    tokens = np.array(predicted[0].screen.genes)
    own = effects.gene_shifts - mean_of_others(effects.gene_shifts)
    shifted = np.argsort(-np.nan_to_num(own[effects.rows(tokens)], nan=-1), axis=1)[:, :10]
    first = model.vocabulary.first_gene_token
    changed = {target: genes - first for target, genes in zip(TARGETS, shifted, strict=True)}
    found = gf.validate_perturbations(model, toy_screen(changed), **HOW)
    assert "beat all their controls in" in found.verdict[0]
    rows = found.summary.set_index("protocol")
    for protocol in ("discrimination_score_cosine", "roc_auc_pert", "pearson_abs_lfc"):
        assert rows.loc[protocol, "minus_like_rank_low"] > 0.02, protocol
        assert rows.loc[protocol, "drf_like_rank"] > 0.05, protocol
    assert (found.perturbations["changed_genes"] > 8).all()
    assert found.perturbations["gene_id"].tolist() == [gene_id(target) for target in TARGETS]


def test_a_screen_of_noise_is_not(model):
    found = gf.validate_perturbations(model, toy_screen(), **HOW)
    assert found.verdict[0].startswith("Nothing can be told")
    rows = found.summary.set_index("protocol")
    assert rows.loc["discrimination_score_cosine", "minus_like_rank_low"] < 0
    assert np.isnan(rows.loc["discrimination_score_cosine", "drf_like_rank"])
    # One shift for all is at chance: each rank comes once.
    chance = np.mean([1 - rank / len(TARGETS) for rank in range(len(TARGETS))])
    mean = rows.loc["discrimination_score_cosine", "all_perturbed_mean"]
    assert mean == pytest.approx(chance)
    assert (found.perturbations["changed_genes"] < 3).all()


def test_predicted_shifts_are_those_of_cells_without_the_gene(model, predicted):
    """Beside the embeddings of cells out of whose tokens the gene is taken by hand."""
    validator, effects = predicted
    edited = validator.perturber.plan.cells
    cells = edited.read(np.arange(len(edited.rows)))
    token = int(validator.screen.genes[0])
    own = [each for each in cells if token in each]

    class Without(ChosenCells):
        def read(self, indices):
            return [each[each != token] for each in super().read(indices)]

        @property
        def lengths(self):
            return np.array([len(each) for each in self.read(np.arange(len(self.rows)))])

    with_gene = [i for i, each in enumerate(cells) if token in each]
    before = ChosenCells(edited, np.array(with_gene), {})
    after = Without(edited, np.array(with_gene), {})
    units = []
    for each in (before, after):
        rows = gf.embed_cells(model, each, hidden_layer=0).obsm["X_geneformer"].astype(np.float64)
        units.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    row = effects.rows(np.array([token]))[0]
    assert effects.cells[row] == len(own)
    np.testing.assert_allclose(effects.shifts[row], (units[1] - units[0]).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"perturbation": "gene"}, 'no obs column "gene"'),
        ({"control": "ctrl"}, 'it has "non-targeting"'),
        ({"edit": "inhibit"}, "delete or overexpress"),
        ({"min_cells": 2}, "at least 4"),
        ({"min_cells": 60}, "the largest has 40"),
        ({"perturbation": 3}, "`perturbation` is 3"),
        ({"edited_cells": 6}, "edit more control cells with `edited_cells`"),
    ],
)
def test_bad_arguments_are_told(model, wrong, words):
    with pytest.raises(gf.InputError) as told:
        gf.validate_perturbations(model, toy_screen(), **(HOW | wrong))
    assert words in str(told.value) and "\n" not in str(told.value)


def test_tokenised_cells_have_no_counts(model, tmp_path):
    screen = toy_screen()
    store = make_store(tmp_path / "store", screen, model.vocabulary, obs=("target",))
    for cells in (store, tmp_path / "store"):
        with pytest.raises(gf.InputError, match=r"give (an AnnData of raw|the) counts"):
            gf.validate_perturbations(model, cells, **HOW)
