"""Fine-tuning from end to end: it learns, goes on after a kill, and stops when told to."""

import jax
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.model.pretrained import load_model
from geneformer_jax.training.finetuning import PREDICTIONS, TRAINING, finetune_folds
from geneformer_jax.training.telemetry import read_metrics
from tests.training.labelled_tasks import ToyTask, config_of


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


def test_a_fold_tells_its_story_and_leaves_a_model(cell_run):
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
