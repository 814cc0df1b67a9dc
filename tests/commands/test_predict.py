"""The predict command: a fine-tuned model on new cells and genes, and adapters on bases."""

import dataclasses

import anndata as ad
import jax
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.loop import finetune_folds
from geneformer_jax.finetuning.prediction import run
from geneformer_jax.finetuning.prediction.api import predict_cells, predict_genes
from geneformer_jax.finetuning.prediction.predictor import Predictor
from geneformer_jax.inference.cells import ChosenCells
from geneformer_jax.inference.written_anndata import write_anndata
from geneformer_jax.interop.huggingface import read_model
from geneformer_jax.interop.load import load_model
from geneformer_jax.model.heads import HeadTask
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.labelled_tasks import ToyTask, config_of, save_base
from tests.helpers.toy import toy_cells

LORA = {"tuning.lora_rank": 2, "tuning.lora_targets": "query,value,up", "steps": 120}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a made-up pretrained model."""
    folder = tmp_path_factory.mktemp("base") / "run"
    save_base(folder)
    return folder


@pytest.fixture(scope="module")
def cell_fold(toy_store, base, tmp_path_factory):
    """A fold of cells, learned by low-rank factors: (folder, predictions of the test side)."""
    folder = tmp_path_factory.mktemp("cells")
    config = config_of(**LORA, **{"optimizer.learning_rate": 1e-2, "head.pooling": "mean"})
    table = finetune_folds(ToyTask("cell", toy_store), load_model(base), config, folder, folds=[0])
    return folder / "fold_0", table


@pytest.fixture(scope="module")
def gene_fold(toy_store, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("genes")
    config = config_of(steps=20)
    table = finetune_folds(ToyTask("gene", toy_store), load_model(base), config, folder, folds=[0])
    return folder / "fold_0", table


def test_cells_are_predicted_as_in_the_fold(toy_store, cell_fold, tmp_path, monkeypatch, capsys):
    folder, table = cell_fold
    output = tmp_path / "out.h5ad"
    arguments = [f"--checkpoint={folder}", f"--cells={toy_store.folder}", f"--output={output}"]
    status, printed, error = run_command(
        "predict", [*arguments, "--labels_key=kind"], monkeypatch, capsys
    )
    assert status == 0, error
    found = ad.read_h5ad(output)
    assert found.obs_names.tolist() == toy_store.obs.index.tolist()
    assert found.obs["kind"].tolist() == toy_store.obs["kind"].tolist()
    own = found[table["id"].tolist()]
    assert own.obs["predicted_label"].tolist() == table["predicted"].tolist()
    probabilities = own.obsm["probabilities_label"]
    assert list(own.uns["classes_label"]) == ["a", "b"]
    wanted = table[["probability_a", "probability_b"]].to_numpy()
    np.testing.assert_allclose(probabilities, wanted, rtol=0, atol=2e-5)
    right = (found.obs["predicted_label"].astype(str) == found.obs["kind"].astype(str)).mean()
    assert f"{right:.2%} of 240 cells" in printed
    assert right > 0.8
    status, _, error = run_command("predict", arguments, monkeypatch, capsys)
    assert (status, "was not written by this command (" in error) == (1, True)
    again = run_command("predict", [*arguments, "--labels_key=kind"], monkeypatch, capsys)
    assert again[0] == 0 and "nothing to do" in again[1]


@pytest.mark.parametrize("kind", ["cell", "gene"])
def test_shares_and_a_killed_run_come_to_the_same_predictions(
    kind, toy_store, cell_fold, gene_fold, tmp_path, monkeypatch
):
    model = load_model((cell_fold if kind == "cell" else gene_fold)[0])
    monkeypatch.setattr(run, "shareable_size", lambda *_: 50)

    def planned(name: str) -> run.PredictionRun:
        made = run.PredictionRun(tmp_path / name, {"output": name})
        made.prepare(model, toy_store.folder)
        return made

    whole = planned("whole.csv")
    whole.make()
    whole.finish()
    outputs, calls = Predictor.outputs, []

    def dying(self, start, *arguments):
        calls.append(start)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return outputs(self, start, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Predictor, "outputs", dying)
        planned("out.csv").make((1, 2))
    shared = planned("out.csv")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "outputs", lambda *a: (calls.append(a[1]), outputs(*a))[1])
        shared.make((1, 2))
    assert calls[2:] == calls[1:2] + list(range(calls[1] + 50, 240, 50))
    with pytest.raises(InputError, match="run the same command with `shard`=0/2, and"):
        shared.finish()
    shared.make((0, 2))
    shared.finish()
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_predictions_do_not_replace_columns_of_the_cells(cell_fold, tmp_path, monkeypatch, capsys):
    cells, output = toy_cells(), tmp_path / "out.h5ad"
    cells.obs["predicted_label"] = ["a", "b"] * 120
    cells.write_h5ad(tmp_path / "cells.h5ad")
    given = [f"--checkpoint={cell_fold[0]}", f"--cells={tmp_path}/cells.h5ad"]
    given += [f"--output={output}", "--labels_key=predicted_label"]
    status, printed, error = run_command("predict", given, monkeypatch, capsys)
    assert status == 0, error
    found = ad.read_h5ad(output).obs
    assert found["obs:predicted_label"].tolist() == ["a", "b"] * 120
    # What was there is compared, not the predictions with themselves.
    right = (
        found["predicted_label"].astype(str) == found["obs:predicted_label"].astype(str)
    ).mean()
    assert 0.3 < right < 0.7 and f"{right:.2%} of 240 cells" in printed


def test_all_cells_keep_their_rows_on_request(cell_fold):
    adata = toy_cells(12)
    counts = adata.X.toarray()
    counts[5] = 0
    adata.X = sparse.csr_matrix(counts)
    model = load_model(cell_fold[0])
    few, every = predict_cells(model, adata), predict_cells(model, adata, all_cells=True)
    assert every.obs_names.tolist() == adata.obs_names.tolist() and few.n_obs == 11
    assert pd.isna(every.obs["predicted_label"].iloc[5])
    assert np.isnan(every.obsm["probabilities_label"][5]).all()
    there = every[few.obs_names].obs
    assert there["predicted_label"].tolist() == few.obs["predicted_label"].tolist()
    np.testing.assert_array_equal(there["probability_label"], few.obs["probability_label"])


@pytest.mark.filterwarnings("error:Forward slashes")
def test_labels_with_a_slash_are_written(toy_store, cell_fold, tmp_path):
    model = load_model(cell_fold[0])
    head = dataclasses.replace(model.head, labels=("T/NK", "b"), tasks=())
    model = dataclasses.replace(model, head=head)
    predicted = predict_cells(model, toy_store)
    predicted.write_h5ad(tmp_path / "out.h5ad")
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    assert list(found.uns["classes_label"]) == ["T/NK", "b"]
    np.testing.assert_array_equal(
        found.obsm["probabilities_label"].max(axis=1), found.obs["probability_label"]
    )


def test_outputs_with_a_slash_are_read_back(toy_store, cell_fold, tmp_path):
    model = load_model(cell_fold[0])
    tasks = (HeadTask("T/NK", ("a",)), HeadTask("T_NK", ("b",)))
    model = dataclasses.replace(model, head=dataclasses.replace(model.head, tasks=tasks))
    write_anndata(predict_cells(model, toy_store), tmp_path / "out.h5ad")
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    for name, label in (("T_NK_", "a"), ("T_NK", "b")):
        assert set(found.obs[f"predicted_{name}"]) == {label}
        assert list(found.uns[f"classes_{name}"]) == [label]
        assert found.obsm[f"probabilities_{name}"].shape == (240, 1)


def test_raw_counts_are_predicted_and_unknown_labels_are_counted(
    cell_fold, tmp_path, monkeypatch, capsys
):
    cells = toy_cells(30, seed=5)
    cells.obs["kind"] = cells.obs["kind"].astype(object)
    cells.obs.iloc[:4, 0] = "something else"
    cells.write_h5ad(tmp_path / "new.h5ad")
    arguments = [f"--checkpoint={cell_fold[0]}", f"--cells={tmp_path / 'new.h5ad'}"]
    arguments += [f"--output={tmp_path / 'out.csv'}", "--labels_key=kind"]
    status, printed, error = run_command("predict", arguments, monkeypatch, capsys)
    assert status == 0, error
    assert "4 cells have a label that the model does not know" in printed
    assert "of 26 cells are predicted right" in printed
    table = pd.read_csv(tmp_path / "out.csv", index_col=0)
    assert table.index.tolist() == cells.obs_names.tolist()
    assert {"predicted_label", "probability_label_a", "probability_label_b"} <= set(table)


def test_genes_are_predicted_by_their_mean_over_cells(
    toy_store, gene_fold, tmp_path, monkeypatch, capsys
):
    folder, _ = gene_fold
    arguments = [f"--checkpoint={folder}", f"--cells={toy_store.folder}"]
    output = tmp_path / "genes.csv"
    status, _, error = run_command(
        "predict", [*arguments, f"--output={output}"], monkeypatch, capsys
    )
    assert status == 0, error
    table = pd.read_csv(output, index_col="gene")
    cells = toy_store.read(np.arange(240))
    counts = np.bincount(np.concatenate(cells), minlength=152)
    genes = toy_store.vocabulary.gene_ids
    assert table["n_cells"].to_dict() == {
        genes[token - 2]: counts[token] for token in range(2, 152) if counts[token]
    }
    np.testing.assert_allclose(table["probability_a"] + table["probability_b"], 1, atol=1e-5)
    status, _, error = run_command(
        "predict", [*arguments, f"--output={tmp_path / 'x.h5ad'}"], monkeypatch, capsys
    )
    assert (status, "classifies genes" in error) == (1, True)
    assert_one_line(error)


def test_probabilities_of_genes_are_those_of_the_fold(toy_store, gene_fold, tmp_path):
    """The fold predicted its test genes in every third cell."""
    folder, table = gene_fold
    chosen = ChosenCells(toy_store, np.arange(0, 240, 3), {})
    found = predict_genes(load_model(folder), chosen)
    wanted = table.groupby("gene")["probability_a"].mean()
    np.testing.assert_allclose(found.loc[wanted.index, "probability_a"], wanted, atol=2e-5)


def test_an_adapter_is_small_and_refuses_another_base(toy_store, cell_fold, base, tmp_path):
    adapter = cell_fold[0] / "model"
    merged = load_model(adapter)
    assert merged.head.labels == ("a", "b")
    before = load_model(base).params["blocks"]
    kernels = {
        name: np.abs(block["kernel"] - before[name]["kernel"]).max()
        for name, block in merged.params["blocks"].items()
        if "kernel" in block
    }
    assert min(kernels[name] for name in ("query", "value", "up")) > 1e-4
    assert kernels["key"] == kernels["down"] == 0
    size = sum(path.stat().st_size for path in adapter.rglob("*"))
    assert size < 0.4 * sum(path.stat().st_size for path in base.rglob("*"))
    other = tmp_path / "other"
    save_base(other, seed=2)
    with pytest.raises(InputError, match="give its own base"):
        load_model(adapter, base=other)
    moved = base.rename(base.with_name("moved"))
    try:
        with pytest.raises(InputError, match="goes on top of"):
            load_model(adapter)
        jax.tree.map(
            np.testing.assert_array_equal, load_model(adapter, base=moved).params, merged.params
        )
    finally:
        moved.rename(base)


def test_an_adapter_is_merged_into_a_checkpoint(cell_fold, tmp_path, monkeypatch, capsys):
    arguments = [f"--source={cell_fold[0]}", f"--target={tmp_path / 'merged'}"]
    status, _, error = run_command("convert", arguments, monkeypatch, capsys)
    assert status == 0, error
    one, other = load_model(tmp_path / "merged"), load_model(cell_fold[0])
    assert one.head == other.head
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    arguments = [f"--source={tmp_path / 'merged'}", f"--target={tmp_path / 'hf'}"]
    status, _, error = run_command("convert", arguments, monkeypatch, capsys)
    assert (status, "BERT has no class for this head" in error) == (1, True)
    assert_one_line(error)
    assert not (tmp_path / "hf").exists()


def test_a_fine_tuned_model_becomes_a_hugging_face_model(gene_fold, tmp_path, monkeypatch, capsys):
    arguments = [f"--source={gene_fold[0]}", f"--target={tmp_path / 'hf'}"]
    status, printed, error = run_command("convert", arguments, monkeypatch, capsys)
    assert status == 0, error
    assert "BertForTokenClassification" in printed
    back = read_model(tmp_path / "hf").model
    assert back.head.labels == ("a", "b")
    jax.tree.map(np.testing.assert_array_equal, back.params, load_model(gene_fold[0]).params)


@pytest.mark.slow
def test_a_regression_comes_back_on_its_own_scale(toy_store, base, tmp_path):
    ages = np.where(toy_store.obs["kind"] == "b", 60.0, 30.0)
    output = HeadTask("age", ("age",), regression=True, center=45.0, scale=15.0)
    task = ToyTask(
        "cell", toy_store, outputs=(output,), labels=((ages - 45) / 15).astype(np.float32)[:, None]
    )
    config = config_of(**{"head.pooling": "attention", "steps": 60})
    table = finetune_folds(task, load_model(base), config, tmp_path, folds=[0])
    assert set(table["value"].round(3)) == {30.0, 60.0}
    assert (table["predicted_value"] - table["value"]).abs().mean() < 10
    found = predict_cells(load_model(tmp_path / "fold_0"), toy_store).obs["predicted_age"]
    np.testing.assert_allclose(found[table["id"]], table["predicted_value"], rtol=0, atol=1e-3)


def test_bad_input_is_one_line(toy_store, base, cell_fold, tmp_path, monkeypatch, capsys):
    good = {"checkpoint": cell_fold[0], "cells": toy_store.folder, "output": tmp_path / "x.h5ad"}
    for change, words in (
        ({"checkpoint": base}, "has no classification head"),
        ({"output": tmp_path / "x.txt"}, "must end in one of"),
        ({"labels_key": "kin"}, 'did you mean "kind"'),
        ({"base": tmp_path}, "no checkpoint"),
        ({"checkpoint": base, "base": base}, "is no adapter"),
    ):
        arguments = [f"--{name}={value}" for name, value in (good | change).items()]
        status, _, error = run_command("predict", arguments, monkeypatch, capsys)
        assert status == 1, words
        assert_one_line(error)
        assert words in error
        assert not (tmp_path / "x.h5ad").exists()


def test_the_folder_of_a_fine_tuning_run_is_its_one_network_or_names_them(
    toy_store, cell_fold, gene_fold, tmp_path, monkeypatch, capsys
):
    """As `finetune` lays them out; one is an adapter, the other a whole model."""
    for name, folds in (("one", [gene_fold]), ("two", [cell_fold, gene_fold])):
        inside = tmp_path / name / "networks" / "Geneformer"
        inside.mkdir(parents=True)
        for number, fold in enumerate(folds):
            (inside / f"fold_{number}").symlink_to(fold[0])
    for named in (tmp_path / "one", tmp_path / "one" / "networks", cell_fold[0].parent):
        assert load_model(named).head is not None
    named = "networks/Geneformer/fold_0, networks/Geneformer/fold_1"
    for name, arguments in (
        ("predict", ["--checkpoint=two", f"--cells={toy_store.folder}", "--output=x.h5ad"]),
        ("convert", ["--source=two", "--target=x"]),
    ):
        monkeypatch.chdir(tmp_path)
        status, _, error = run_command(name, arguments, monkeypatch, capsys)
        assert status == 1
        assert_one_line(error)
        assert "two holds 2 fine-tuned networks; name one of them, as in " in error
        assert error.strip().endswith(named)
        assert not list(tmp_path.glob("x*"))
