"""Whatever happens to a run, it resumes: other devices, other processes, damage, kills."""

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import remove
from geneformer_jax.model.pretrained import CHECKPOINTS, describe_model, load_model
from geneformer_jax.training import checkpoint
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.checkpoint import DAMAGED, Checkpoints
from geneformer_jax.training.config import CheckpointConfig, PretrainConfig
from geneformer_jax.training.run import Run, prepare_run
from geneformer_jax.training.state import INITIAL_SCALE, TrainState
from geneformer_jax.training.telemetry import read_metrics
from tests.helpers.pretrain_runs import (
    CONFIG,
    PROJECT,
    XLA_FLAGS,
    assert_identical,
    config_of,
    parameters,
    start_pretraining,
    wait_for,
)

# Eight steps, saved after 4 and 8; a line of metrics for each.
BASE = {
    "steps": 8,
    "checkpoint.every_steps": 4,
    "log_every_steps": 1,
    "evaluation.held_out_cells": 0,
}
MESHES = {
    "one device": {"mesh.data": 1},
    "data 8": {"mesh.data": 8},
    "fsdp 4": {"mesh.data": 1, "mesh.fsdp": 4},
    "tensor 4": {"mesh.data": 1, "mesh.tensor": 4},
    "all three": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
}


def config_on(store, mesh: str, **changes) -> PretrainConfig:
    return config_of(store, **BASE, **MESHES[mesh], **changes)


@pytest.fixture(scope="module")
def undisturbed(toy_store, tmp_path_factory):
    """Workdirs of whole runs, by mesh; made when asked for."""
    made: dict[str, Path] = {}

    def run(mesh: str) -> Path:
        if mesh not in made:
            made[mesh] = tmp_path_factory.mktemp("undisturbed") / "run"
            pretrain(config_on(toy_store, mesh), made[mesh])
        return made[mesh]

    return run


def copy_up_to(workdir: Path, step: int, target: Path) -> Path:
    """A copy of a run as it was when it had saved `step`."""
    shutil.copytree(workdir, target)
    for folder in (target / CHECKPOINTS).iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    return target


def losses(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(workdir) if "loss" in row}


