"""Pretraining from end to end: it learns, it survives kills, it refuses what it should."""

import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.pretrained import CHECKPOINTS, find_checkpoint, load_model, save_model
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.config import pretrain_config, typed_config
from geneformer_jax.training.telemetry import read_metrics
from tests.helpers.pretrain_runs import (
    CONFIG,
    assert_identical,
    config_of,
    parameters,
    start_pretraining,
    wait_for,
)
from tests.helpers.toy import make_store, toy_cells, toy_vocabulary


@pytest.fixture(scope="module")
def finished(toy_store, tmp_path_factory):
    """An undisturbed run of 12 steps on one device: (workdir, result)."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    return workdir, pretrain(config_of(toy_store), workdir)


def test_a_run_leaves_weights_metrics_and_provenance(finished, toy_store):
    workdir, result = finished
    model = load_model(workdir)
    assert model.step == 12
    assert model.vocabulary.hash == toy_store.vocabulary.hash
    assert model.config.vocabulary_size == toy_store.vocabulary.size
    assert_identical(jax.device_get(result.state.params), jax.device_get(model.params))
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows if "loss" in row] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [row["step"] for row in rows if "held_out_loss" in row] == [6, 12]
    assert rows[-1]["held_out_loss"] == result.held_out.loss
    provenance = json.loads((workdir / "provenance.json").read_text())
    assert provenance["configuration"]["optimizer"]["warmup_steps"] == 4
    assert provenance["inputs"][0]["files"] > 3
    assert len(list((workdir / CHECKPOINTS).glob("[0-9]*"))) == 3


def test_held_out_scores_stand_beside_both_baselines(finished):
    _, result = finished
    assert set(result.baselines) == {"gene_frequency", "gene_at_rank"}
    assert result.baselines["gene_at_rank"].loss < result.baselines["gene_frequency"].loss
    assert result.held_out.perplexity == pytest.approx(np.exp(result.held_out.loss))
    assert result.held_out.masked_genes > 100
    report = "\n".join(result.report())
    assert "does NOT beat the gene at rank baseline" in report, "12 steps cannot have learnt it"


@pytest.mark.slow
def test_a_longer_run_beats_both_baselines(toy_store, tmp_path):
    changes = {"steps": 600, "optimizer.learning_rate": 3e-3, "checkpoint.every_steps": 600}
    result = pretrain(config_of(toy_store, **changes), tmp_path / "run")
    assert result.held_out.loss < min(score.loss for score in result.baselines.values())


@pytest.mark.multiprocess
def test_killed_between_checkpoints_and_resumed_ends_with_the_same_weights(
    finished, toy_store, tmp_path
):
    config, disturbed = tmp_path / "config.py", tmp_path / "disturbed"
    config.write_text(CONFIG)
    process = start_pretraining(config, toy_store, disturbed)
    wait_for(disturbed / CHECKPOINTS / "3" / "commit_success.txt", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_model(disturbed).step < 12
    pretrain(config_of(toy_store), disturbed)

    undisturbed, _ = finished
    assert_identical(parameters(undisturbed), parameters(disturbed))
    kept = [row for row in read_metrics(disturbed) if "loss" in row]
    expected = [row for row in read_metrics(undisturbed) if "loss" in row]
    assert [row["step"] for row in kept] == [row["step"] for row in expected]
    assert [row["loss"] for row in kept] == [row["loss"] for row in expected]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_sigterm_saves_the_state_and_ends_with_its_status(toy_store, tmp_path):
    config, workdir = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG.replace("steps = 12", "steps = 100_000").replace("= 3", "= 99_999"))
    process = start_pretraining(config, toy_store, workdir)
    wait_for(workdir / "metrics.jsonl", process, lines=1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    step = load_model(workdir).step
    assert step == read_metrics(workdir)[-1]["step"] > 0
    said = process.stdout.read()
    assert f"step {step:,} of 100,000" in said and str(workdir / CHECKPOINTS / str(step)) in said
    assert (workdir / "loss.png").stat().st_size > 1_000


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    finished, toy_store, tmp_path, caplog
):
    caplog.set_level("INFO", logger="geneformer_jax")
    workdir, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    for path in (copy / CHECKPOINTS / "12" / "optimizer").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    pretrain(config_of(toy_store), copy)
    output = caplog.text
    assert "checkpoint 12 is damaged" in output
    assert "going on from the checkpoint at step 9" in output
    assert_identical(parameters(copy), parameters(workdir))


def test_running_a_finished_run_again_changes_nothing(finished, toy_store, caplog):
    caplog.set_level("INFO", logger="geneformer_jax")
    workdir, result = finished
    before = parameters(workdir)
    again = pretrain(config_of(toy_store), workdir)
    assert "going on from the checkpoint at step 12" in caplog.text
    assert again.held_out == result.held_out
    assert_identical(before, parameters(workdir))


def test_a_run_goes_on_with_other_devices(finished, toy_store):
    workdir, result = finished
    changes = {"mesh.fsdp": 2, "mesh.tensor": 2, "evaluation.every_steps": 12}
    again = pretrain(config_of(toy_store, **changes), workdir)
    assert again.held_out.loss == pytest.approx(result.held_out.loss, rel=1e-5)
    kernel = again.state.params["blocks"]["up"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, "fsdp", "tensor")
    np.testing.assert_array_equal(kernel, result.state.params["blocks"]["up"]["kernel"])


@pytest.mark.slow
def test_a_run_may_begin_with_the_weights_of_another(finished, toy_store, tmp_path):
    workdir, result = finished
    # A learning rate this small leaves the weights where they began.
    changes = {"initial": str(workdir), "steps": 1, "optimizer.learning_rate": 1e-30}
    more = {"optimizer.weight_decay": 0.0, "model.dropout": 0.0, "mesh.fsdp": 2}
    again = pretrain(config_of(toy_store, **changes, **more), tmp_path / "run")
    assert again.held_out.loss == pytest.approx(result.held_out.loss, rel=1e-5)
    with pytest.raises(InputError, match=r"another model .* set `config.model`"):
        changes["model.feed_forward"] = 96
        pretrain(config_of(toy_store, **changes), tmp_path / "other")
    whole = load_model(workdir)
    encoder = {part: whole.params[part] for part in ("embeddings", "blocks")}
    save_model(dataclasses.replace(whole, params=encoder), tmp_path / "bare", {})
    with pytest.raises(InputError, match="is an encoder without a head"):
        pretrain(config_of(toy_store, initial=str(tmp_path / "bare")), tmp_path / "third")


def test_a_run_that_cannot_start_leaves_nothing(toy_store, tmp_path):
    with pytest.raises(InputError, match="heads"):
        pretrain(config_of(toy_store, **{"model.heads": 5}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_workdir_of_another_run_is_refused(finished, toy_store, tmp_path):
    workdir, _ = finished
    with pytest.raises(InputError, match=r"optimizer.learning_rate = 0.001, not 0.5"):
        pretrain(config_of(toy_store, **{"optimizer.learning_rate": 0.5}), workdir)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds other files"):
        pretrain(config_of(toy_store), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "special_tokens", [("<pad>", "<mask>"), ("<pad>", "<mask>", "<cls>", "<eos>")]
)
def test_another_store_is_refused(finished, tmp_path, special_tokens):
    workdir, _ = finished
    other = make_store(tmp_path / "other", toy_cells(60), toy_vocabulary(special_tokens))
    with pytest.raises(InputError, match=r"data.store = .* name a new `workdir`"):
        pretrain(config_of(other), workdir)


def test_a_loss_that_is_not_finite_names_the_step_and_the_cells(toy_store, tmp_path):
    changes = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}
    with pytest.raises(InputError, match=r"loss of step \d+ .* holds cells c\d+, c\d+"):
        pretrain(config_of(toy_store, **changes), tmp_path / "run")


def test_damaged_and_missing_checkpoints_are_refused(finished, tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no checkpoint in"):
        load_model(tmp_path)
    workdir, _ = finished
    broken = tmp_path / "12"
    shutil.copytree(find_checkpoint(workdir), broken)
    for path in (broken / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        load_model(broken)


def test_defaults_are_the_originals_recipe():
    config = typed_config(pretrain_config("v1_10m"))
    optimizer = config.optimizer
    recipe = (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps)
    assert recipe == (1e-3, "linear", 10_000)
    assert (optimizer.weight_decay, optimizer.b1, optimizer.b2) == (0.001, 0.9, 0.999)
    assert (optimizer.eps, optimizer.clip_norm, config.epochs, config.seed) == (1e-8, 1.0, 3, 42)
    assert config.masking.selected_fraction == 0.15
