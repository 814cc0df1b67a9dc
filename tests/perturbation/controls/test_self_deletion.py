"""What stays of a shift if states are embedded without the gene: planted, and by plain edits."""

import jax
import numpy as np
import pytest

from geneformer_jax.cells.tokenization.tokenizer import tokenize_cells
from geneformer_jax.embedding.embedder import Embedder
from geneformer_jax.perturbation.api import perturb_cells
from geneformer_jax.perturbation.controls.self_deletion import self_deletion, without_each
from tests.helpers.toy import toy_cells, toy_model


@pytest.fixture(scope="module")
def model():
    return toy_model(positions=128, initializer_range=0.2)


@pytest.fixture(scope="module")
def cells(model):
    return tokenize_cells(toy_cells(30), model.vocabulary)


def test_cells_are_taken_whole_and_then_without_each_gene(cells):
    tokens = [2, 40]
    edited = without_each(cells, tokens)
    found = edited.read(np.arange(len(edited.rows)))
    whole = cells.read(np.arange(30))
    expected = [*whole]
    for token in tokens:
        expected += [own[own != token] for own in whole if token in own]
    assert len(found) == len(expected) > 40
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert edited.lengths.tolist() == [len(each) for each in found]


def test_shifts_are_those_of_edits_and_of_cells_written_without_the_gene(model, cells):
    tokens = [2, 12, 90]
    is_goal = (cells.obs["kind"] == "b").to_numpy()

    def embed(edited):
        embedder = Embedder(model, edited, devices=jax.devices()[:1])
        with embedder.progress() as progress:
            return embedder.rows(0, len(edited.lengths), progress)[:, 0]

    table = self_deletion(cells, is_goal, tokens, embed).set_index("perturbed")
    genes = [cells.vocabulary.gene_id_of(token) for token in tokens]
    states = {"column": "kind", "goal": "b", "start": "a"}
    shifts = perturb_cells(model, cells, genes=genes, states=states, devices=jax.devices()[:1])
    means = shifts[shifts["measure"] == "state_shift"].pivot_table(
        "value", "perturbed", "state", observed=True
    )
    for gene in genes:
        expected = means.loc[gene, "b"] - means.loc[gene, "a"]
        assert table.loc[gene, "Sampled_goal_minus_start"] == pytest.approx(expected, abs=2e-6)
    assert table["Self_deletion_cells"].sum() == len(
        shifts[["cell", "perturbed"]].drop_duplicates()
    )
    without = plainly_without(embed, cells, tokens[1])
    assert table.loc[genes[1], "Self_deleted_goal_minus_start"] == pytest.approx(without, abs=2e-6)


class Without:
    """Cells read one by one, each without a token."""

    def __init__(self, cells, gone: int):
        whole = [cells.read(np.array([row]))[0] for row in range(len(cells.lengths))]
        self._tokens = [own[own != gone] for own in whole]
        self.obs, self.vocabulary = cells.obs, cells.vocabulary
        self.lengths = np.array([len(own) for own in self._tokens])

    def read(self, indices):
        return [self._tokens[index] for index in indices]


def plainly_without(embed, cells, token: int) -> float:
    """Goal minus start of deleting a gene, along states of cells that are without it."""
    before, after = embed(Without(cells, -1)), embed(Without(cells, token))
    is_goal = (cells.obs["kind"] == "b").to_numpy()
    states = after[is_goal].mean(axis=0), after[~is_goal].mean(axis=0)
    gained = []
    for row, own in enumerate(cells.read(np.arange(len(is_goal)))):
        if token in own and not is_goal[row]:
            goal, start = (cosine(after[row], to) - cosine(before[row], to) for to in states)
            gained.append(goal - start)
    return float(np.mean(gained))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_of_a_gene_that_is_the_whole_difference_nothing_stays(model):
    """Embedded as the genes that they have, cells of the start differ by gene 3 alone."""
    rng = np.random.default_rng(0)
    is_goal = np.arange(40) % 2 == 0
    common = [rng.permutation(np.arange(10, 30))[:12] for _ in range(20)]
    tokens = [np.r_[[] if goal else [3], common[row // 2]] for row, goal in enumerate(is_goal)]

    class Cells:
        lengths, vocabulary = np.array([len(own) for own in tokens]), model.vocabulary

        def read(self, rows):
            return [tokens[row].astype(np.int64) for row in rows]

    def embed(edited):
        read = edited.read(np.arange(len(edited.rows)))
        return np.stack([np.bincount(own, minlength=40) for own in read])

    kept = self_deletion(Cells(), is_goal, [3, 15], embed).set_index("perturbed")
    gene, other = (model.vocabulary.gene_id_of(token) for token in (3, 15))
    assert kept.loc[gene, "Self_deletion_cells"] == 20
    assert kept.loc[gene, "Sampled_goal_minus_start"] > 0.01
    assert kept.loc[gene, "Self_deleted_fraction"] == pytest.approx(0, abs=1e-9)
    assert kept.loc[other, "Self_deletion_cells"] < 20
