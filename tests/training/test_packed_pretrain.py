"""Pretraining on packed rows and with masks drawn on the device, from end to end."""

import shutil

import jax
import numpy as np
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.pretrained import CHECKPOINTS, load_model
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.run import prepare_run
from geneformer_jax.training.telemetry import read_metrics
from tests.helpers.pretrain_runs import config_of
from tests.helpers.toy import make_store, toy_cells, toy_vocabulary

PACKED = {
    "data.packing": True,
    "data.cells_per_batch": 0,
    "data.tokens_per_batch": 1_024,
    "steps": 6,
    "evaluation.every_steps": 6,
}


def parameters(workdir) -> dict:
    return jax.device_get(load_model(workdir).params)


@pytest.fixture(scope="module")
def finished(toy_store, tmp_path_factory):
    """A run of 6 packed steps, masked on the host: (workdir, result)."""
    workdir = tmp_path_factory.mktemp("packed") / "run"
    return workdir, pretrain(config_of(toy_store, **PACKED), workdir)


@pytest.mark.slow
def test_telemetry_counts_real_and_padded_tokens_of_packed_rows(finished, toy_store):
    workdir, result = finished
    run = prepare_run(config_of(toy_store, **PACKED), toy_store)
    (row,), (rows,) = run.shape.buckets, run.shape.cells
    assert rows == 1_024 // row
    assert any("packed rows" in line for line in run.summary())
    first, rest = read_metrics(workdir)[:2]
    cells = np.concatenate([run.batches.plan.step(step).cells for step in (0, 1)])
    real = toy_store.lengths[cells[cells >= 0]].sum()
    assert first["padding"] == pytest.approx(1 - real / (2 * rows * row))
    assert first["padded_tokens_per_s"] / first["cells_per_s"] == pytest.approx(
        2 * rows * row / (cells >= 0).sum()
    )
    assert rest["padding"] < 0.1
    assert result.held_out.masked_genes > 100


@pytest.mark.slow
def test_a_packed_run_that_is_cut_short_goes_on_to_the_same_weights(finished, toy_store, tmp_path):
    workdir, result = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS / "6")
    again = pretrain(config_of(toy_store, **PACKED), tmp_path / "run")
    assert again.held_out == result.held_out
    jax.tree.map(np.testing.assert_array_equal, parameters(workdir), parameters(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_may_go_on_with_masks_drawn_elsewhere(finished, toy_store, tmp_path):
    workdir, result = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS / "6")
    changes = {**PACKED, "masking.on_device": True}
    again = pretrain(config_of(toy_store, **changes), tmp_path / "run")
    assert again.held_out.loss == pytest.approx(result.held_out.loss, rel=1e-6)
    for here, there in zip(read_metrics(workdir), read_metrics(tmp_path / "run"), strict=True):
        for name in here.keys() & {"loss", "accuracy", "padding", "held_out_loss"}:
            assert there[name] == pytest.approx(here[name], rel=1e-5)


def test_packing_wants_a_number_of_tokens(toy_store):
    with pytest.raises(InputError, match="cells_per_batch` is 8; packed rows"):
        config_of(toy_store, **{"data.packing": True})


@pytest.mark.slow
def test_an_odd_vocabulary_moves_between_meshes(tmp_path):
    vocabulary = toy_vocabulary(("<pad>", "<mask>", "<cls>", "<eos>"))
    assert vocabulary.size % 4
    store = make_store(tmp_path / "store", toy_cells(80), vocabulary)
    changes = {"steps": 4, "mesh.data": 2, "mesh.tensor": 4, "evaluation.held_out_cells": 16}
    split = pretrain(config_of(store, **changes), tmp_path / "run")
    model = load_model(tmp_path / "run")
    table = model.params["embeddings"]["word"]["embedding"]
    assert table.shape == (vocabulary.size, 32)
    assert split.state.params["embeddings"]["word"]["embedding"].shape == table.shape
    elsewhere = {**changes, "mesh.data": 1, "mesh.tensor": 1}
    alone = pretrain(config_of(store, **elsewhere), tmp_path / "run")
    assert alone.held_out.loss == pytest.approx(split.held_out.loss, rel=1e-5)
    changes = {**changes, "initial": str(tmp_path / "run"), "steps": 1}
    more = {"optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0.0}
    begun = pretrain(config_of(store, **changes, **more), tmp_path / "next")
    assert begun.held_out.loss == pytest.approx(split.held_out.loss, rel=1e-5)
