"""Embeddings: the original's own, a slow obvious version, and what they must not depend on."""

import dataclasses

import anndata as ad
import jax
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from geneformer_jax.cells.tokenization.tokenizer import tokenize_cells
from geneformer_jax.cells.tokenization.vocabulary import (
    V1_SPECIAL_TOKENS,
    V2_SPECIAL_TOKENS,
    GeneVocabulary,
)
from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.api import embed_cells
from geneformer_jax.embedding.embedder import KEY, Embedder
from geneformer_jax.embedding.pooling import take_states
from geneformer_jax.inference.cells import select_cells
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from geneformer_jax.model.pretrained import PretrainedModel
from tests.helpers.bert_weights import bert_weights
from tests.helpers.toy import toy_model, toy_vocabulary

GENES = 60


def model_of(special_tokens=V2_SPECIAL_TOKENS, positions: int = 64) -> PretrainedModel:
    return toy_model(
        special_tokens=special_tokens,
        genes=GENES,
        layers=3,
        positions=positions,
        initializer_range=0.3,
    )


@pytest.fixture(scope="module")
def v2_model() -> PretrainedModel:
    return model_of()


@pytest.fixture(scope="module")
def v1_model() -> PretrainedModel:
    return model_of(V1_SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    """40 cells whose numbers of genes go up and down; cell 7 has no gene of the vocabulary."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, size=(40, GENES + 1)) * (
        rng.random((40, GENES + 1)) < rng.random((40, 1))
    )
    counts[:, 3] += 1
    counts[7, :GENES] = 0
    counts[7, GENES] = 5
    ids = [*toy_vocabulary(genes=GENES).gene_ids, "unheard_of"]
    obs = pd.DataFrame(
        {"kind": pd.Categorical(rng.choice(["a", "b"], 40)), "number": np.arange(40)},
        index=[f"cell {number}" for number in range(40)],
    )
    return ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=ids)
    )


def normalise(x: np.ndarray, norm: dict) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return scaled * np.asarray(norm["scale"]) + np.asarray(norm["bias"])


def hidden_of(model: PretrainedModel, tokens: np.ndarray, layers: int) -> np.ndarray:
    """Post-norm BERT in float64 numpy, for one cell, nothing padded; returns [T, D]."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    tables, blocks = params["embeddings"], params["blocks"]
    x = tables["word"]["embedding"][tokens]
    x = x + tables["position"]["embedding"][: len(tokens)] + tables["token_type"]["embedding"][0]
    x = normalise(x, tables["norm"])
    for layer in range(layers):
        at = jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks)
        query, key, value = (
            np.einsum("td,dnh->nth", x, at[name]["kernel"]) + at[name]["bias"][:, None]
            for name in ("query", "key", "value")
        )
        scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]))
        attended = scores / scores.sum(axis=-1, keepdims=True) @ value
        out = at["attention_output"]
        attended = np.einsum("nth,nhd->td", attended, out["kernel"]) + out["bias"]
        x = normalise(x + attended, at["attention_norm"])
        wide = np.maximum(x @ at["up"]["kernel"] + at["up"]["bias"], 0)
        x = normalise(x + wide @ at["down"]["kernel"] + at["down"]["bias"], at["output_norm"])
    return x


def slow_embeddings(model, cells, mode, layer) -> np.ndarray:
    """One cell at a time."""
    rows = []
    for (tokens,) in (cells.read([number]) for number in range(len(cells.lengths))):
        hidden = hidden_of(model, tokens, model.config.layers + layer)
        is_gene = tokens >= model.vocabulary.first_gene_token
        rows.append(hidden[0] if mode == "cls" else hidden[is_gene].mean(axis=0))
    return np.stack(rows)


@pytest.mark.parametrize(
    ("which", "mode", "layer"),
    [
        ("v2_model", "cell", -1),
        ("v2_model", "cell", 0),
        ("v2_model", "cls", -1),
        ("v1_model", "cell", -3),
    ],
)
def test_batches_give_what_one_cell_at_a_time_gives(request, adata, which, mode, layer):
    model = request.getfixturevalue(which)
    cells = tokenize_cells(adata, model.vocabulary)
    embedded = embed_cells(model, cells, mode=mode, hidden_layer=layer)
    expected = slow_embeddings(model, cells, mode, layer)
    np.testing.assert_allclose(embedded.obsm[KEY], expected, atol=2e-5)


