"""The launchers: sound shell, flags that the commands know, and what they do when a job stops."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from geneformer_jax.training.config import typed_config
from tests.helpers.commands import run_command

PROJECT = Path(__file__).resolve().parents[1]
LAUNCH = PROJECT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
PRETRAINING = [path for path in SCRIPTS if "geneformer_jax.pretrain" in path.read_text()]
MANIFEST = LAUNCH / "kubernetes_gpu.yaml"


def named(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def shellcheck() -> str:
    beside_python = Path(sys.executable).with_name("shellcheck")
    found = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if not found:
        pytest.skip('no shellcheck: install the test extra, pip install "geneformer_jax[test]"')
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_shellcheck_finds_nothing(script, shellcheck):
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("launcher", [*SCRIPTS, MANIFEST], ids=named)
def test_every_launcher_has_its_command_at_the_top(launcher):
    head = launcher.read_text().split("\n\n")[0]
    assert f"launch/{launcher.name}" in head


@pytest.mark.parametrize("launcher", [*PRETRAINING, MANIFEST, LAUNCH / "README.md"], ids=named)
def test_flags_and_keys_are_those_the_door_has(launcher, monkeypatch, capsys):
    _, usage, _ = run_command("pretrain", ["--help"], monkeypatch, capsys)
    known = set(re.findall(r"^  --(\w+)", usage, re.M))
    text = launcher.read_text()
    # Flags of the command stand behind its name; gcloud and pip have their own.
    calls = re.findall(r"geneformer_jax\.pretrain((?:[^\n]*\\\n)*[^\n]*)", text)
    calls += re.findall(rf"# +.*launch/{launcher.name}((?:[^\n]*\\\n)*[^\n]*)", text)
    given = re.findall(r"--([\w.]+)", " ".join(calls) if launcher != MANIFEST else text)
    assert given
    configs = re.findall(r"--config=(configs/\w+\.py)", text)
    keys = [flag.removeprefix("config.") for flag in given if flag.startswith("config.")]
    assert {flag for flag in given if not flag.startswith("config.")} <= known
    for path in configs:
        config = runpy.run_path(str(PROJECT / path))["get_config"]()
        for key in keys:
            _follow(config, key)


def _follow(config, key: str) -> None:
    """Fails with KeyError if a configuration has no such dotted key."""
    for part in key.split("."):
        config = config[part]


def container() -> dict:
    job_set = yaml.safe_load(MANIFEST.read_text())
    job = job_set["spec"]["replicatedJobs"][0]
    (found,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return found


def test_the_manifest_starts_as_many_pods_as_it_tells_the_door():
    job_set = yaml.safe_load(MANIFEST.read_text())
    assert job_set["kind"] == "JobSet"
    job = job_set["spec"]["replicatedJobs"][0]
    pods = job["template"]["spec"]
    command = container()["command"]
    assert command[:3] == ["python", "-m", "geneformer_jax.pretrain"]
    assert f"--processes={pods['completions']}" in command
    assert pods["completions"] == pods["parallelism"]
    assert pods["completionMode"] == "Indexed"
    assert "--process=$(JOB_COMPLETION_INDEX)" in command
    name = job_set["metadata"]["name"]
    port = container()["ports"][0]["containerPort"]
    coordinator = f"{name}-{job['name']}-0-0.{name}:{port}"
    assert f"--coordinator={coordinator}" in command


def test_the_manifests_batch_can_be_shared_by_its_gpus():
    manifest = container()
    (path,) = (flag.removeprefix("--config=") for flag in manifest["command"] if "config=" in flag)
    config = runpy.run_path(str(PROJECT / path))["get_config"]()
    changed = [flag for flag in manifest["command"] if flag.startswith("--config.data.tokens")]
    config.data.tokens_per_batch = int(changed[0].partition("=")[2])
    devices = 2 * manifest["resources"]["limits"]["nvidia.com/gpu"]
    longest = typed_config(config).model["positions"]
    assert config.data.tokens_per_batch % (devices * longest) == 0


def stand_ins(folder: Path, **programs: str) -> dict[str, str]:
    """Puts small scripts in place of programs that are not here; returns the environment."""
    folder.mkdir()
    for name, body in programs.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(folder / "log")}


@pytest.mark.parametrize(
    ("status", "requeued", "exit_status"), [(143, True, 0), (0, False, 0), (1, False, 1)]
)
def test_slurm_queues_a_stopped_job_again_and_no_other(tmp_path, status, requeued, exit_status):
    environment = stand_ins(
        tmp_path / "bin",
        srun=f'echo "srun $*" >> "$LOG"; exit {status}',
        scontrol='echo "scontrol $*" >> "$LOG"',
    )
    command = ["bash", LAUNCH / "slurm_v100.sh", "--workdir=my run"]
    done = subprocess.run(command, env={**environment, "SLURM_JOB_ID": "7"})
    log = (tmp_path / "bin" / "log").read_text()
    assert done.returncode == exit_status
    assert "-m geneformer_jax.pretrain --config=configs/pretrain_v1_10m_v100.py" in log
    assert log.splitlines()[0].endswith("--processes=0 --workdir=my run")
    assert ("scontrol requeue 7" in log) == requeued


def test_slurm_starts_a_process_for_each_gpu_of_the_papers_setup():
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", (LAUNCH / "slurm_v100.sh").read_text()))
    assert asked["nodes"] == "3"
    assert asked["gres"] == f"gpu:v100:{asked['ntasks-per-node']}" == "gpu:v100:4"


def test_a_tpu_slice_is_made_once_and_every_host_gets_the_arguments(tmp_path):
    environment = stand_ins(
        tmp_path / "bin", gcloud='echo "$*" >> "$LOG"; [[ "$*" != *describe* || -e "$LOG.made" ]]'
    )
    environment |= {"NAME": "mine", "ZONE": "here", "TYPE": "v5litepod-256"}
    command = ["bash", LAUNCH / "tpu_slice.sh", "--workdir=/mnt/my run"]
    log = tmp_path / "bin" / "log"
    for made in (False, True):
        log.unlink(missing_ok=True)
        subprocess.run(command, env=environment, check=True)
        text = log.read_text()
        assert ("tpu-vm create mine" in text) != made
        assert "--worker=all" in text
        assert "geneformer_jax.pretrain --processes=0 '--workdir=/mnt/my run'" in text
        Path(f"{log}.made").touch()


def test_a_tpu_slice_needs_its_name():
    bare = {"PATH": os.environ["PATH"], "ZONE": "here", "TYPE": "v5litepod-8"}
    script = ["bash", LAUNCH / "tpu_slice.sh"]
    done = subprocess.run(script, env=bare, capture_output=True, text=True)
    assert done.returncode == 1
    assert "NAME: the name of the slice" in done.stderr
