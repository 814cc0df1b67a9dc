"""What `gf.tl` writes is what the functions return, in the rows of the cells it is of."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import geneformer_jax as gf
from geneformer_jax.model.heads import CELLS, HeadConfig
from tests.helpers.toy import GENES, toy_cells, toy_model
from tests.scverse.conftest import EMPTY

PROJECT = Path(__file__).resolve().parents[2]
FILLED = [row for row in range(24) if row != EMPTY]


@pytest.fixture(scope="module")
def embedded(model):
    """What the cells of `adata` are, cell by cell; NaN of the empty one."""
    cells = toy_cells(24)
    rows = gf.embed_cells(model, cells).obsm["X_geneformer"]
    rows[EMPTY] = np.nan
    return rows


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_embeddings_are_written_in_place(adata, model, embedded, caplog):
    assert gf.tl.embed(adata, model) is None
    assert_same(adata.obsm["X_geneformer"], embedded)
    assert adata.uns["geneformer"]["left_out"] == {"no gene of the vocabulary": 1}
    assert '1 of 24 cells are left out and have NaN in .obsm["X_geneformer"]' in caplog.text


def test_a_copy_leaves_the_cells_as_they_were(adata, model, embedded):
    copy = gf.tl.embed(adata, model, key_added="mine", copy=True)
    assert_same(copy.obsm["mine"], embedded)
    assert (list(adata.obsm), list(adata.uns)) == ([], [])


@pytest.mark.parametrize(
    "which",
    [
        {},
        {"layer": "counts"},
        {"use_raw": True},
        {"layer": "counts", "gene_column": "gene_ids"},
    ],
)
def test_counts_and_ids_are_found_where_scanpy_users_keep_them(normalised, model, embedded, which):
    """Ids in a column of var that is a category; X is normalised."""
    gf.tl.embed(normalised, model, **which)
    assert_same(normalised.obsm["X_geneformer"], embedded)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_a_view_becomes_an_anndata_of_its_own(adata, model, embedded, caplog):
    adata.obs_names = ["cell"] * adata.n_obs
    view = adata[np.arange(24) % 2 == 1]
    gf.tl.embed(view, model)
    assert_same(view.obsm["X_geneformer"], embedded[1::2])
    assert "is a view" in caplog.text
    assert list(adata.obsm) == []


def test_a_backed_anndata_is_read_and_written(adata, model, embedded, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    gf.tl.embed(backed, model)
    assert_same(backed.obsm["X_geneformer"], embedded)
    for wrong, given in ((backed, {"copy": True}), (backed[:3], {})):
        with pytest.raises(gf.InputError, match="to_memory"):
            gf.tl.embed(wrong, model, **given)
    backed.file.close()


def test_tokens_are_written_in_place(normalised, model):
    tokens = gf.tokenize_cells(toy_cells(24), model.vocabulary)
    assert gf.pp.tokenize(normalised, model, layer="counts") is None
    found = normalised.obsm["geneformer_tokens"]
    for row, expected in enumerate(tokens.read(range(24))):
        cell = found[row].toarray()[0]
        expected = expected if row != EMPTY else []
        np.testing.assert_array_equal(cell[: len(expected)], expected)
        assert not cell[len(expected) :].any()
    told = normalised.uns["geneformer_tokens"]
    assert told["left_out"] == {"no gene of the vocabulary": 1}
    assert told["params"]["max_length"] == 256 == model.config.positions
    of_vocabulary = gf.pp.tokenize(normalised, model.vocabulary, max_length=9, copy=True)
    assert of_vocabulary.obsm["geneformer_tokens"].shape == (24, 9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layer": "count"}, ('no layer "count"', 'did you mean "counts"')),
        ({"layer": 3}, ("`layer` is 3", "name of a layer")),
        ({"layer": "counts", "use_raw": True}, ("`use_raw` is True", "give one of them")),
        ({"use_raw": "yes"}, ("`use_raw` is 'yes'", "True, False or None")),
        ({"use_raw": False}, ("log-transformed", "by `layer` or `use_raw`")),
        ({"counts_layer": "counts"}, ("`counts_layer`", "called `layer`")),
        ({"gene_colum": "gene_ids"}, ("`gene_colum`", 'did you mean "gene_column"')),
        ({"gene_column": "symbol"}, ("symbol", "gene_ids")),
        ({"copy": "yes"}, ("`copy` is 'yes'",)),
        ({"key_added": 3}, ("`key_added` is 3",)),
        ({"key_added": ""}, ("`key_added` is", "not empty")),
        ({"key_added": "X/mine"}, ("`key_added` is", "without /")),
    ],
)
@pytest.mark.parametrize("function", [gf.tl.embed, gf.pp.tokenize])
def test_wrong_arguments_end_in_one_line(function, given, words, normalised, model):
    with pytest.raises(gf.InputError) as told:
        function(normalised, model, **given)
    message = str(told.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []
    assert (list(normalised.obsm), list(normalised.uns)) == ([], [])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, m: gf.tl.embed("cells.h5ad", m), ("`adata` is 'cells.h5ad'", "read_h5ad")),
        (lambda a, m: gf.tl.embed(m, a), ("`adata` is a PretrainedModel",)),
        (lambda a, m: gf.tl.embed(a, "run"), ("`model` is 'run'", "load_model")),
        (lambda a, m: gf.tl.embed(a, m, mode="gene"), ("gf.embed_cells", "genes")),
        (lambda a, m: gf.tl.embed(a, m, use_raw=True), ("no .raw",)),
        (lambda a, m: gf.pp.tokenize(a, "vocabulary"), ("`vocabulary` is 'vocabulary'",)),
        (lambda a, m: gf.tl.umap(a), ('no "X_geneformer"', "gf.tl.embed")),
        (lambda a, m: gf.tl.perturb(a, m, gene=["x"]), ("`gene` is no argument", '"genes"')),
        (lambda a, m: gf.tl.perturb(a, m, gene_shifts="full"), ("`gene_shifts` is no argument",)),
        (lambda a, m: gf.tl.perturb(a, m, combinations=2), ("`combinations` is 2",)),
        (lambda a, m: gf.tl.perturb(twice(a), m), ('"cell" occurs twice', "obs_names_make_unique")),
        (lambda a, m: gf.tl.predict(a, m), ("no classification head",)),
        (lambda a, m: gf.tl.transfer(a, m, a, "label"), ('no obs column "label"',)),
        (lambda a, m: gf.tl.attend(a, m, ["none"]), ("none",)),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(call, words, adata, model):
    with pytest.raises(gf.InputError) as told:
        call(adata, model)
    message = str(told.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def twice(adata):
    adata.obs_names = ["cell"] * adata.n_obs
    return adata


@pytest.mark.parametrize("module", [gf.tl, gf.pp, gf.pl])
def test_completion_offers_functions_alone(module):
    assert sorted(dir(module)) == sorted(module.__all__)


def test_the_functions_are_there_before_anything_large_is_imported():
    code = (
        "import sys, geneformer_jax as gf; gf.tl.embed, gf.pp.tokenize, gf.pl.umap;"
        "print([name for name in ('absl', 'anndata', 'jax', 'numpy', 'pandas', 'matplotlib')"
        " if name in sys.modules])"
    )
    given = [sys.executable, "-c", code]
    done = subprocess.run(given, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_a_kernel_needs_no_flags():
    """Its command line is another program's."""
    code = (
        "import sys; sys.argv = ['ipykernel_launcher', '-f', 'kernel.json', '--no_such_flag'];"
        "import geneformer_jax as gf; from tests.helpers.toy import toy_cells, toy_model;"
        "from absl import flags;"
        "adata, model = toy_cells(9), toy_model();"
        "gf.tl.embed(adata, model); gf.tl.perturb(adata, model, genes=list(adata.var_names[:2]));"
        "ours = [name for name in flags.FLAGS.flags_by_module_dict() if 'geneformer' in name];"
        "print(ours, flags.FLAGS.is_parsed())"
    )
    given = [sys.executable, "-c", code]
    done = subprocess.run(given, cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout == "[] False\n", done.stderr


@pytest.mark.slow
def test_shifts_of_named_genes(adata, model):
    genes = [f"ENSG{n:011d}" for n in (0, 3, 7)]
    gf.tl.perturb(adata, model, genes=genes)
    expected = gf.perturb_cells(model, adata, genes=genes)
    rows = expected[expected["measure"] == "mean_gene_cosine"]
    table = adata.obsm["perturbation"]
    assert sorted(table) == genes
    assert table.notna().sum().sum() == len(rows)
    for row in rows.itertuples():
        assert table.loc[row.cell, row.perturbed] == pytest.approx(row.value, abs=1e-6)
    statistics = adata.uns["perturbation"]["statistics"].set_index("Ensembl_ID")
    means = rows.groupby("perturbed", observed=True)["value"].mean()
    for gene in genes:
        assert statistics.loc[gene, "Cosine_sim_mean"] == pytest.approx(means[gene], abs=1e-6)
    assert adata.uns["perturbation"]["left_out"]["no gene of the vocabulary"] == 1


@pytest.mark.slow
def test_genes_may_be_an_index_and_columns_have_slashes(adata, model, tmp_path):
    adata.obs["kind/of"] = adata.obs["kind"]
    genes = adata.var_names[:3]
    gf.tl.perturb(adata, model, genes=genes, filters={"kind/of": ["a", "b"]})
    listed = gf.tl.perturb(adata, model, genes=list(genes), copy=True)
    pd.testing.assert_frame_equal(adata.obsm["perturbation"], listed.obsm["perturbation"])
    params = adata.uns["perturbation"]["params"]
    assert params["genes"] == list(genes)
    del adata.obs["kind/of"]  # of which AnnData warns
    adata.write_h5ad(tmp_path / "results.h5ad")
    back = ad.read_h5ad(tmp_path / "results.h5ad").uns["perturbation"]["params"]
    assert (back["filters"], list(back["genes"])) == (params["filters"], list(genes))


@pytest.mark.slow
def test_shifts_towards_a_state_are_those_of_the_folder(adata, model, tmp_path):
    states = {"column": "kind", "start": "a", "goal": "b"}
    gf.tl.perturb(adata, model, states=states, max_cells=6, output=tmp_path / "run")
    (table,) = (path for path in gf.perturbation_statistics(tmp_path / "run", "goal_state_shift")
                if path.name == "goal_state_shift.parquet")  # fmt: skip
    result = adata.uns["perturbation"]
    expected = pd.read_parquet(table)
    pd.testing.assert_frame_equal(
        result["statistics"].reset_index(drop=True), expected, check_dtype=False
    )
    assert "differential_expression" in set(result["controls"]["control"])
    assert "genes of like rank" in result["verdict"]
    assert "perturbation" not in adata.obsm


@pytest.mark.slow
def test_results_survive_being_written(adata, model, tmp_path):
    genes = [f"ENSG{n:011d}" for n in range(9)]
    gf.pp.tokenize(adata, model)
    gf.tl.embed(adata, model, hidden_layer=[0, -1])
    gf.tl.perturb(adata, model, genes=[*genes, "absent"], states={"column": "kind", "goal": "b"})
    gf.tl.attend(adata, model, {"mine": genes}, groupby="kind", pairs=genes[:3], min_cells=2)
    gf.tl.transfer(adata, model, toy_cells(60, seed=2), "kind")
    gf.tl.predict(adata, toy_model(head=HeadConfig(CELLS, ("a", "b"), 0.0)))
    assert adata.uns["perturbation"]["genes_left_out"]["gene"].tolist() == ["absent"]
    adata.write_h5ad(tmp_path / "results.h5ad")
    back = ad.read_h5ad(tmp_path / "results.h5ad")
    assert_equal(dict(adata.uns), dict(back.uns))
    assert_equal(dict(adata.obsm), dict(back.obsm))
    pd.testing.assert_frame_equal(back.obs, adata.obs, check_dtype=False)


def assert_equal(given, found):
    assert given.keys() == found.keys()
    for name, value in given.items():
        if hasattr(value, "iloc"):
            pd.testing.assert_frame_equal(value, found[name], check_dtype=False)
        elif hasattr(value, "keys"):
            assert_equal(value, found[name])
        elif hasattr(value, "toarray"):
            np.testing.assert_array_equal(value.toarray(), found[name].toarray())
        else:
            np.testing.assert_array_equal(value, found[name])


@pytest.mark.slow
def test_attention_is_what_the_function_returns(adata, model):
    genes = [f"ENSG{n:011d}" for n in range(9)]
    gf.tl.attend(adata, model, {"mine": genes}, key_added="heads", min_cells=2)
    found = gf.attend_cells(model, adata, {"mine": genes}, min_cells=2)
    result = adata.uns["heads"]
    assert set(result) == {"params", "heads", "ranks", "layers", "statements", "groups"}
    pd.testing.assert_frame_equal(
        result["ranks"].reset_index(drop=True), found.ranks, check_dtype=False
    )


@pytest.mark.slow
def test_predictions_stand_beside_their_cells(adata, model):
    head = toy_model(head=HeadConfig(CELLS, ("a", "b"), 0.0))
    gf.tl.predict(adata, head)
    expected = gf.predict_cells(head, toy_cells(24)).obs.iloc[FILLED]
    assert adata.obs["predicted_label"].isna().tolist() == [row == EMPTY for row in range(24)]
    filled = adata.obs.iloc[FILLED]
    assert (filled["predicted_label"].astype(str) == expected["predicted_label"].astype(str)).all()
    assert_same(filled["probability_label"], expected["probability_label"])
    assert list(adata.uns["classes_label"]) == ["a", "b"]


@pytest.mark.slow
def test_labels_stand_beside_their_cells(adata, model):
    reference = toy_cells(60, seed=2)
    gf.tl.transfer(adata, model, reference, "kind")
    expected = gf.transfer_labels(model, reference, adata, "kind")
    assert expected.n_obs == 23
    filled = adata.obs.loc[expected.obs_names]
    for name in ("transferred_label", "trusted", "distance_to_reference"):
        np.testing.assert_array_equal(filled[name], expected.obs[name])
    empty = adata.obs.iloc[EMPTY]
    assert pd.isna(empty["transferred_label"]) and not empty["trusted"]
    assert np.isnan(adata.obsm["X_geneformer"][EMPTY]).all()
    assert len(reference.obs.columns) == 1 and GENES == reference.n_vars