def test_genes_are_averaged_over_the_cells_that_have_them(v2_model, adata):
    cells = tokenize_cells(adata, v2_model.vocabulary)
    vectors: dict[str, list[np.ndarray]] = {}
    for (tokens,) in (cells.read([number]) for number in range(len(cells))):
        for token, vector in zip(tokens, hidden_of(v2_model, tokens, layers=2), strict=True):
            vectors.setdefault(v2_model.vocabulary.gene_id_of(int(token)), []).append(vector)
    embedded = embed_cells(v2_model, cells, mode="gene")
    assert set(embedded.obs_names) == set(vectors)
    for name, vector, n_cells in zip(
        embedded.obs_names, embedded.obsm[KEY], embedded.obs["n_cells"], strict=True
    ):
        assert n_cells == len(vectors[name])
        mean = np.mean(vectors[name], axis=0)
        np.testing.assert_allclose(vector, mean, atol=2e-5)
        apart = np.linalg.norm(np.array(vectors[name]) - mean, axis=1)
        spread = embedded.obs.loc[name, "spread"]
        np.testing.assert_allclose(spread, np.sqrt(np.mean(apart**2)), atol=1e-4)


def test_cells_come_back_in_input_order_with_their_columns(v2_model, adata):
    embedded = embed_cells(v2_model, adata)
    kept = np.delete(np.arange(40), 7)
    assert list(embedded.obs_names) == [f"cell {number}" for number in kept]
    np.testing.assert_array_equal(embedded.obs["number"], kept)
    assert list(embedded.obs["kind"]) == list(adata.obs["kind"].iloc[kept])
    assert embedded.obsm[KEY].dtype == np.float32
    assert sum(embedded.uns["geneformer"]["left_out"].values()) == 1
    # A cell keeps its vector whatever stands before it.
    turned = embed_cells(v2_model, adata[::-1].copy())
    np.testing.assert_allclose(turned.obsm[KEY][::-1], embedded.obsm[KEY], atol=2e-6)


def test_file_object_and_tokens_give_the_same(v2_model, adata, tmp_path):
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    expected = embed_cells(v2_model, adata).obsm[KEY]
    np.testing.assert_array_equal(embed_cells(v2_model, path).obsm[KEY], expected)
    cells = tokenize_cells(adata, v2_model.vocabulary)
    np.testing.assert_array_equal(embed_cells(v2_model, cells).obsm[KEY], expected)


