"""Short pretraining runs, in this process or in one of their own, and what they leave."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from geneformer_jax.model.pretrained import load_model
from geneformer_jax.training.config import PretrainConfig, typed_config
from tests.helpers.xla import QUICK_COMPILING

PROJECT = Path(__file__).parents[2]
XLA_FLAGS = QUICK_COMPILING
# As in this process, so that both compute the same bits and share compiled programs.
SAME_DEVICES = "--xla_force_host_platform_device_count=8"
CONFIG = """
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.training.config import pretrain_config

def get_config():
    model = EncoderConfig(1, 2, 32, 4, 64, 256, dropout=0.1, attention_dropout=0.1)
    config = pretrain_config(model, vocabulary_size=0)
    config.mesh.data = 1
    config.data.cells_per_batch = 8
    config.data.max_buckets = 1
    config.steps = 12
    config.optimizer.warmup_steps = 4
    config.checkpoint.every_steps = 3
    config.evaluation.held_out_cells = 24
    config.evaluation.every_steps = 6
    config.log_every_steps = 2
    return config
"""


def config_of(store, **changes) -> PretrainConfig:
    space: dict = {}
    exec(CONFIG, space)
    config = space["get_config"]()
    config.data.store = str(store.folder)
    config.update_from_flattened_dict(changes)
    return typed_config(config)


def start_pretraining(config: Path, store, workdir: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{SAME_DEVICES} {XLA_FLAGS}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "geneformer_jax.pretrain", f"--config={config}"]
    command += [f"--config.data.store={store.folder}", f"--workdir={workdir}"]
    return subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen, lines: int = 0) -> None:
    """Waits until a file is there, with at least so many lines, while the process runs."""
    deadline = time.monotonic() + 300
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None, f"ended too early: {process.stderr.read()}"
        assert time.monotonic() < deadline, f"no {path} after 5 minutes"
        time.sleep(0.01)


def parameters(workdir: Path) -> dict:
    return jax.device_get(load_model(workdir).params)


def assert_identical(one: dict, other: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)
