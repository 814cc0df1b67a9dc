"""Cells with more tokens than a model takes: cut to their highest ranked genes, and counted."""

import pickle

import numpy as np
import pytest

from geneformer_jax.cells.store.shorter_cells import ShorterCells, shorten
from geneformer_jax.cells.tokenization.tokenizer import tokenize_cells
from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS
from geneformer_jax.embedding.api import embed_cells
from geneformer_jax.inference.cells import open_cells, reading_facts, select_cells
from geneformer_jax.training.run import prepare_run
from tests.helpers.configs import toy_config
from tests.helpers.toy import toy_cells, toy_model, toy_vocabulary


@pytest.mark.parametrize("special_tokens", [V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS])
def test_cut_cells_are_those_that_were_tokenised_shorter(special_tokens):
    adata, vocabulary = toy_cells(40), toy_vocabulary(special_tokens)
    whole, short = (tokenize_cells(adata, vocabulary, max_length=n) for n in (2_048, 60))
    cut, everyone = shorten(whole, 60), np.arange(40)
    np.testing.assert_array_equal(cut.lengths, short.lengths)
    for mine, expected in zip(cut.read(everyone), short.read(everyone), strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert cut.obs.equals(whole.obs)
    longer = [len(cell) > 60 for cell in whole.read(everyone)]
    assert cut.is_cut.tolist() == short.is_cut.tolist() == longer
    assert 0 < sum(longer) < 40 and not whole.is_cut.any()


def test_cells_that_fit_stay_as_they_are(toy_store, caplog):
    assert shorten(toy_store, int(toy_store.lengths.max())) is toy_store
    assert caplog.messages == []


def test_how_many_are_cut_is_told(toy_store, caplog):
    with caplog.at_level("INFO", "geneformer_jax"):
        cut = shorten(toy_store, 70)
    longer = (toy_store.lengths > 70).sum()
    assert f"{longer} of 240 cells" in caplog.text and "70 tokens" in caplog.text
    # Workers get the path of the store, and nothing that grows with it.
    assert len(pickle.dumps(cut)) < 1_000
    copy = pickle.loads(pickle.dumps(cut))
    assert isinstance(copy, ShorterCells)
    np.testing.assert_array_equal(copy.lengths, np.minimum(toy_store.lengths, 70))
    assert (copy.max_length, len(copy), copy.folder) == (70, 240, toy_store.folder)


def test_the_provenance_counts_those_of_the_chosen_cells(toy_store, caplog):
    model, counts = toy_model(positions=64), toy_cells()
    expressed = np.asarray((counts.X > 0).sum(axis=1)).ravel()
    with caplog.at_level("INFO", "geneformer_jax"):
        opened = [open_cells(cells, model) for cells in (toy_store, counts)]
    assert caplog.text.count(f"{(expressed > 64).sum()} of 240 cells have more than the 64") == 2
    for cells in opened:
        chosen = select_cells(select_cells(cells, {"kind": "a"}), max_cells=20)
        longer = expressed[counts.obs_names.isin(chosen.obs.index)] > 64
        assert reading_facts(chosen)["cells_cut"] == longer.sum() > 0
    assert reading_facts(toy_store) == {"cells_cut": 0}


def test_a_model_sees_of_a_store_what_it_sees_of_the_counts(toy_store):
    """Counts are tokenised for the model, a store was tokenised for any."""
    model = toy_model(positions=64)
    of_store, of_counts = embed_cells(model, toy_store), embed_cells(model, toy_cells())
    assert toy_store.lengths.max() > 64
    np.testing.assert_allclose(of_store.obsm["X_geneformer"], of_counts.obsm["X_geneformer"])


def test_pretraining_says_how_many_cells_it_cuts(toy_store):
    run = prepare_run(toy_config(toy_store, **{"model.positions": 64}), toy_store)
    longer = (toy_store.lengths > 64).sum()
    assert any(f"{longer} of 240 cells" in line for line in run.summary())
    assert run.shape.buckets[-1] == 64
    batch = next(iter(run.batches))
    assert batch.lengths_B.max() == 64
