"""Launchers of shares without our own engine: Slurm arrays, Snakemake, and Ray on Kubernetes."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from geneformer_jax.cells.store.cell_store import CellStore
from tests.helpers.commands import run_command
from tests.helpers.small_stores import same_stores
from tests.helpers.toy import toy_cells, toy_vocabulary

PROJECT = Path(__file__).resolve().parents[1]
LAUNCH = PROJECT / "launch"
SLURM, SNAKEFILE = LAUNCH / "slurm_array.sh", LAUNCH / "Snakefile"
RAY_JOB = LAUNCH / "ray_cluster.yaml"
NAMES = r"\b(tokenize|build_vocabulary|embed|perturb|attend|predict)"
FLAGS = r"((?: +(?:\\\n#? +)?--\w+=?\S*)+)"
# Of KubeRay's ray.io/v1: what a job, a cluster and its groups may say.
JOB = {
    "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit",
    "rayClusterSpec",
}  # fmt: skip
CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.mark.parametrize("launcher", [SLURM, SNAKEFILE, RAY_JOB], ids=lambda path: path.stem)
def test_flags_are_those_the_commands_have(launcher, monkeypatch, capsys):
    text = re.sub(r">-\s+", "", launcher.read_text())
    calls = re.findall(NAMES + FLAGS, " ".join(text.split("\n    ")))
    assert calls
    for name, flags in calls:
        _, usage, _ = run_command(name, ["--help"], monkeypatch, capsys)
        assert set(re.findall(r"--(\w+)", flags)) <= set(re.findall(r"^  --(\w+)", usage, re.M))


@pytest.mark.parametrize(
    ("slurm", "last"),
    [
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, "--shard=3/8"),
        # Of a few that are given again the count says nothing of all.
        ({"SLURM_ARRAY_TASK_ID": "17", "SLURM_ARRAY_TASK_COUNT": "2", "SHARES": "200"},
         "--shard=17/200"),
        ({}, "--finish"),
    ],
)  # fmt: skip
def test_slurm_gives_each_task_its_share_and_joins_behind_the_array(slurm, last, tmp_path):
    (tmp_path / "python").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python"), **slurm}
    command = ["bash", SLURM, "embed", "--cells=my cells", "--output=out.npy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wanted = ["-m", "geneformer_jax.embed", "--cells=my cells", "--output=out.npy", last]
    assert done.stdout.splitlines() == wanted


def test_slurm_asks_for_a_command():
    done = subprocess.run(["bash", SLURM], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the name of a command" in done.stderr


def test_kubernetes_runs_a_worker_on_each_machine():
    job = yaml.safe_load(RAY_JOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for found, known in ((job["spec"], JOB), (cluster, CLUSTER), (workers, GROUP), (head, GROUP)):
        assert set(found) <= known
    # Kubernetes and Ray take texts where YAML would make numbers of them.
    assert all(isinstance(value, str) for value in head["rayStartParams"].values())
    assert workers["minReplicas"] == workers["replicas"] == workers["maxReplicas"]
    flags = dict(re.findall(r"--(\w+)=(\S+)", job["spec"]["entrypoint"].partition(" -- ")[0]))
    assert int(flags["workers"]) == workers["replicas"] <= int(flags["shares"]) / 20
    mounted = [
        mount["mountPath"]
        for group in (head, workers)
        for each in group["template"]["spec"]["containers"]
        for mount in each["volumeMounts"]
    ]
    paths = re.findall(r"=(/\w+)/", job["spec"]["entrypoint"])
    assert mounted == ["/data", "/data"] and set(paths) == {"/data"}


@pytest.fixture(scope="session")
def snakemake(tmp_path_factory) -> Path:
    """Snakemake's own, or one in an environment for it: it wants older packages than we do."""
    if found := shutil.which("snakemake"):
        return Path(found)
    folder = tmp_path_factory.mktemp("snakemake")
    venv.create(folder, with_pip=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "snakemake>=9"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Snakemake cannot be installed: {done.stderr.splitlines()[-1]}")
    return folder / "bin" / "snakemake"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_snakemake_makes_the_store_of_one_process(snakemake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toy_vocabulary().save(tmp_path / "vocabulary")
    toy_cells(30).write_h5ad("a.h5ad")
    toy_cells(40, seed=1).write_h5ad("b.h5ad")
    flags = ["--counts=a.h5ad,b.h5ad", "--vocabulary=vocabulary", "--prefix_cell_ids"]
    status, _, error = run_command("tokenize", [*flags, "--output=one"], monkeypatch, capsys)
    assert status == 0, error
    command = " ".join(["tokenize", *flags, "--output=many"])
    asked = ["shares=2", f"python={sys.executable}", f"command={command}"]
    done = subprocess.run(
        [snakemake, "--snakefile", SNAKEFILE, "--cores", "2", "--config", *asked],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    same_stores(CellStore.open(tmp_path / "many"), CellStore.open(tmp_path / "one"))