def test_the_input_is_left_as_it_was(v2_model, adata):
    before = adata.copy()
    embed_cells(v2_model, adata)
    assert KEY not in adata.obsm
    assert (adata.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_output_can_be_written_and_read(v2_model, adata, tmp_path):
    embedded = embed_cells(v2_model, adata)
    embedded.write_h5ad(tmp_path / "embedded.h5ad")
    again = ad.read_h5ad(tmp_path / "embedded.h5ad")
    np.testing.assert_array_equal(again.obsm[KEY], embedded.obsm[KEY])
    assert again.uns["geneformer"]["vocabulary_hash"] == v2_model.vocabulary.hash


def test_once_warm_nothing_compiles_and_nothing_moves_unasked(v2_model, adata):
    cells = tokenize_cells(adata, v2_model.vocabulary)
    # Several batches in each bucket.
    embedder = Embedder(v2_model, cells, devices=jax.devices()[:2], tokens_per_device=256)
    with embedder.progress() as progress:
        expected = embedder.rows(0, len(cells), progress)
        compiled = take_states._cache_size()
        with jax.transfer_guard("disallow"):
            again = embedder.rows(0, len(cells), progress)
    assert take_states._cache_size() == compiled
    np.testing.assert_array_equal(again, expected)


def test_padding_and_work_are_counted(v2_model, adata):
    cells = tokenize_cells(adata, v2_model.vocabulary)
    embedder = Embedder(v2_model, cells, devices=jax.devices()[:2], tokens_per_device=256)
    with embedder.progress() as progress:
        embedder.rows(0, len(cells), progress)
    counted = embedder.throughput
    assert counted.done == len(cells) == 39
    assert counted.tokens == cells.lengths.sum()
    # 64 tokens, 8 rows a batch: 39 cells take 5 batches.
    assert counted.padded == 5 * 8 * 64
    assert f"padding {1 - counted.tokens / 2560:.1%}" in counted.describe()


@pytest.mark.parametrize("mode", ["cell", "gene"])
def test_eight_devices_give_what_one_gives(v2_model, adata, mode):
    cells = tokenize_cells(adata, v2_model.vocabulary)
    one = embed_cells(v2_model, cells, mode=mode, devices=jax.devices()[:1])
    eight = embed_cells(v2_model, cells, mode=mode, devices=jax.devices())
    assert len(jax.devices()) == 8
    pd.testing.assert_frame_equal(one.obs, eight.obs, rtol=1e-5)
    np.testing.assert_allclose(eight.obsm[KEY], one.obsm[KEY], atol=2e-6)


def test_several_layers_are_what_each_is_alone(v2_model, adata):
    cells = tokenize_cells(adata, v2_model.vocabulary)
    both = embed_cells(v2_model, cells, hidden_layer=[0, -3])
    assert set(both.obsm) == {f"{KEY}_layer0", f"{KEY}_layer-3"}
    for layer in (0, -3):
        alone = embed_cells(v2_model, cells, hidden_layer=layer).obsm[KEY]
        np.testing.assert_allclose(both.obsm[f"{KEY}_layer{layer}"], alone, atol=2e-6)


def test_every_occurrence_is_a_row(v2_model, adata):
    cells = tokenize_cells(adata[:12].copy(), v2_model.vocabulary)
    embedded = embed_cells(v2_model, cells, mode="occurrence")
    assert embedded.n_obs == cells.lengths.sum()
    for number, cell_id in enumerate(cells.cell_ids):
        (tokens,) = cells.read([number])
        rows = embedded[(embedded.obs["cell_id"] == cell_id).to_numpy()]
        np.testing.assert_array_equal(rows.obs["rank"], np.arange(len(tokens)))
        ids = [v2_model.vocabulary.gene_id_of(int(token)) for token in tokens]
        assert list(rows.obs["gene_id"]) == ids
        expected = hidden_of(v2_model, tokens, layers=2)
        np.testing.assert_allclose(rows.obsm[KEY], expected, atol=2e-5)


def test_filtered_and_drawn_cells_keep_order_and_vectors(v2_model, adata):
    cells = tokenize_cells(adata, v2_model.vocabulary)
    every = embed_cells(v2_model, cells)
    some = embed_cells(v2_model, cells, filters={"kind": ["a"]}, max_cells=9, seed=3)
    of_kind = np.flatnonzero(every.obs["kind"] == "a")
    drawn = np.sort(of_kind[np.random.default_rng(3).permutation(len(of_kind))[:9]])
    assert list(some.obs_names) == list(every.obs_names[drawn])
    np.testing.assert_allclose(some.obsm[KEY], every.obsm[KEY][drawn], atol=2e-6)
    left_out = some.uns["geneformer"]["left_out"]
    assert left_out["filtered out"] == 39 - len(of_kind)
    assert left_out["not drawn"] == len(of_kind) - 9
    assert sum(left_out.values()) == 40 - 9


def test_layers_above_the_asked_one_are_not_computed(v2_model, adata):
    broken = jax.tree.map(np.array, v2_model.params)
    for leaf in jax.tree.leaves(broken["blocks"]):
        leaf[2] = np.nan
    model = dataclasses.replace(v2_model, params=broken)
    assert np.isfinite(embed_cells(model, adata, hidden_layer=-1).obsm[KEY]).all()
    with pytest.raises(InputError, match="of layer 3 are NaN"):
        embed_cells(model, adata, hidden_layer=0)


def test_wrong_requests_end_with_one_line(v1_model, v2_model, adata):
    def message(model, cells, **options) -> str:
        with pytest.raises(InputError) as caught:
            embed_cells(model, cells, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "did you mean" in message(v2_model, adata, mode="cel")
    assert "`hidden_layer` -4 is not in this model of 3 layers" in message(
        v2_model, adata, hidden_layer=-4
    )
    assert "`hidden_layer` 1 " in message(v2_model, adata, hidden_layer=1)
    assert "name each layer once" in message(v2_model, adata, hidden_layer=[0, 0])
    assert "name each layer once" in message(v2_model, adata, hidden_layer=[])
    assert 'did you mean "kind"' in message(v2_model, adata, filters={"kin": ["a"]})
    assert 'has no value "c"; it has a, b' in message(v2_model, adata, filters={"kind": ["c"]})
    no_cell = {"kind": ["a"], "number": ["7"]}
    assert 'column "number" has no value' in message(v2_model, adata, filters=no_cell)
    assert "holds numbers" in message(v2_model, adata, filters={"number": ["few"]})
    assert "at least 1" in message(v2_model, adata, max_cells=0)
    assert 'use mode "cell"' in message(v1_model, adata, mode="cls")
    bare = dataclasses.replace(v2_model, vocabulary=None)
    assert "`vocabulary`" in message(bare, adata)
    smaller = dataclasses.replace(v2_model, vocabulary=toy_vocabulary(V2_SPECIAL_TOKENS, 50))
    assert "54 tokens but the model of toy 64" in message(smaller, adata)
    other_cells = tokenize_cells(adata, v1_model.vocabulary)
    assert "another gene" in message(v2_model, other_cells)


@dataclasses.dataclass
class ReferenceCells:
    """The original's own tokens, as something that can be embedded."""

    tokens: list[np.ndarray]
    obs: pd.DataFrame
    vocabulary: GeneVocabulary

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in self.tokens], np.int32)

    def read(self, indices) -> list[np.ndarray]:
        return [self.tokens[index] for index in indices]


