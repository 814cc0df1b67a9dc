"""Fine-tuning in two real processes of four devices each, against one process of eight."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification.config import CELL, task_config
from geneformer_jax.finetuning.run import FinetuneRun
from geneformer_jax.interop.load import load_model
from geneformer_jax.model.processes import join_processes
from geneformer_jax.training.telemetry import read_metrics
from tests.helpers.labelled_tasks import quick_config, save_base
from tests.helpers.xla import QUICK_COMPILING

PROJECT = Path(__file__).parents[2]
CONFIG = "from tests.finetuning.test_processes import {} as get_config\n"
FOLD = Path("networks") / "Geneformer" / "fold_0"


def configuration():
    """The best of several evaluations is kept, and the network learns shuffled labels too."""
    changes = {
        "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "steps": 12, "stopping.best": True,
        "stopping.every_steps": 4,
    }  # fmt: skip
    config = quick_config(**changes)
    options = {"folds": 1, "valid_fraction": 0.125, "controls": ("network",), "baselines": False}
    config.task = task_config(CELL, label="kind", **options)
    return config


def of_an_adapter():
    """The weights below are frozen, and the last ones are kept."""
    config = configuration()
    config.update_from_flattened_dict(
        {"tuning.lora_rank": 2, "stopping.best": False, "task.controls": ()}
    )
    return config


def run_two(kind: str, arguments: list[str], tmp_path: Path) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "config.py").write_text(CONFIG.format(kind))
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {QUICK_COMPILING}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(PROJECT),
        "COMMAND": "finetune",
        "PROCESSES": "2",
        "PORT": str(port),
        "PYTHON": sys.executable,
    }
    command = ["bash", PROJECT / "launch" / "local.sh", f"--config={tmp_path}/config.py"]
    return subprocess.run(
        [*command, *arguments], cwd=PROJECT, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", [configuration, of_an_adapter])
def test_two_processes_give_what_one_gives(toy_store, tmp_path, kind):
    base = save_base(tmp_path / "base")
    given = [f"--checkpoint={base}", f"--config.data.store={toy_store.folder}"]
    given += [f"--workdir={tmp_path / 'two'}"]
    done = run_two(kind.__name__, given, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("verdict: ") == 1, "only the first process speaks"

    config = kind()
    config.data.store = str(toy_store.folder)
    FinetuneRun.open(config.to_dict(), load_model(base)).run(tmp_path / "one")
    one, two = (load_model(tmp_path / name / FOLD) for name in ("one", "two"))
    assert one.step == two.step
    # Attention does not depend on this bias, so that its gradient is nothing but rounding.
    for model in (one, two):
        del model.params["blocks"]["key"]["bias"]
    near = {"rtol": 0, "atol": 5e-5}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, **near), one.params, two.params)
    folders = sorted((tmp_path / "one" / "networks").glob("*/fold_0"))
    assert len(folders) == (2 if kind is configuration else 1)
    for folder in [each.relative_to(tmp_path / "one") for each in folders]:
        rows = [read_metrics(tmp_path / name / folder) for name in ("one", "two")]
        for a, b in zip(*rows, strict=True):
            for name in a:
                if name.endswith(("loss", "accuracy", "norm", "f1")):
                    assert b[name] == pytest.approx(a[name], rel=1e-4), name
    for name in ("predictions/Geneformer.parquet", "results.csv"):
        read = pd.read_csv if name.endswith("csv") else pd.read_parquet
        tables = [read(tmp_path / folder / name) for folder in ("one", "two")]
        pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-4)


def test_a_search_in_several_processes_is_refused(toy_store, tmp_path, monkeypatch):
    config = configuration()
    config.data.store = str(toy_store.folder)
    run = FinetuneRun.open(config.to_dict(), None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="a search runs in one process"):
        run.search(tmp_path / "search", 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((2, 2, "host:1"), "`process` is 2, but must be 0 to 1"),
        ((2, 0, ""), "`coordinator` is mis"),
    ],
)
def test_processes_that_cannot_meet_are_told_before_they_wait(given, words):
    with pytest.raises(InputError, match=words):
        join_processes(*given)
