"""Defects of the original that are corrected here: each test fails on the original's way."""

import numpy as np
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.api import perturb_cells
from geneformer_jax.perturbation.engine.edits import EditRule, SpecialTokens, edits_of
from tests.helpers.perturbation_reference import index, run
from tests.helpers.slow_perturbation import by_hand, ids_of, make_cells, make_model, value_of

LIMIT = 24


@pytest.fixture(scope="module")
def model():
    return make_model()


def absent_genes(model, number: int) -> list[int]:
    return [model.vocabulary.first_gene_token + 1 + 2 * i for i in range(number)]


def cut_by_the_original(length: int, added: int, limit: int) -> int:
    """Genes that the original takes off the cell it compares with (from the edited length)."""
    edited = min(length + added, limit)
    return max(edited + added - limit, 0)


@pytest.mark.parametrize("length", [LIMIT - 4, LIMIT - 2, LIMIT - 1, LIMIT])
def test_near_the_limit_as_many_genes_are_cut_as_did_not_fit(model, length):
    added = absent_genes(model, 2)
    cells = make_cells(model, [length])
    special = SpecialTokens.of(model.vocabulary, LIMIT)
    genes = special.genes_of(cells.tokens[0])
    sets_EK = np.array([added], np.int32)
    cut = int(edits_of(EditRule("overexpress"), special, genes, sets_EK, LIMIT).cut[0])
    assert cut == max(length + 2 - LIMIT, 0)
    # In between, the original cuts too much: then its two gene axes differ and it stops.
    assert (cut == cut_by_the_original(length, 2, LIMIT)) == (length in (LIMIT - 4, LIMIT))
    named = [ids_of(model, [token]) for token in added]
    found = perturb_cells(model, cells, edit="overexpress", genes=named, combine="together")
    expected = by_hand(model, EditRule("overexpress"), cells.tokens[0].astype(int), added)
    value = value_of(found, "cell0", "+".join(named), "mean_gene_cosine")
    assert value == pytest.approx(expected["mean_gene_cosine"], abs=3e-6)


def test_cells_of_one_batch_may_differ_in_what_they_express(model):
    """The longest expresses a listed gene, a shorter one does not: the original's axes differ."""
    cells = make_cells(model, [22, 12, 9])
    present = int(next(t for t in cells.tokens[0] if t not in cells.tokens[1]))
    perturbed = [present, *absent_genes(model, 1)]
    named = [ids_of(model, [token]) for token in perturbed]
    # The original aligns all cells of a batch by the number of genes added to the longest.
    added = [sum(token not in tokens for token in perturbed) for tokens in cells.tokens]
    assert len(set(added)) > 1
    found = perturb_cells(
        model, cells, edit="overexpress", genes=named, combine="together", tokens_per_device=500
    )
    for cell, tokens in zip(cells.obs.index, cells.tokens, strict=True):
        expected = by_hand(model, EditRule("overexpress"), tokens.astype(int), perturbed)
        value = value_of(found, cell, "+".join(named), "mean_gene_cosine")
        assert value == pytest.approx(expected["mean_gene_cosine"], abs=3e-6)


def test_affected_genes_go_by_their_own_names(model):
    """Overexpressing each gene, the original names the gene below for every affected one."""
    cells = make_cells(model, [10])
    genes = cells.tokens[0].astype(int).tolist()
    found = perturb_cells(model, cells, edit="overexpress", gene_shifts="full")
    differ = 0
    for gene in genes[1:]:
        expected = by_hand(model, EditRule("overexpress"), genes, [gene])["genes"]
        own = found[found["perturbed"] == ids_of(model, [gene])]
        own = own.set_index("affected")["value"]
        # All others, the one that stood first included and none lost.
        assert set(own.index) == {ids_of(model, [token]) for token in genes if token != gene}
        values = np.array([own[ids_of(model, [token])] for token in expected])
        np.testing.assert_allclose(values, list(expected.values()), atol=3e-6)
        # The original drops the first gene of the cell from the names, not from the values.
        shifted = [token for token in genes[1:] if token != gene]
        rows = [expected[token] for token in genes if token != gene]
        theirs = dict(zip(shifted, rows, strict=False))
        differ += any(abs(theirs[t] - own[ids_of(model, [t])]) > 1e-4 for t in shifted)
    assert differ == len(genes) - 1


@pytest.mark.parametrize("edit", ["delete", "overexpress"])
def test_a_gene_that_is_not_in_the_vocabulary_is_refused(model, edit):
    """In the original it becomes the token None: no cell matches, or None is inserted."""
    with pytest.raises(InputError, match='gene "GATA44" is not in the vocabulary'):
        perturb_cells(model, make_cells(model, [9]), edit=edit, genes=["GATA44"])


def test_an_anchor_is_overexpressed_with_each_gene_under_its_own_name(model):
    """The original drops two names but no edit: a shape error, or wrong names."""
    cells = make_cells(model, [9])
    genes = cells.tokens[0].astype(int).tolist()
    anchor = genes[3]
    found = perturb_cells(model, cells, edit="overexpress", anchor=ids_of(model, [anchor]))
    others = [gene for gene in genes if gene != anchor]
    pairs = {ids_of(model, [anchor, gene]) for gene in others}
    assert set(found["perturbed"]) == pairs | {ids_of(model, [gene]) for gene in genes}
    for gene in others:
        expected = by_hand(model, EditRule("overexpress"), genes, [anchor, gene])
        value = value_of(found, "cell0", ids_of(model, [anchor, gene]), "mean_gene_cosine")
        assert value == pytest.approx(expected["mean_gene_cosine"], abs=3e-6)


@pytest.mark.slow
@pytest.mark.reference_data
@pytest.mark.parametrize(
    "name", ["defect_overexpress_mixed_batch", "defect_overexpress_near_limit"]
)
def test_what_the_original_could_not_run_gives_values(reference_dir, data_dir, name):
    assert "must match the size" in index(reference_dir)[name]["status"]
    found = run(reference_dir, data_dir, name)
    assert len(found) == len(index(reference_dir)[name]["cells_given"])
    assert found["value"].between(-1, 1, inclusive="neither").all()