def original(name, data_dir, reference_dir):
    """(model, cells in input order, embeddings) of the original package."""
    dictionaries = {"v1": "v1_gc30M", "v2": "v2_gc104M"}[name]
    vocabulary = read_original_vocabulary(data_dir / "dictionaries" / dictionaries)
    config, params = bert_weights(reference_dir / "models" / f"{name}_tiny")
    model = PretrainedModel(config, params, vocabulary, source=name, step=0)
    expected = np.load(reference_dir / "embeddings.npz", allow_pickle=False)
    table = pd.read_parquet(reference_dir / f"tokens_{name}.parquet").set_index("cell_id")
    table = table.loc[expected["input_order_cell_id"]]
    cells = ReferenceCells(list(table["input_ids"]), table[["label"]], vocabulary)
    return model, cells, expected


@pytest.mark.slow
@pytest.mark.reference_data
@pytest.mark.parametrize(("name", "mode"), [("v1", "cell"), ("v2", "cell"), ("v2", "cls")])
def test_cells_are_embedded_as_by_the_original(data_dir, reference_dir, name, mode):
    model, cells, expected = original(name, data_dir, reference_dir)
    embedded = embed_cells(model, cells, mode=mode, hidden_layer=[-1, 0], devices=jax.devices()[:1])
    assert list(embedded.obs_names) == list(expected["input_order_cell_id"])
    for layer, ending in ((-1, "m1"), (0, "0")):
        key = f"{name}_{mode}_layer{ending}"
        theirs = pd.DataFrame(expected[key], index=expected[f"{key}_cell_id"])
        ours = embedded.obsm[f"{KEY}_layer{layer}"]
        np.testing.assert_allclose(ours, theirs.loc[embedded.obs_names], rtol=0, atol=5e-5)


@pytest.mark.slow
@pytest.mark.reference_data
def test_genes_are_embedded_as_by_the_original(data_dir, reference_dir):
    model, cells, expected = original("v2", data_dir, reference_dir)
    layers = {layer: f"v2_gene_layer{ending}" for layer, ending in ((-1, "m1"), (0, "0"))}
    embedded = embed_cells(model, cells, mode="gene", hidden_layer=list(layers))
    for layer, key in layers.items():
        name = f"{KEY}_layer{layer}"
        ids = expected[f"{key}_all_ensembl_id"]
        assert set(embedded.obs_names) == set(ids)
        norms = np.linalg.norm(embedded[ids].obsm[name], axis=1)
        np.testing.assert_allclose(norms, expected[f"{key}_all_norm"], rtol=1e-4)
        sample = embedded[expected[f"{key}_ensembl_id"]].obsm[name]
        np.testing.assert_allclose(sample, expected[key], rtol=0, atol=5e-5)


