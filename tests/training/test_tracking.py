"""Metrics for trackers: the same numbers as metrics.jsonl, one run however often killed."""

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.loop import finetune_folds
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.config import PretrainConfig
from geneformer_jax.training.run import prepare_run
from geneformer_jax.training.telemetry import HELD_OUT, METRICS, read_metrics
from geneformer_jax.training.tracking.tracker import TRACKING, open_tracker
from tests.helpers.labelled_tasks import ToyTask
from tests.helpers.labelled_tasks import config_of as finetune_config_of
from tests.helpers.pretrain_runs import CONFIG, config_of, start_pretraining, wait_for


def test_a_tracker_that_is_not_installed_is_told_before_long_work(toy_store, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "alembic" else find(name)
    )
    with pytest.raises(InputError, match=r"needs alembic, which .*\[track\]"):
        prepare_run(config_of(toy_store, track="mlflow"), toy_store)


def test_only_known_trackers_are_taken(toy_store):
    with pytest.raises(InputError, match=r"`config.track` is 'comet'; choose one of wandb, mlflow"):
        config_of(toy_store, track="comet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tracker", "variable"), [("wandb", "WANDB_MODE"), ("mlflow", "MLFLOW_TRACKING_URI")]
)
def test_what_a_tracker_refuses_is_told_in_a_line(tmp_path, monkeypatch, tracker, variable):
    pytest.importorskip(tracker, reason='pip install "geneformer_jax[track]"')
    monkeypatch.setenv(variable, "nonsense://nowhere")
    with pytest.raises(InputError, match=rf"`config.track`={tracker} cannot begin \(.*; mend"):
        open_tracker(tracker, tmp_path, PretrainConfig({}))


def logged(workdir: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> value, from metrics.jsonl."""
    return {
        (name.removeprefix(HELD_OUT), row["step"], name.startswith(HELD_OUT)): value
        for row in read_metrics(workdir)
        for name, value in row.items()
        if name != "step" and value is not None
    }


def told_mlflow(workdir: Path) -> dict[tuple[str, int], float]:
    """What the one run of MLflow's database holds; nothing is doubled."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workdir / TRACKING / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.schedule"] == "linear"
    found = {}
    for key in run.data.metrics:
        group, _, name = key.partition("/")
        for metric in client.get_metric_history(run.info.run_id, key):
            place = (name, metric.step, group == "held_out")
            assert place not in found
            found[place] = metric.value
    return found


def records_in(content: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: LevelDB's log format behind 7 bytes; an unfinished end is left."""
    assert content[:4] == b":W&B"
    place, pieces = 7, []
    while place + 7 <= len(content):
        if 32_768 - place % 32_768 < 7:
            place += 32_768 - place % 32_768
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        pieces.append(content[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4) and place <= len(content):  # whole, or the last piece
            yield b"".join(pieces)
            pieces = []


def told_wandb(workdir: Path) -> dict[tuple[str, int], float]:
    """What the one file of Weights & Biases holds; nothing is doubled."""
    from wandb.proto import wandb_internal_pb2

    found, ids = {}, set()
    (path,) = workdir.glob(f"{TRACKING}/wandb/offline-run-*/*.wandb")
    for data in records_in(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("run"):
            ids.add(record.run.run_id)
        values = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for key, value in values.items():
            group, _, name = key.partition("/")
            if name:
                place = (name, int(values["_step"]), group == "held_out")
                assert place not in found
                found[place] = value
    assert ids == {(workdir / TRACKING / "run_id").read_text()}
    return found


# MLflow asks SQLAlchemy for something that its next release does without.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
TOLD = {"wandb": told_wandb, "mlflow": told_mlflow}
# What a killed run logged after its last checkpoint is timed anew.
TIMES = ("_s", "data_wait")


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TOLD)
def test_a_run_that_was_killed_goes_on_in_the_same_tracked_run(toy_store, tmp_path, tracker):
    pytest.importorskip(tracker, reason='pip install "geneformer_jax[track]"')
    config, workdir = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG.replace("return", f"config.track = {tracker!r}\n    return"))
    process = start_pretraining(config, toy_store, workdir)
    wait_for(workdir / METRICS, process, lines=4)
    process.kill()
    process.communicate()
    process = start_pretraining(config, toy_store, workdir)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, output + error
    assert_told(TOLD[tracker](workdir), workdir)


@pytest.mark.slow
def test_each_fold_of_fine_tuning_is_a_run(toy_store, tmp_path):
    pytest.importorskip("mlflow", reason='pip install "geneformer_jax[track]"')
    config = finetune_config_of(epochs=1, track="mlflow", log_every_steps=2)
    finetune_folds(ToyTask("cell", toy_store), None, config, tmp_path)
    for fold in sorted(tmp_path.iterdir()):
        assert_told(told_mlflow(fold), fold)


def assert_told(told: dict, workdir: Path) -> None:
    """Every number of metrics.jsonl is there, at its step, and no other."""
    expected = logged(workdir)
    assert len(expected) > 20
    assert set(told) == set(expected)
    decided = [place for place in expected if not place[0].endswith(TIMES)]
    for place in decided:
        assert told[place] == pytest.approx(expected[place], rel=1e-6), place


@pytest.mark.slow
def test_a_run_goes_on_with_another_tracker_or_none(toy_store, tmp_path):
    pytest.importorskip("mlflow", reason='pip install "geneformer_jax[track]"')
    pretrain(config_of(toy_store, steps=4, track="mlflow"), tmp_path / "run")
    pretrain(config_of(toy_store, steps=4), tmp_path / "run")
    assert_told(told_mlflow(tmp_path / "run"), tmp_path / "run")
