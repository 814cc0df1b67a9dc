"""Two real processes of four devices each, through the launcher, against one process of eight."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from geneformer_jax.model.pretrained import load_model
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.telemetry import read_metrics
from tests.helpers.pretrain_runs import CONFIG, config_of
from tests.helpers.xla import QUICK_COMPILING

PROJECT = Path(__file__).parents[2]
CHANGES = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "steps": 4}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_give_what_one_gives(toy_store, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {QUICK_COMPILING}",
        "JAX_PLATFORMS": "cpu",
        "PROCESSES": "2",
        "PORT": str(port),
        "PYTHON": sys.executable,
    }
    command = ["bash", PROJECT / "launch" / "local.sh", f"--config={config}"]
    command += [f"--config.data.store={toy_store.folder}", f"--workdir={tmp_path / 'two'}"]
    command += [f"--config.{name}={value}" for name, value in CHANGES.items()]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("model: ") == 1, "only the first process speaks"

    expected = pretrain(config_of(toy_store, **CHANGES), tmp_path / "one")
    weights = jax.device_get(load_model(tmp_path / "two").params)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(two, one, atol=5e-5),
        jax.device_get(expected.state.params),
        weights,
    )
    rows = [read_metrics(tmp_path / folder) for folder in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        shared = [name for name in one if name.endswith(("loss", "accuracy", "norm", "padding"))]
        assert shared
        for name in shared:
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
