"""What a run logs while it trains: the numbers, TensorBoard's files, a profile."""

import itertools
import json
import multiprocessing
import struct
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from geneformer_jax.common.errors import InputError
from geneformer_jax.training import telemetry
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.config import PretrainConfig, ProfileConfig
from geneformer_jax.training.profiling import PROFILE, Profile
from geneformer_jax.training.run import prepare_run
from geneformer_jax.training.state import StepMetrics
from geneformer_jax.training.telemetry import (
    NOT_FINITE,
    TENSORBOARD,
    MetricsLog,
    Window,
    read_metrics,
)
from tests.helpers.pretrain_runs import config_of

METRICS = {
    "loss",
    "accuracy",
    "learning_rate",
    "gradient_norm",
    "parameter_norm",
    "loss_scale",
    "skipped_updates",
    "cells_per_s",
    "tokens_per_s",
    "padded_tokens_per_s",
    "padding",
    "model_flops_per_s",
    "data_wait",
    "step_s",
}


def read_events(folder) -> list[Event]:
    """Events of all files, oldest file first; the framing and its checksums are checked."""
    events = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            size, size_check = struct.unpack("<QI", content[:12])
            record, (check,) = (
                content[12 : 12 + size],
                struct.unpack("<I", content[12 + size :][:4]),
            )
            assert (masked_crc(content[:8]), masked_crc(record)) == (size_check, check)
            events.append(Event.FromString(record))
            content = content[16 + size :]
    return events


