"""Embeddings of genes that begin as components of their ranks."""

import jax
import numpy as np
import pytest

from geneformer_jax.batches.plan import split_cells
from geneformer_jax.common.errors import InputError
from geneformer_jax.training.initial.gene_components import gene_components
from geneformer_jax.training.initial.start import start_state
from geneformer_jax.training.run import prepare_run
from tests.helpers.pretrain_runs import config_of

CHANGES = {"initial_genes": "components"}


def table_of(state) -> np.ndarray:
    return np.asarray(state.params["embeddings"]["word"]["embedding"])


def plain_components(store, cells, count) -> np.ndarray:
    """By a dense singular value decomposition, [tokens, count]."""
    values = np.zeros((len(cells), store.vocabulary.size))
    for row, tokens in enumerate(store.read(cells)):
        values[row, tokens] = 1 - np.arange(len(tokens)) / store.max_length
    values[:, : store.vocabulary.first_gene_token] = 0
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 0.05)
    return np.linalg.svd(values, full_matrices=False)[2][:count].T


def test_genes_begin_at_the_components_of_their_ranks_in_training_cells(toy_store):
    config = config_of(toy_store, **CHANGES)
    cells, _ = split_cells(len(toy_store), config.evaluation.held_out_cells, config.seed)
    table = table_of(start_state(prepare_run(config, toy_store)))
    expected = plain_components(toy_store, cells, table.shape[1])
    # A component's sign is free, and normal noise of 0.02 is added to a root mean square of 0.1.
    cosines = np.abs((table * expected).sum(axis=0)) / np.linalg.norm(table, axis=0)
    assert cosines.min() > 0.95
    noise = table - expected * np.sign((table * expected).sum(axis=0)) * 0.1 / expected.std()
    assert np.sqrt((noise**2).mean()) == pytest.approx(0.02, rel=0.15)
    specials = table[: toy_store.vocabulary.first_gene_token]
    assert np.abs(specials).max() < 0.1


def test_any_mesh_begins_alike_and_all_else_is_drawn_as_ever(toy_store):
    state = start_state(prepare_run(config_of(toy_store, **CHANGES), toy_store))
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 2}
    other = start_state(prepare_run(config_of(toy_store, **CHANGES, **mesh), toy_store))
    rows = toy_store.vocabulary.size
    np.testing.assert_array_equal(table_of(state)[:rows], table_of(other)[:rows])
    drawn = start_state(prepare_run(config_of(toy_store), toy_store))
    for each in (state, drawn):
        each.params["embeddings"].pop("word")
    jax.tree.map(np.testing.assert_array_equal, state.params, drawn.params)


def test_fewer_cells_than_components_leave_the_rest_to_chance(toy_store):
    table = gene_components(toy_store, np.arange(5), 32, seed=0)
    assert np.linalg.matrix_rank(table) == 32
    sizes = table.std(axis=0)
    assert sizes[:4].min() > 0.05 and sizes[4:] == pytest.approx(0.02, rel=0.25)
    with pytest.raises(InputError, match="2 cells to train on, and components need 3"):
        gene_components(toy_store, np.arange(2), 32, seed=0)


def test_only_where_weights_are_drawn(toy_store, tmp_path):
    with pytest.raises(InputError, match="leave one of them out"):
        config_of(toy_store, **CHANGES, initial=str(tmp_path))
    with pytest.raises(InputError, match="initial_genes"):
        config_of(toy_store, initial_genes="pca")


def test_it_is_part_of_what_a_resumed_run_must_share(toy_store):
    with_components = prepare_run(config_of(toy_store, **CHANGES), toy_store).identity()
    assert with_components["initial_genes"] == "components"
    assert "initial_genes" not in prepare_run(config_of(toy_store), toy_store).identity()
