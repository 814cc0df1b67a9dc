"""The benchmark of accelerators: what it finds survives whatever goes wrong, and it runs here."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SCRIPT = PROJECT / "benchmarks" / "accelerator.py"


@pytest.fixture
def on_device(monkeypatch):
    """Returns what imports a module of the benchmark, as the script itself does."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return lambda name: importlib.import_module(f"on_device.{name}")


def run_whole(tmp_path, on_device, *stages, seconds=60.0):
    module = on_device("stages")
    report = module.Report(tmp_path / "found.json", {"versions": {}})
    module.run_stages(stages, 7, report, time.monotonic() + seconds)
    return {
        each["name"]: each for each in json.loads((tmp_path / "found.json").read_text())["stages"]
    }


def stage(on_device, name, least_s=0.0, most_s=30.0):
    function = f"tests.helpers.stages_that_fail:{name}"
    return on_device("stages").Stage(name, function, least_s, most_s, library="")


@pytest.mark.slow
def test_what_goes_wrong_costs_no_other_stage(tmp_path, on_device):
    names = "raises", "crashes", "hangs", "good"
    stages = [stage(on_device, name, most_s=8.0) for name in names]
    left_out = stage(on_device, "good", least_s=1_000.0)._replace(name="left out")
    found = run_whole(tmp_path, on_device, *stages, left_out)
    assert {name: each["status"] for name, each in found.items()} == {
        "raises": "failed",
        "crashes": "failed",
        "hangs": "cut off",
        "good": "done",
        "left out": "left out",
    }
    before = [{"name": "before", "value": 1}]
    assert all(found[name]["rows"] == before for name in names[:3])
    assert found["good"]["rows"] == [
        {"name": "second", "value": 7},
        {"name": "first", "value": 1},
    ]
    assert found["raises"]["said"] == "ValueError: no such thing (stages_that_fail.py:16)"
    assert f"status {-signal.SIGSEGV}" in found["crashes"]["said"]
    assert 5 < found["hangs"]["seconds"] < 20


def test_a_verdict_lets_no_nan_pass(on_device):
    verdicts = on_device("verdicts")
    nan = float("nan")
    assert verdicts.verdict("x", {"a": 1.0, "b": 0.5}, {"a": 1.0, "b": 0.5})["passed"]
    assert not verdicts.verdict("x", {"a": 1.1, "b": 0.5}, {"a": 1.0, "b": 0.5})["passed"]
    row = verdicts.verdict("x", {"a": 0.0, "b": nan}, 1.0)
    assert not row["passed"]
    assert row["errors"] == {"a": 0.0, "b": "nan"}
    assert not verdicts.verdict("x", {"a": verdicts.largest([0.0, nan], [0.0, 1.0])}, 1.0)["passed"]
    pairs = [[0.0], [nan]], [[0.0], [0.0]]
    assert not verdicts.verdict("x", {"a": verdicts.largest_of(*pairs)}, 1.0)["passed"]


def test_the_table_names_devices_speeds_verdicts_and_what_is_missing(on_device):
    rates = on_device("timing").rates
    rows = [
        rates("steps", "cells/s", 10, [2.0, 1.0, 4.0], mfu=0.25, aim_mfu=0.4, batch=8),
        {"name": "fine", "passed": True, "errors": {"out": 1e-4}, "bounds": {"out": 2e-3}},
        {"name": "off", "passed": False, "errors": {"out": "nan"}, "bounds": {"out": 2e-3}},
        {"name": "broken", "passed": False, "failed": "ValueError: x"},
        {"name": "one", "left_out": "needs a TPU"},
        {"name": "two", "left_out": "needs a TPU"},
    ]
    found = {
        "began": "2026-11-29 12:00", "sizes": "tiny", "seconds": 9.0, "budget_s": 480.0,
        "peak": "Peaks.", "versions": {"jax": "0.11.2"},
        "devices": {"jax": {"device": "NVIDIA H200"}},
        "stages": [
            {"name": "train", "status": "done", "seconds": 5.0, "rows": rows},
            {"name": "embed", "status": "left out", "said": "3 s", "seconds": 0.0, "rows": []},
        ],
    }  # fmt: skip
    lines = on_device("table").table(found)
    assert "NVIDIA H200 (jax); jax 0.11.2" in lines[0]
    assert "| train | steps | 5 cells/s | 2.5 to 10 (3) | 0.25 | MFU 0.4 | batch 8 |" in lines
    assert "| fine | right | out 0.0001 of 0.002 |" in lines
    assert "| off | **WRONG** | out nan of 0.002 |" in lines
    assert "| broken | **WRONG** | ValueError: x |" in lines
    assert lines[-2:] == ["- embed: left out, 3 s", "- one; two: needs a TPU"]


def start(tmp_path, *options):
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, SCRIPT, "--tiny", f"--out={tmp_path / 'found.json'}", *options],
        cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_every_stage_runs_here_and_every_check_is_right(tmp_path):
    process = start(tmp_path, "--budget=3000")
    text, _ = process.communicate()
    assert process.returncode == 0
    found = json.loads((tmp_path / "found.json").read_text())
    stages = found["stages"]
    if not importlib.util.find_spec("torch"):
        stages = [each for each in stages if "PyTorch" not in each["name"]]
    assert {each["name"]: each.get("said", "") for each in stages if each["status"] != "done"} == {}
    rows = [row for each in stages for row in each["rows"]]
    checks = [row for row in rows if "passed" in row]
    assert [row for row in checks if not row["passed"]] == []
    assert len(checks) > 25
    assert len([row for row in rows if "median" in row]) > 20
    assert "| train V2-104M | V2-104M, 2 x 64 tokens |" in text


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_found_survives_a_kill(tmp_path, how):
    path, deadline = tmp_path / "found.json", time.monotonic() + 300
    process = start(tmp_path, "--stages=attention is right")
    while not (path.exists() and '"passed"' in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(how)
    text, _ = process.communicate()
    (attention,) = json.loads(path.read_text())["stages"]
    assert attention["rows"][0]["passed"]
    shown = subprocess.run(
        [sys.executable, SCRIPT, f"--show={path}"],
        cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "| right |" in shown.stdout
    assert (how == signal.SIGTERM) == (shown.stdout in text)