@pytest.mark.reference_data
def test_the_default_seed_draws_the_cells_that_the_original_keeps(data_dir, reference_dir):
    _, cells, expected = original("v1", data_dir, reference_dir)
    kept = select_cells(cells, max_cells=15)
    assert set(kept.obs.index) == set(expected["v1_max_ncells_15_cell_id"])
    # They stay in input order, where the original sorts them by length.
    places = pd.Index(expected["input_order_cell_id"]).get_indexer(kept.obs.index)
    assert (np.diff(places) > 0).all()


@pytest.mark.parametrize("layer", [0, -1, False])
def test_a_hidden_state_is_not_asked_for_by_layer(v2_model, adata, layer):
    with pytest.raises(InputError, match=r"`layer` is no argument.* `hidden_layer`"):
        embed_cells(v2_model, adata, layer=layer)
    with pytest.raises(InputError, match=f"`counts_layer` is {layer}"):
        embed_cells(v2_model, adata, counts_layer=layer)


def test_embeddings_are_added_beside_counts_and_cells_left_out_are_nan(v2_model, adata, caplog):
    adata = adata[np.r_[5:40, 0:5]].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.5
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2))
    before = adata.copy()
    expected = embed_cells(v2_model, adata, counts_layer="counts", max_cells=9)
    given = {"counts_layer": "counts", "max_cells": 9, "inplace": True}
    assert embed_cells(v2_model, adata, **given) is None
    assert f"{adata.n_obs - 9} of {adata.n_obs} cells are left out" in caplog.text
    embedded = np.isfinite(adata.obsm[KEY]).all(axis=1)
    assert embedded.sum() == 9
    assert list(adata.obs_names[embedded]) == list(expected.obs_names)
    np.testing.assert_array_equal(adata.obsm[KEY][embedded], expected.obsm[KEY])
    assert np.isnan(adata.obsm[KEY][~embedded]).all()
    assert sum(adata.uns["geneformer"]["left_out"].values()) == adata.n_obs - 9
    embed_cells(v2_model, adata, **given, hidden_layer=0, key_added="last")
    assert adata.uns["last"]["hidden_layer"] == [0]
    assert adata.uns["geneformer"]["hidden_layer"] == [-1]
    assert not np.array_equal(adata.obsm["last"][embedded], adata.obsm[KEY][embedded])
    # All else is as it was.
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert set(adata.obsm) == {"X_umap", KEY, "last"}


def test_all_cells_keep_their_rows_on_request(v2_model, adata, tmp_path):
    empty = adata.copy()
    counts = empty.X.toarray()
    counts[[0, 4], :GENES] = 0
    empty.X = sparse.csr_matrix(counts)
    given = {"filters": {"kind": "a"}}
    few = embed_cells(v2_model, empty, **given)
    every = embed_cells(v2_model, empty, all_cells=True, **given)
    assert every.obs_names.tolist() == empty.obs_names.tolist() and few.n_obs < every.n_obs
    assert list(every.obs) == list(empty.obs)
    embedded = every.obs_names.isin(few.obs_names)
    assert not embedded[[0, 4]].any()
    np.testing.assert_array_equal(every.obsm[KEY][embedded], few.obsm[KEY])
    assert np.isnan(every.obsm[KEY][~embedded]).all()
    empty.obsm["beside"] = every.obsm[KEY]
    # Of tokenised cells the rows are those of the counts too.
    tokens = tokenize_cells(empty, v2_model.vocabulary, max_length=64)
    again = embed_cells(v2_model, tokens, all_cells=True, **given)
    np.testing.assert_array_equal(again.obsm[KEY], every.obsm[KEY])
    with pytest.raises(InputError, match='keeps a row for every cell, but `mode` "gene"'):
        embed_cells(v2_model, adata, mode="gene", all_cells=True)


def test_only_cells_of_an_anndata_take_embeddings_in_place(v2_model, adata):
    cells = tokenize_cells(adata, v2_model.vocabulary)
    with pytest.raises(InputError, match=r"TokenizedCells.*leave inplace out"):
        embed_cells(v2_model, cells, inplace=True)
    with pytest.raises(InputError, match=r'mode "gene".*leave inplace out'):
        embed_cells(v2_model, adata, mode="gene", inplace=True)
    with pytest.raises(InputError, match=r"`counts_layer`.*leave it out"):
        embed_cells(v2_model, cells, counts_layer="counts")