def masked_crc(data: bytes) -> int:
    check = crc32c(data)
    return (((check >> 15) | (check << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def scalars_shown(events: list[Event]) -> dict[int, float]:
    """The loss at each step as TensorBoard shows it: a start purges its step and later ones."""
    shown: dict[int, float] = {}
    for event in events:
        if event.session_log.status == SessionLog.START:
            shown = {step: value for step, value in shown.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == "training/loss":
                shown[event.step] = value.simple_value
    return shown


@pytest.fixture(scope="module")
def profiled(toy_store, tmp_path_factory):
    """Workdir of a run of 6 steps of which steps 3 and 4 were profiled."""
    workdir = tmp_path_factory.mktemp("telemetry") / "run"
    changes = {"steps": 6, "evaluation.every_steps": 4, "profile.first_step": 3, "profile.steps": 2}
    # Other tests of this process may have loaded libtpu, with which nothing can be profiled.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as another:
        another.submit(pretrain, config_of(toy_store, **changes), workdir).result()
    return workdir


@pytest.fixture
def run(toy_store):
    return prepare_run(config_of(toy_store), toy_store)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set: clock[0] is the time."""
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])
    return now


def metrics_of(**changes) -> StepMetrics:
    values = dict.fromkeys(StepMetrics._fields, 1.0) | {"skipped_updates": 0.0} | changes
    return StepMetrics(**{name: np.float32(value) for name, value in values.items()})


def test_every_line_has_all_metrics(profiled, toy_store):
    rows = [row for row in read_metrics(profiled) if "loss" in row]
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    for row in rows:
        assert row.keys() >= METRICS
        # The paper's schedule in its own words: a rise over 4 steps, then a line down to 0 at 6.
        rate = 1e-3 * min((row["step"] - 1) / 4, (6 - (row["step"] - 1)) / 2)
        assert row["learning_rate"] == pytest.approx(rate)
        real = row["tokens_per_s"] / row["padded_tokens_per_s"]
        assert row["padding"] == pytest.approx(1 - real) and 0 < real < 1
        assert 0 <= row["data_wait"] <= 1
    held_out = [row for row in read_metrics(profiled) if "held_out_loss" in row]
    assert [row["step"] for row in held_out] == [4, 6]


def test_tensorboard_gets_the_same_numbers(profiled):
    events = read_events(profiled / TENSORBOARD)
    assert events[0].file_version == "brain.Event:2"
    written = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    expected = {}
    for row in read_metrics(profiled):
        step = row.pop("step")
        for name, value in row.items():
            group = "held_out" if name.startswith("held_out_") else "training"
            expected[step, f"{group}/{name.removeprefix('held_out_')}"] = np.float32(value)
    assert written == expected


def test_only_steps_asked_for_are_profiled(profiled, tmp_path):
    traces = [path.name for path in (profiled / PROFILE).rglob("*") if path.is_file()]
    assert any(name.endswith(".xplane.pb") for name in traces)
    trace = next((profiled / PROFILE).rglob("*.xplane.pb")).read_bytes()
    # Two steps, not all six: the trace names each call of the step's program.
    assert trace.count(b"PjitFunction(step)") >= 1
    with Profile(ProfileConfig(first_step=1, steps=0), tmp_path) as profile:
        profile.before(1, None)
        profile.after(1, None)
    assert not list(tmp_path.iterdir())


def test_steps_run_again_replace_their_earlier_lines(tmp_path):
    with MetricsLog(tmp_path, 0, PretrainConfig({})) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": float(step)})
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 4, "lo')  # cut off by a kill
    with MetricsLog(tmp_path, 2, PretrainConfig({})) as log:
        log.write({"step": 3, "loss": 30.0, "gradient_norm": None})
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1.0, 2.0, 30.0]
    events = read_events(tmp_path / TENSORBOARD)
    starts = [e.step for e in events if e.session_log.status == SessionLog.START]
    assert starts == [1, 3], "TensorBoard hides these steps and later ones in earlier files"
    assert scalars_shown(events) == {1: 1.0, 2: 2.0, 3: 30.0}


def test_lines_are_kept_that_are_not_seen_at_first(tmp_path, monkeypatch):
    """As those that another machine wrote a moment ago."""
    with MetricsLog(tmp_path, 0, PretrainConfig({})) as log:
        log.write({"step": 1, "loss": 1.0})
    with monkeypatch.context() as unseen:
        unseen.setattr(Path, "is_file", lambda _: False)
        log = MetricsLog(tmp_path, 1, PretrainConfig({}))
    with log:
        assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_speeds_are_of_the_time_between_two_lines(run, clock):
    window = Window(run, 0, None)
    cells, bucket = run.batches.plan.step(0)
    lengths = run.store.lengths[cells]
    clock[0] += 3.0
    assert window.wait_for(itertools.repeat("batch")) == "batch"
    window.add(metrics_of(tokens=lengths.sum(), padded_tokens=len(cells) * bucket), 1)
    with window.paused(None):
        clock[0] += 1_000.0
    clock[0] += 1.0
    row = window.close(1)
    assert row["step_s"] == 4.0
    assert row["cells_per_s"] == pytest.approx(len(cells) / 4)
    assert row["tokens_per_s"] == pytest.approx(lengths.sum() / 4)
    assert row["padded_tokens_per_s"] == pytest.approx(len(cells) * bucket / 4)
    assert row["data_wait"] == 0.0


def test_waiting_for_data_is_a_fraction_of_the_time(run, clock):
    def slow():
        clock[0] += 3.0
        yield "batch"

    window = Window(run, 0, None)
    window.wait_for(slow())
    window.add(metrics_of(), 1)
    clock[0] += 1.0
    assert window.close(1)["data_wait"] == 0.75


def test_what_the_device_knows_is_written(run, clock, monkeypatch):
    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": 3 * 2**29}

    def close() -> dict:
        window = Window(run, 0, None)
        window.add(metrics_of(), 1)
        clock[0] += 2.0
        return window.close(1)

    assert not {"mfu", "device_memory_gib"} & close().keys(), "a CPU knows neither"
    monkeypatch.setattr(telemetry, "peak_flops", lambda device, precision: 1e9)
    monkeypatch.setattr(telemetry.jax, "local_devices", lambda: [Device()])
    row = close()
    assert row["mfu"] == pytest.approx(row["model_flops_per_s"] / 1e9)
    assert row["device_memory_gib"] == 1.5


def test_overflows_leave_their_mark_and_no_infinite_norm(toy_store, clock):
    half = config_of(toy_store, **{"runtime.precision": "float16"})
    window = Window(prepare_run(half, toy_store), 0, None)
    window.add(metrics_of(gradient_norm=3.0, loss_scale=8.0), 1)
    window.add(metrics_of(gradient_norm=np.inf, loss_scale=8.0, skipped_updates=1), 2)
    window.add(metrics_of(gradient_norm=5.0, loss_scale=4.0, skipped_updates=1), 3)
    row = window.close(3)
    assert (row["gradient_norm"], row["loss_scale"], row["skipped_updates"]) == (4.0, 4.0, 1)
    # The schedule counts the two updates that were made.
    assert row["learning_rate"] == pytest.approx(1e-3 / 4)
    window.add(metrics_of(gradient_norm=np.nan, skipped_updates=2), 4)
    row = window.close(4)
    assert row["gradient_norm"] is None
    json.dumps(row, allow_nan=False)


def test_a_loss_that_is_not_finite_lists_all_cells_of_its_batch(run, tmp_path):
    window = Window(run, 4, tmp_path)
    for step, loss in ((5, 1.0), (6, np.nan), (7, np.inf)):
        window.add(metrics_of(loss=loss), step)
    with pytest.raises(InputError, match=r"loss of step 6 \(in steps 5 to 7\).*lower `config"):
        window.close(7)
    content = json.loads((tmp_path / NOT_FINITE).read_text())
    cells = run.batches.plan.step(5).cells
    assert content == {
        "step": 6,
        "steps_looked_at": [5, 7],
        "cells": [f"c{cell}" for cell in cells if cell >= 0],
    }


def test_a_gradient_that_was_applied_ends_the_run_before_it_is_saved(run, tmp_path):
    """The loss is that of the weights before; a checkpoint would hold those after."""
    window = Window(run, 4, tmp_path)
    window.add(metrics_of(), 5)
    window.add(metrics_of(gradient_norm=np.nan), 6)
    window.add(metrics_of(loss=np.nan, gradient_norm=np.nan), 7)
    with pytest.raises(InputError, match=r"gradient of step 6 \(in steps 5 to 7\)"):
        window.close(7)


def test_devices_are_given_no_more_work_than_a_stop_can_wait_for(run, monkeypatch):
    waited = []
    monkeypatch.setattr(telemetry.jax, "block_until_ready", waited.append)
    window = Window(run, 0, None)
    steps = [metrics_of(loss=step) for step in range(1, 6)]
    for step, metrics in enumerate(steps, start=1):
        window.add(metrics, step)
    assert [float(metrics.loss) for metrics in waited] == [1, 1, 1, 2, 3]


def test_jax_is_asked_for_numbers_only_where_a_line_is_written(run, monkeypatch):
    fetched = []
    fetch = jax.device_get
    monkeypatch.setattr(telemetry.jax, "device_get", lambda x: fetched.append(1) or fetch(x))
    window = Window(run, 0, None)
    for step in (1, 2, 3):
        window.add(metrics_of(), step)
    assert not fetched
    window.close(3)
    assert len(fetched) == 1
