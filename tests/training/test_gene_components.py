"""Embeddings of genes that begin as components of their ranks."""

from types import SimpleNamespace

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
    _, sizes, components = np.linalg.svd(values, full_matrices=False)
    return components[:count].T * np.sqrt(1 - (sizes[count - 1] / sizes[:count]) ** 2)


def test_genes_begin_at_the_components_of_their_ranks_in_training_cells(toy_store):
    config = config_of(toy_store, **CHANGES)
    cells, _ = split_cells(len(toy_store), config.evaluation.held_out_cells, config.seed)
    table = table_of(start_state(prepare_run(config, toy_store)))
    expected = plain_components(toy_store, cells, table.shape[1])
    # A component's sign is free, and normal noise of 0.02 is added to a root mean square of 0.1.
    signs = np.sign((table * expected).sum(axis=0))
    noise = table - expected * signs * 0.1 / np.sqrt((expected**2).mean())
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
    # Of 5 cells there are 4 components, the last of which is taken for noise.
    assert sizes[:3].min() > 0.05 and sizes[3:] == pytest.approx(0.02, rel=0.25)
    with pytest.raises(InputError, match="2 cells to train on, and components need 3"):
        gene_components(toy_store, np.arange(2), 32, seed=0)


@pytest.mark.parametrize("numbers", [[0, 0, 0, 1, 1], [0, 1, 2]])
def test_cells_that_differ_little_give_numbers(toy_store, numbers):
    table = gene_components(toy_store, np.array(numbers), 32, seed=0)
    assert np.isfinite(table).all() and table.std() < 0.2


def test_cells_that_are_all_alike_are_refused(toy_store):
    with pytest.raises(InputError, match="are all alike; set it to random"):
        gene_components(toy_store, np.full(9, 3), 32, seed=0)


def test_cells_that_share_no_gene_are_refused(toy_store):
    """Any basis is one of their components; which is found depends on rounding."""
    vocabulary = toy_store.vocabulary
    genes = np.arange(vocabulary.first_gene_token, vocabulary.size)
    cells = SimpleNamespace(
        read=lambda numbers: genes[numbers, None], max_length=64, vocabulary=vocabulary
    )
    with pytest.raises(InputError, match="share too few genes: no component stands out; set it"):
        gene_components(cells, np.arange(40), 32, seed=0)


def test_only_where_weights_are_drawn(toy_store, tmp_path):
    with pytest.raises(InputError, match="leave one of them out"):
        config_of(toy_store, **CHANGES, initial=str(tmp_path))
    with pytest.raises(InputError, match="initial_genes"):
        config_of(toy_store, initial_genes="pca")


def test_it_is_part_of_what_a_resumed_run_must_share(toy_store):
    with_components = prepare_run(config_of(toy_store, **CHANGES), toy_store).identity()
    assert with_components["initial_genes"] == "components"
    assert "initial_genes" not in prepare_run(config_of(toy_store), toy_store).identity()
