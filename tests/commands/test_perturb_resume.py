"""The perturb command stopped, killed, shared or given again: the same tables, and nothing lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import geneformer_jax as gf
from geneformer_jax.common.errors import InputError
from geneformer_jax.model import pretrained
from geneformer_jax.perturbation import output as perturbation_output
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.run import PerturbationRun
from tests.helpers.commands import assert_one_line
from tests.helpers.perturb_runs import (
    GENES,
    assert_same_folders,
    command_on_five_cells,
    killed_at_the_second_part,
    make_model,
)
from tests.helpers.toy import toy_cells


@pytest.fixture(scope="module")
def model() -> pretrained.PretrainedModel:
    return make_model()


@pytest.fixture
def perturb(model, toy_store, tmp_path, monkeypatch, capsys):
    return command_on_five_cells(model, toy_store.folder, tmp_path, monkeypatch, capsys)


def test_the_same_command_again_does_nothing_and_another_is_refused(perturb, tmp_path):
    assert perturb()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    status, output, _ = perturb()
    assert status == 0 and "nothing to do" in output
    status, _, error = perturb("--hidden_layer=0")
    assert status == 1
    assert_one_line(error)
    assert "was not written by this command" in error
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_an_interrupted_run_goes_on_to_the_same_tables(perturb, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    assert perturb(f"--output={whole}", "--gene_shifts=means")[0] == 0
    with killed_at_the_second_part() as calls:
        status, _, error = perturb("--gene_shifts=means")
    assert status == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "out.parts", "whole"]
    # Options of how to compute may change; what is computed may not.
    status, _, error = perturb("--gene_shifts=means", "--hidden_layer=0")
    assert status == 1
    assert_one_line(error)
    assert "hidden_layer = -1, not 0" in error and "remove it" in error
    shifts = Perturber.shifts
    monkeypatch.setattr(Perturber, "shifts", lambda *a: (calls.append(a[1]), shifts(*a))[1])
    assert perturb("--gene_shifts=means", "--tokens_per_device=500")[0] == 0
    # The first part is not made again.
    assert calls.count(0) == 1
    assert_same_folders(tmp_path / "out", whole, exactly=False)


def test_cells_that_got_other_labels_meanwhile_are_refused(perturb, tmp_path):
    counts, states = tmp_path / "counts.h5ad", ("--states=kind", "--goal=b")
    adata = toy_cells(30)
    adata.write_h5ad(counts)
    with killed_at_the_second_part():
        assert perturb(f"--cells={counts}", *states)[0] == 130
    adata.obs["kind"] = adata.obs["kind"].to_numpy()[::-1]
    adata.write_h5ad(counts)
    status, _, error = perturb(f"--cells={counts}", *states)
    assert status == 1
    assert_one_line(error)
    assert "out.parts is of a run with another labels" in error and "remove it" in error


def test_a_damaged_table_is_made_again(perturb, tmp_path):
    whole = tmp_path / "whole"
    assert perturb(f"--output={whole}")[0] == 0
    assert perturb("--shard=0/2")[0] == 0
    part = sorted((tmp_path / "out.parts" / "shifts").iterdir())[0]
    content = part.read_bytes()
    part.write_bytes(content[:-9] + b"x" + content[-8:])
    status, output, error = perturb()
    assert status == 0, error
    assert f"{part} is damaged or gone" in output
    assert_same_folders(tmp_path / "out", whole)


def test_damaged_state_embeddings_are_made_again(perturb, tmp_path):
    states = ("--states=kind", "--start=a", "--goal=b")
    whole = tmp_path / "whole"
    assert perturb(*states, f"--output={whole}")[0] == 0
    assert perturb(*states, "--shard=0/2")[0] == 0
    path = tmp_path / "out.parts" / "states.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    status, output, error = perturb(*states)
    assert status == 0, error
    assert f"{path} is damaged or gone" in output
    assert_same_folders(tmp_path / "out", whole)


def test_shares_of_several_processes_join(perturb, tmp_path):
    whole = tmp_path / "whole"
    assert perturb(f"--output={whole}")[0] == 0
    with killed_at_the_second_part():
        assert perturb("--shard=1/2")[0] == 130
    status, _, error = perturb("--shard=1/2", "--hidden_layer=0")
    assert status == 1 and "hidden_layer = -1, not 0" in error
    assert perturb("--shard=1/2")[0] == 0
    status, _, error = perturb("--finish")
    assert status == 1
    assert_one_line(error)
    assert "parts are missing (0, 1" in error
    assert "run the same command with --shard=0/2, and then with --finish" in error
    assert perturb("--shard=0/2")[0] == 0
    assert not (tmp_path / "out").exists()
    status, _, error = perturb("--finish")
    assert status == 0, error
    assert_same_folders(tmp_path / "out", whole)


def planned(folder: Path, model, store, **options) -> PerturbationRun:
    chosen = PerturbationOptions(max_cells=2, **options)
    run = PerturbationRun(folder, chosen, {}, tokens_per_part=1_000)
    run.plan(model, str(store.folder), "float32", "auto", tokens_per_device=None)
    return run


def test_one_process_makes_many_shares_and_few_edits_are_shared(model, toy_store, tmp_path):
    genes = {"genes": GENES[:3]}
    whole, run = (planned(tmp_path / name, model, toy_store, **genes) for name in ("whole", "out"))
    assert whole.make()
    whole.finish()
    parts = tmp_path / "out.parts" / "shifts"
    assert run.planned.plan.edits == 4
    for shard, made in (((1, 2), 2), ((1, 2), 2), ((0, 4), 3), ((0, 2), 4)):
        assert run.make(shard)
        assert len(list(parts.iterdir())) == made
    run.finish()
    assert_same_folders(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
def test_one_process_makes_all_shares_of_a_screen_in_two_rounds(model, toy_store, tmp_path):
    states = {"column": "kind", "start": "a", "goal": "b"}
    options = {"states": states, "screen": True, "settle": 5, "split_points": 4}
    run, whole = (
        planned(tmp_path / name, model, toy_store, **options) for name in ("out", "whole")
    )
    shards = [(1, 2), (0, 2)]
    assert [run.make(shard) for shard in shards] == [False, True]
    with pytest.raises(InputError, match="with `shard`=1/2, and"):
        run.finish()
    assert run.make((1, 2))
    run.finish()
    assert whole.make()
    whole.finish()
    assert_same_folders(tmp_path / "out", tmp_path / "whole")


def test_a_command_killed_while_it_joins_can_be_given_again(perturb, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    assert perturb(f"--output={whole}")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(perturbation_output, "tidy", _die)
        assert perturb()[0] == 130
    assert (tmp_path / "out" / "plan.json").exists()
    status, output, _ = perturb()
    assert status == 0 and "nothing to do" in output
    assert not (tmp_path / "out" / "plan.json").exists()
    assert_same_folders(tmp_path / "out", whole)


def _die(*_):
    raise KeyboardInterrupt


_KILLED = """
import sys
import functools
import runpy
from geneformer_jax.perturbation import run
run.PerturbationRun = functools.partial(run.PerturbationRun, tokens_per_part=1_000)
sys.argv = ["geneformer_jax.perturb", *sys.argv[1:]]
runpy.run_module("geneformer_jax.perturb", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_killed_process_is_taken_up_to_identical_tables(model, toy_store, tmp_path):
    checkpoint = tmp_path / "model"
    pretrained.save_model(model, checkpoint, {})

    def command(output: str) -> list[str]:
        flags = {"checkpoint": checkpoint, "cells": toy_store.folder, "output": tmp_path / output}
        flags |= {"max_cells": 8, "gene_shifts": "means"}
        arguments = [f"--{name}={value}" for name, value in flags.items()]
        return [sys.executable, "-c", _KILLED, *arguments]

    environment = os.environ | {"PYTHONPATH": str(Path(gf.__file__).parents[1])}
    subprocess.run(command("whole"), env=environment, check=True, capture_output=True)
    process = subprocess.Popen(
        command("out"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    records = tmp_path / "out.parts" / "records"
    while process.poll() is None and len(list(records.glob("*.json"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    made = len(list(records.glob("*.json")))
    assert made >= 2
    subprocess.run(command("out"), env=environment, check=True, capture_output=True)
    assert_same_folders(tmp_path / "out", tmp_path / "whole")
    assert made < len(list((tmp_path / "whole" / "shifts").iterdir()))


def test_a_folder_of_someone_else_is_kept(perturb, tmp_path):
    (tmp_path / "out.parts").mkdir()
    (tmp_path / "out.parts" / "precious").write_text("precious")
    status, _, error = perturb()
    assert status == 1
    assert_one_line(error)
    assert "holds other files" in error
    assert [path.name for path in (tmp_path / "out.parts").iterdir()] == ["precious"]
