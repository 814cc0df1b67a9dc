"""Fine-tuning from end to end: it learns, resumes after a kill, and stops early."""

import dataclasses
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning import loop
from geneformer_jax.finetuning.loop import (
    PREDICTIONS,
    TRAINING,
    FoldRun,
    finetune_fold,
    finetune_folds,
)
from geneformer_jax.finetuning.prepare import prepare_finetuning
from geneformer_jax.model.heads import HeadTask
from geneformer_jax.model.pretrained import PretrainedModel, load_model
from geneformer_jax.training.preemption import Stopped
from geneformer_jax.training.telemetry import read_metrics
from tests.helpers.labelled_tasks import TINY, ToyTask, config_of, save_base
from tests.helpers.toy import toy_vocabulary

TAKES_A_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""
V2_VOCABULARY = toy_vocabulary(("<pad>", "<mask>", "<cls>", "<eos>"))


def accuracy(table: pd.DataFrame) -> float:
    return (table["label"] == table["predicted"]).mean()


@pytest.fixture(scope="module")
def cell_run(toy_store, tmp_path_factory):
    """Two folds of cells learned from scratch: (folder, predictions)."""
    folder = tmp_path_factory.mktemp("cells")
    table = finetune_folds(ToyTask("cell", toy_store), None, config_of(epochs=3), folder)
    return folder, table


def test_cells_are_learned_and_predicted_once_in_input_order(toy_store, cell_run):
    folder, table = cell_run
    assert accuracy(table) > 0.9
    for fold, own in table.groupby("fold"):
        rows = np.flatnonzero(np.arange(240) % 4 == fold)
        assert own["id"].tolist() == toy_store.obs.index[rows].tolist()
        assert own["label"].tolist() == toy_store.obs["kind"].iloc[rows].tolist()
    probabilities = table[["probability_a", "probability_b"]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (np.array(["a", "b"])[probabilities.argmax(axis=1)] == table["predicted"]).all()
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder / "fold_1" / PREDICTIONS),
        table[table["fold"] == 1].reset_index(drop=True),
    )


def test_a_fold_leaves_metrics_provenance_and_a_model(cell_run):
    folder, _ = cell_run
    rows = read_metrics(folder / "fold_0")
    training = [row for row in rows if "learning_rate" in row]
    assert {"loss", "accuracy", "cells_per_s", "data_wait", "padding"} <= set(training[0])
    held_out = [row for row in rows if "held_out_loss" in row]
    assert len(held_out) == 3
    assert held_out[-1]["held_out_accuracy"] > 0.9
    assert not (folder / "fold_0" / TRAINING).exists()
    model = load_model(folder / "fold_0")
    assert model.head.labels == ("a", "b")
    assert model.step == rows[-1]["step"]
    assert (folder / "fold_0" / "provenance.json").is_file()


def fold_run(store, config, folder, callback=lambda row: None) -> FoldRun:
    task = ToyTask("cell", store)
    setup = prepare_finetuning(task, None, config)
    return FoldRun(setup, task.fold_data(0), 0, folder, callback)


def terminate(row) -> None:
    """As a scheduler does, when the run evaluates at step 8."""
    if row["step"] == 8:
        os.kill(os.getpid(), signal.SIGTERM)


def die(row) -> None:
    if row["step"] == 8:
        raise KeyboardInterrupt


INTERRUPTED = {
    "steps": 12,
    "stopping.every_steps": 4,
    "checkpoint.every_steps": 3,
    "stopping.best": True,
}