def assert_same_losses(workdir: Path, expected: Path) -> None:
    ours, theirs = losses(workdir), losses(expected)
    assert list(ours) == list(theirs) == list(range(1, 9))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("data 8", "one device", marks=pytest.mark.slow),
        pytest.param("one device", "data 8", marks=pytest.mark.slow),
        pytest.param("fsdp 4", "tensor 4", marks=pytest.mark.slow),
        pytest.param("tensor 4", "all three", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_the_same_losses_on_another_mesh(
    undisturbed, toy_store, tmp_path, caplog, before, after
):
    caplog.set_level("INFO", logger="geneformer_jax")
    workdir = copy_up_to(undisturbed(before), 4, tmp_path / "run")
    result = pretrain(config_on(toy_store, after), workdir)
    assert "going on from the checkpoint at step 4" in caplog.text
    assert_same_losses(workdir, undisturbed(before))
    moment = result.state.optimizer[1][0].mu["blocks"]["up"]["kernel"]
    axes = MESHES[after].get("mesh.fsdp", 1), MESHES[after].get("mesh.tensor", 1)
    whole = moment.shape
    part = (whole[0], whole[1] // axes[0], whole[2] // axes[1])
    assert moment.sharding.shard_shape(whole) == part, "the optimizer's state is laid out anew"


def start_processes(
    store, workdir: Path, folder: Path, **changes: object
) -> list[subprocess.Popen]:
    """Two processes of four devices each, which share one run."""
    config = folder / "config.py"
    config.write_text(CONFIG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {XLA_FLAGS}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "geneformer_jax.pretrain", f"--config={config}"]
    command += [f"--config.data.store={store.folder}", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in changes.items()]
    command += ["--processes=2", f"--coordinator=127.0.0.1:{port}"]
    return [
        subprocess.Popen(
            [*command, f"--process={index}"],
            cwd=PROJECT,
            env=environment,
            stdout=(folder / f"process{index}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for index in range(2)
    ]


def statuses(processes: list[subprocess.Popen], folder: Path) -> list[int]:
    """Exit statuses of all; none outlives the test."""
    try:
        return [process.wait(timeout=300) for process in processes]
    except subprocess.TimeoutExpired:
        logs = "".join(path.read_text()[-2_000:] for path in sorted(folder.glob("process*.log")))
        raise AssertionError(f"a process hangs:\n{logs}") from None
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_goes_on_in_two_processes_and_then_in_one_again(undisturbed, toy_store, tmp_path):
    expected = undisturbed("one device")
    workdir = copy_up_to(expected, 4, tmp_path / "run")
    # Saving by the clock too: both processes must find that it is time at the same steps.
    changes = {"checkpoint.every_steps": 6, "checkpoint.every_minutes": 1e-9}
    changes = BASE | MESHES["all three"] | changes
    processes = start_processes(toy_store, workdir, tmp_path, **changes)
    log = tmp_path / "process0.log"
    assert statuses(processes, tmp_path) == [0, 0], log.read_text()
    assert "going on from the checkpoint at step 4" in log.read_text()
    assert_same_losses(workdir, expected)
    kept = sorted(int(folder.name) for folder in (workdir / CHECKPOINTS).iterdir())
    assert kept == [6, 7, 8], "the newest three of those saved after every line"

    back = copy_up_to(workdir, 6, tmp_path / "back")
    pretrain(config_on(toy_store, "one device"), back)
    assert_same_losses(back, expected)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(toy_store, tmp_path, asked):
    workdir = tmp_path / "run"
    changes = {"mesh.data": 8, "steps": 100_000, "checkpoint.every_steps": 99_999}
    changes["evaluation.held_out_cells"] = 0
    processes = start_processes(toy_store, workdir, tmp_path, **changes)
    wait_for(workdir / "metrics.jsonl", processes[0], lines=1)
    processes[asked].send_signal(signal.SIGTERM)
    assert statuses(processes, tmp_path) == [143, 143], (tmp_path / "process0.log").read_text()
    last = read_metrics(workdir)[-1]["step"]
    assert [folder.name for folder in (workdir / CHECKPOINTS).iterdir()] == [str(last)]
    assert load_model(workdir).step == last > 0


@pytest.mark.slow
def test_checkpoints_by_minutes_are_looked_for_at_every_line(toy_store, tmp_path):
    changes = {"steps": 7, "log_every_steps": 3, "checkpoint.every_minutes": 1e-9}
    changes |= {"checkpoint.every_steps": 1_000, "evaluation.held_out_cells": 0}
    pretrain(config_of(toy_store, **changes), tmp_path / "minutes")
    saved = {folder.name for folder in (tmp_path / "minutes" / CHECKPOINTS).iterdir()}
    assert saved == {"3", "6", "7"}


def test_the_clock_decides_only_after_so_many_minutes(toy_store, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("geneformer_jax.training.checkpoint.time.monotonic", lambda: now[0])
    config = CheckpointConfig(every_steps=100, every_minutes=5)
    with Checkpoints(tmp_path / "minutes", config, {}) as checkpoints:
        now[0] = 299.0
        assert not checkpoints.due(1, clock=True)
        now[0] = 301.0
        assert checkpoints.due(1, clock=True)
        assert not checkpoints.due(1, clock=False)
        assert checkpoints.due(200, clock=False)
    with Checkpoints(tmp_path / "never", CheckpointConfig(100, 0), {}) as checkpoints:
        now[0] = 1e9
        assert not checkpoints.due(1, clock=True)


def test_the_newest_and_every_so_many_steps_stay(tmp_path):
    config = CheckpointConfig(every_steps=1, keep=2, keep_every_steps=4)
    weights = {"kernel": jnp.zeros(3)}
    with Checkpoints(tmp_path / "run", config, {"model": "{}"}) as checkpoints:
        for step in range(1, 10):
            checkpoints.save(step, TrainState(jnp.int32(step), weights, weights))
    kept = {folder.name for folder in (tmp_path / "run").iterdir()}
    assert kept == {"4", "8", "9"}


def test_saves_leave_no_thread_behind(tmp_path):
    """Each would keep three file handles too: 330 checkpoints reach the usual limit of 1,024."""
    weights, threads = {"kernel": jnp.zeros(3)}, []
    config = CheckpointConfig(every_steps=1, keep=2)
    with Checkpoints(tmp_path / "run", config, {"model": "{}"}) as checkpoints:
        for steps in (range(1, 2), range(2, 8)):
            for step in steps:
                checkpoints.save(step, TrainState(jnp.int32(step), weights, weights))
            checkpoints.wait()
            threads.append(threading.active_count())
    # The last of those that write may be about to end.
    assert threads[1] <= threads[0] + 2, threads


def restore(workdir: Path, run: Run, **checkpoint: int):
    """The newest state that can be read, and the folder of checkpoints as it is after."""
    description = describe_model(run.encoder, run.store.vocabulary)
    with (
        jax.set_mesh(run.mesh),
        Checkpoints(
            workdir / CHECKPOINTS, CheckpointConfig(**checkpoint), description
        ) as checkpoints,
    ):
        state = checkpoints.restore_newest(run.abstract_state)
    return state, {folder.name for folder in (workdir / CHECKPOINTS).iterdir()}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def one_device_run(toy_store):
    return prepare_run(config_on(toy_store, "one device"), toy_store)


@pytest.mark.parametrize("damage", [empty, halve, Path.unlink])
@pytest.mark.parametrize("where", ["params/manifest.ocdbt", "optimizer/**/d/*", "params/_METADATA"])
def test_damage_is_named_put_aside_and_stepped_over(
    undisturbed, one_device_run, tmp_path, caplog, damage, where
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed("one device"), workdir)
    files = [each for each in (workdir / CHECKPOINTS / "8").glob(where) if each.is_file()]
    assert files
    for path in files:
        damage(path)
    state, names = restore(workdir, one_device_run)
    assert int(state.step) == 4
    assert "checkpoint 8 is damaged" in caplog.text
    assert names == {"4", f"{DAMAGED}8"}


def test_a_half_written_checkpoint_is_none(undisturbed, one_device_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed("one device"), workdir)
    newest = workdir / CHECKPOINTS / "8"
    newest.rename(newest.with_name("8.orbax-checkpoint-tmp"))
    state, names = restore(workdir, one_device_run)
    assert int(state.step) == 4
    assert names == {"4"}


@pytest.mark.parametrize("gone", [(), ("_CHECKPOINT_METADATA",), ("params", "meta"), ("*",)])
def test_what_a_killed_process_was_removing_is_removed(undisturbed, one_device_run, tmp_path, gone):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed("one device"), workdir)
    superseded = workdir / CHECKPOINTS / "2"
    shutil.copytree(superseded.with_name("4"), superseded)
    for pattern in gone:
        for path in superseded.glob(pattern):
            remove(path)
    _, names = restore(workdir, one_device_run, keep=1, keep_every_steps=4)
    assert names == {"4", "8"}


def test_what_cannot_be_removed_ends_no_run(undisturbed, one_device_run, tmp_path, monkeypatch):
    """A file system that shows names late says that a folder is not empty, or has no such file."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed("one device"), workdir)
    folder = workdir / CHECKPOINTS
    shutil.copytree(folder / "4", folder / "2")
    shutil.copytree(folder / "4", folder / "9.orbax-checkpoint-tmp")

    def removing(path):
        raise OSError(errno.ENOTEMPTY, "not empty", "meta")

    with monkeypatch.context() as failing:
        failing.setattr(checkpoint, "remove", removing)
        state, names = restore(workdir, one_device_run, keep=1, keep_every_steps=4)
        # Orbax would remove what has the name that the next save needs, and fail.
        assert (int(state.step), len(names)) == (8, 4)
        assert names > {"2", "4", "8"}
        assert "9.orbax-checkpoint-tmp" not in names
        with Checkpoints(folder, CheckpointConfig(keep=1, keep_every_steps=4), {"a": ""}) as more:
            for step in (9, 11):
                more.save(step, state)
    state, names = restore(workdir, one_device_run, keep=1, keep_every_steps=4)
    assert (int(state.step), names) == (11, {"4", "8", "11"})


def test_where_nothing_can_be_read_nothing_is_touched(undisturbed, one_device_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed("one device"), workdir)
    for path in workdir.rglob("manifest.ocdbt"):
        empty(path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"none of 2 checkpoints in .* can be read"):
            restore(workdir, one_device_run)
    assert {folder.name for folder in (workdir / CHECKPOINTS).iterdir()} == {"4", "8"}


def test_a_run_goes_on_in_float16_with_a_new_loss_scale(undisturbed, toy_store, tmp_path):
    workdir = copy_up_to(undisturbed("one device"), 4, tmp_path / "run")
    half = {"runtime.precision": "float16", "runtime.attention": "chunked"}
    run = prepare_run(config_on(toy_store, "one device", **half), toy_store)
    state, names = restore(workdir, run)
    assert names == {"4"}
    assert float(state.loss_scale.scale) == INITIAL_SCALE
    state, _ = restore(workdir, prepare_run(config_on(toy_store, "one device"), toy_store))
    assert state.loss_scale is None


def wait_for_training(workdir: Path, process: subprocess.Popen, before: int) -> None:
    """Waits until the loop has begun, which writes the metrics of earlier lives anew."""
    path = workdir / "metrics.jsonl"
    wait_for(path, process)
    while path.stat().st_mtime_ns == before:
        assert process.poll() is None, f"ended too early: {process.stderr.read()}"
        time.sleep(0.01)


def kill(process: subprocess.Popen, after: float) -> bool:
    """Kills a process after so many seconds; returns whether it still lived."""
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0, process.stderr.read()
    return False


@pytest.mark.slow
@pytest.mark.multiprocess
def test_twenty_kills_at_random_moments_leave_no_trace(toy_store, tmp_path, monkeypatch):
    # Without this most of each life would go into compiling the same programs again.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.replace("steps = 12", "steps = 60").replace("= 3\n", "= 1\n"))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for workdir in (tmp_path / "compiling", undisturbed):
        began = time.monotonic()
        process = start_pretraining(config, toy_store, workdir)
        wait_for_training(workdir, process, before=0)
        starting = time.monotonic() - began
        assert process.wait() == 0, process.stderr.read()
        training = time.monotonic() - began - starting

    draw, kills, metrics = random.Random(0), 0, killed / "metrics.jsonl"
    while kills < 20:
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        process = start_pretraining(config, toy_store, killed)
        if kills % 2:
            lived = kill(process, draw.uniform(0, starting))
        else:
            wait_for_training(killed, process, before)
            lived = kill(process, draw.uniform(0, training / 10))
        kills += lived
        if not lived:  # it came to its end: take back the last step
            shutil.rmtree(killed / CHECKPOINTS / "60")
    process = start_pretraining(config, toy_store, killed)
    assert process.wait() == 0, process.stderr.read()
    assert_identical(parameters(undisturbed), parameters(killed))
    assert losses(killed) == losses(undisturbed)
