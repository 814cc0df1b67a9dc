"""Pretraining from Python."""

import subprocess
import sys

import pytest

import geneformer_jax as gf
from geneformer_jax.training.telemetry import read_metrics
from tests.helpers.toy import toy_cells

SMALL = {
    "layers": 1,
    "width": 32,
    "heads": 4,
    "feed_forward": 64,
    "positions": 256,
}


HOLDS_A_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(1)
    input()
"""


def small_config():
    config = gf.pretrain_config("v1_10m", vocabulary_size=0)
    config.model.update(SMALL)
    config.mesh.data = 1
    config.data.cells_per_batch = 8
    config.data.max_buckets = 1
    config.evaluation.held_out_cells = 24
    config.steps = 2
    return config


def test_a_model_is_pretrained_on_a_store_and_embeds_cells(toy_store, tmp_path, caplog):
    caplog.set_level("INFO", logger="geneformer_jax")
    model = gf.pretrain_model(toy_store.folder, tmp_path / "run", small_config())
    assert "held-out cells" in caplog.text
    assert (model.config.layers, model.step) == (1, 2)
    assert model.vocabulary.hash == toy_store.vocabulary.hash
    assert {row["step"] for row in read_metrics(tmp_path / "run")} == {2}
    embedded = gf.embed_cells(model, toy_cells(6))
    assert embedded.obsm["X_geneformer"].shape == (6, 32)


@pytest.mark.slow
def test_a_second_process_is_kept_out(toy_store, tmp_path):
    """Both would remove each other's checkpoints."""
    gf.pretrain_model(toy_store.folder, tmp_path / "run", small_config())
    given = [sys.executable, "-c", HOLDS_A_LOCK, tmp_path / "run" / ".lock"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(given, **pipes) as other:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(gf.InputError, match=r"another process is at work on .*new `workdir`"):
            gf.pretrain_model(toy_store.folder, tmp_path / "run", small_config())
        other.communicate("\n")
    gf.pretrain_model(toy_store.folder, tmp_path / "run", small_config())


def test_what_does_not_fit_is_refused(toy_store, tmp_path):
    config = small_config()
    config.data.cells_per_batch = 0
    with pytest.raises(gf.InputError, match=r"tokens_per_batch` is 0 .* set exactly one"):
        gf.pretrain_model(toy_store, tmp_path / "run", config)
    with pytest.raises(gf.InputError, match=r'no key "data\.buckets"'):
        gf.pretrain_model(toy_store, tmp_path / "run", {"model": SMALL, "data": {"buckets": 1}})
    assert not (tmp_path / "run").exists()