@pytest.fixture(scope="module")
def uninterrupted(toy_store, tmp_path_factory):
    """A fold that nothing interrupted: (folder, predictions)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, finetune_fold(fold_run(toy_store, config_of(**INTERRUPTED), folder))


@pytest.mark.parametrize(
    ("interrupt", "error"),
    [pytest.param(terminate, Stopped, marks=pytest.mark.slow), (die, KeyboardInterrupt)],
)
def test_an_interrupted_fold_ends_as_if_it_had_not_been(
    toy_store, uninterrupted, tmp_path, interrupt, error
):
    config = config_of(**INTERRUPTED)
    folder, expected = uninterrupted
    with pytest.raises(error):
        finetune_fold(fold_run(toy_store, config, tmp_path / "part", interrupt))
    assert not (tmp_path / "part" / PREDICTIONS).exists()
    found = finetune_fold(fold_run(toy_store, config, tmp_path / "part"))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    one, other = load_model(folder), load_model(tmp_path / "part")
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    rows = [
        [(row["step"], row.get("loss"), row.get("held_out_loss")) for row in read_metrics(each)]
        for each in (folder, tmp_path / "part")
    ]
    # A run that goes on from step 6 or 8 writes a line where it was stopped, too.
    assert {row for row in rows[0] if row[2]} == {row for row in rows[1] if row[2]}


AFTER_THE_LAST_STEP = {
    "in the last evaluation": (FoldRun, "evaluate", {"steps": 4}),
    "while it predicts": (loop, "prediction_table", {"steps": 4}),
    "while it predicts, stopped early": (
        loop,
        "prediction_table",
        {"steps": 40, "stopping.every_steps": 1, "stopping.patience": 1, "stopping.best": True}
        | {"optimizer.learning_rate": 0.3},
    ),
}


@pytest.mark.parametrize("when", AFTER_THE_LAST_STEP)
def test_a_fold_killed_after_its_last_step_makes_no_step_again(
    toy_store, tmp_path, monkeypatch, when
):
    where, name, changes = AFTER_THE_LAST_STEP[when]
    config = config_of(**changes)
    whole = finetune_fold(fold_run(toy_store, config, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed)
        with pytest.raises(KeyboardInterrupt):
            finetune_fold(fold_run(toy_store, config, tmp_path / "part"))
    run = fold_run(toy_store, config, tmp_path / "part")
    without = dataclasses.replace(run.setup.compiled, step=killed)
    run = dataclasses.replace(run, setup=dataclasses.replace(run.setup, compiled=without))
    pd.testing.assert_frame_equal(finetune_fold(run), whole, check_exact=True)
    scores = [
        [(row["step"], row.get("loss"), row.get("held_out_loss")) for row in read_metrics(each)]
        for each in (tmp_path / "whole", tmp_path / "part")
    ]
    assert scores[0] == scores[1] and scores[0][-1][2] is not None
    assert not (tmp_path / "part" / TRAINING).exists()


def killed(*_) -> None:
    raise KeyboardInterrupt


def test_a_damaged_prediction_file_is_made_again(toy_store, tmp_path):
    config = config_of(steps=2)
    expected = finetune_fold(fold_run(toy_store, config, tmp_path / "run"))
    path = tmp_path / "run" / PREDICTIONS
    path.write_bytes(path.read_bytes()[:-9])
    found = finetune_fold(fold_run(toy_store, config, tmp_path / "run"))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected)


def test_the_best_evaluation_is_kept_and_patience_ends_the_run(toy_store, tmp_path):
    changes = {"optimizer.learning_rate": 0.3}
    changes |= {"steps": 40, "stopping.every_steps": 2, "stopping.best": True}
    config = config_of(**changes, **{"stopping.patience": 3})
    finetune_fold(fold_run(toy_store, config, tmp_path / "run"))
    rows = [row for row in read_metrics(tmp_path / "run") if "held_out_loss" in row]
    losses = [row["held_out_loss"] for row in rows]
    best = int(np.argmin(losses))
    assert len(rows) == best + 4
    assert rows[-1]["step"] < 40
    assert load_model(tmp_path / "run").step == rows[best]["step"]


@pytest.mark.slow
def test_a_second_process_is_kept_out_of_a_fold(toy_store, tmp_path):
    """Both would remove each other's checkpoints."""
    lock, seen = tmp_path / "run" / ".lock", []

    def try_from_elsewhere(row) -> None:
        taken = subprocess.run([sys.executable, "-c", TAKES_A_LOCK, lock], capture_output=True)
        seen.append(b"BlockingIOError" in taken.stderr)

    run = fold_run(toy_store, config_of(steps=2), tmp_path / "run")
    finetune_fold(dataclasses.replace(run, callback=try_from_elsewhere))
    assert seen and all(seen)
    subprocess.run([sys.executable, "-c", TAKES_A_LOCK, lock], check=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint with the masked-gene head, as pretraining leaves it: (path, model)."""
    path = save_base(tmp_path_factory.mktemp("base") / "run")
    return path, load_model(path)


@pytest.fixture
def compilations():
    """Lists programs that XLA is asked for."""
    events = []

    def listen(name: str, seconds: float, **_) -> None:
        if "backend_compile" in name:
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda number: number + 1)(0)
    assert events
    del events[:]
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_folds_and_other_rates_share_their_programs(toy_store, base, tmp_path, compilations):
    """Folds have other cells, so other numbers of steps."""
    task = ToyTask("gene", toy_store, folds=5)
    config = config_of(steps=3)
    finetune_folds(task, base[1], config, tmp_path / "first", folds=[0])
    del compilations[:]
    tables = finetune_folds(task, base[1], config_of(steps=4), tmp_path / "second", folds=[1, 2])
    faster = config_of(**{"optimizer.learning_rate": 1e-2, "steps": 5, "seed": 3})
    finetune_folds(task, base[1], faster, tmp_path / "third", folds=[3])
    assert compilations == []
    genes = [set(own["gene"]) for _, own in tables.groupby("fold")]
    assert genes[0].isdisjoint(genes[1])


def test_genes_are_learned_from_a_checkpoint_with_everything_below_frozen(
    toy_store, base, tmp_path
):
    frozen = {"tuning.freeze_layers": 1, "tuning.freeze_embeddings": True, "steps": 60}
    frozen |= {"optimizer.learning_rate": 1e-2}
    task = ToyTask("gene", toy_store)
    finetune_folds(task, base[1], config_of(**frozen), tmp_path, folds=[0])
    # Of the genes learned from: held-out ones have nothing in common but their random embeddings.
    losses = [row["loss"] for row in read_metrics(tmp_path / "fold_0") if "loss" in row]
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    after = load_model(tmp_path / "fold_0").params
    np.testing.assert_array_equal(
        after["embeddings"]["word"]["embedding"], base[1].params["embeddings"]["word"]["embedding"]
    )
    kernels = after["blocks"]["up"]["kernel"], base[1].params["blocks"]["up"]["kernel"]
    np.testing.assert_array_equal(kernels[0][0], kernels[1][0])
    assert np.abs(kernels[0][1] - kernels[1][1]).max() > 1e-3


def test_occurrences_are_those_of_test_genes_in_the_order_of_cells_and_ranks(
    toy_store, base, tmp_path
):
    task = ToyTask("gene", toy_store)
    table = finetune_folds(task, base[1], config_of(steps=1), tmp_path, folds=[1])
    labels = task.fold_data(1).test.labels
    expected = []
    for row in task.fold_data(1).test.rows:
        (tokens,) = toy_store.read([row])
        expected += [
            (
                toy_store.obs.index[row],
                toy_store.vocabulary.gene_ids[token - 2],
                "ab"[labels[token]],
            )
            for token in tokens
            if labels[token] >= 0
        ]
    assert list(table[["id", "gene", "label"]].itertuples(index=False, name=None)) == expected


def test_labels_that_do_not_fit_are_refused_before_anything_is_written(toy_store, base, tmp_path):
    single = ToyTask("cell", toy_store, outputs=(HeadTask("label", ("a",)),))
    with pytest.raises(InputError, match='single class "a"'):
        finetune_folds(single, base[1], config_of(), tmp_path / "run")
    balanced = config_of(**{"loss.sampling": "balanced"})
    with pytest.raises(InputError, match=r"`config\.loss\.class_weights`=balanced"):
        finetune_folds(ToyTask("gene", toy_store), base[1], balanced, tmp_path / "run")
    other = PretrainedModel(TINY, base[1].params, V2_VOCABULARY, "there", 0)
    with pytest.raises(InputError, match="was trained with"):
        finetune_folds(ToyTask("cell", toy_store), other, config_of(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
