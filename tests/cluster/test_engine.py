"""Commands shared out among Ray's workers on this machine: the bytes of one process."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import geneformer_jax as gf
from geneformer_jax.cluster import handing_out
from geneformer_jax.cluster.ray_cluster import connected
from geneformer_jax.model.pretrained import save_model
from tests.helpers.commands import run_command
from tests.helpers.perturb_runs import make_model
from tests.helpers.toy import toy_cells, toy_vocabulary

pytestmark = pytest.mark.multiprocess
# How Ray calls the processes of tasks and of actors.
AT_WORK = (b"ray::perform", b"ray::Keeper.perform")


@pytest.fixture(scope="module")
def two_workers(needs_ray):
    with connected("", 2) as ray:
        yield ray


def contents(folder: Path) -> dict[str, object]:
    """Every file of a folder by its name; of provenance what is not of time and process."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".html"
    }  # fmt: skip
    provenance = json.loads(found.pop("provenance.json"))
    return {**found, "provenance.json": {**provenance, "written_at": None, "device": None}}


@pytest.fixture
def one_process(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in a folder of its own; returns what it wrote."""

    def run(name: str, *arguments: str) -> dict[str, object]:
        (tmp_path / "one").mkdir()
        with monkeypatch.context() as there:
            there.chdir(tmp_path / "one")
            status, _, error = run_command(name, list(arguments), there, capsys)
        assert status == 0, error
        return contents(tmp_path / "one" / "out")

    return run


@pytest.fixture
def many(tmp_path, monkeypatch, two_workers):
    """Runs a command in shares, in a folder of its own; returns what it wrote."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))

    def run(name: str, *arguments: str, shares: int, folder: str = "many") -> dict[str, object]:
        (tmp_path / folder).mkdir(exist_ok=True)
        with monkeypatch.context() as there:
            there.chdir(tmp_path / folder)
            gf.cluster.run([name, *arguments], shares=shares, workers=2)
        return contents(tmp_path / folder / "out")

    return run


@pytest.fixture(scope="module")
def tokenizing(tmp_path_factory) -> list[str]:
    """The command on a dozen files."""
    folder = tmp_path_factory.mktemp("counts")
    toy_vocabulary().save(folder / "vocabulary")
    for file in range(12):
        toy_cells(20 + file, seed=file).write_h5ad(folder / f"{file}.h5ad")
    counts = [f"--counts={folder}/*.h5ad", f"--vocabulary={folder / 'vocabulary'}"]
    return ["tokenize", *counts, "--output=out", "--prefix_cell_ids"]


@pytest.fixture
def killer(monkeypatch):
    """Kills workers of ours while they make shares, at random moments; returns those killed."""

    def begin(most: int) -> list[int]:
        killed: list[int] = []
        ended = threading.Event()
        real = handing_out.make_shares

        def make_shares(*given):
            thread = threading.Thread(target=_kill, args=(most, killed, ended))
            thread.start()
            try:
                real(*given)
            finally:
                ended.set()
                thread.join()

        monkeypatch.setattr(handing_out, "make_shares", make_shares)
        return killed

    return begin


def _kill(most: int, killed: list[int], ended: threading.Event) -> None:
    moments = np.random.default_rng()
    while len(killed) < most and not ended.is_set():
        for worker in set(_workers_at_work()) - set(killed):
            ended.wait(moments.uniform(0, 0.2))
            if len(killed) < most:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)
        ended.wait(0.005)


def _workers_at_work() -> Iterator[int]:
    """Processes of the Ray of this process that do a step."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(AT_WORK):
                raylet = _parent(int(folder.name))
                if _parent(raylet) == os.getpid():
                    yield int(folder.name)


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_ray_keeps_to_this_machine(two_workers):
    assert [node["NodeManagerAddress"] for node in two_workers.nodes()] == ["127.0.0.1"]


@pytest.mark.slow
def test_a_third_of_the_workers_is_killed(many, one_process, tokenizing, killer, capsys):
    expected = one_process(*tokenizing)
    killed = killer(4)
    assert many(*tokenizing, shares=12) == expected
    assert len(killed) == 4
    assert "raylet" not in "".join(capsys.readouterr())


@pytest.mark.slow
def test_workers_that_die_again_and_again(many, one_process, tokenizing, killer, monkeypatch):
    expected = one_process(*tokenizing)
    with monkeypatch.context():
        killer(100)
        told = r"2 of 2 shares failed 3 times each: 0/2 \(its worker was killed, or crashed\), 1/2"
        with pytest.raises(gf.InputError, match=told):
            many(*tokenizing, shares=2)
    monkeypatch.undo()
    assert many(*tokenizing, shares=2) == expected


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--counts=nowhere.h5ad", "nowhere.h5ad"),
        ("--shard=0/2", "--shard is of one process"),
    ],
)
def test_bad_input_is_told_as_the_command_does(flag, told, many, tokenizing):
    with pytest.raises(gf.InputError, match=told):
        many(*tokenizing, flag, shares=3)


@pytest.mark.slow
def test_perturbation_and_programs_that_are_compiled_once(
    many, one_process, killer, toy_store, tmp_path
):
    checkpoint = save_model(make_model(), tmp_path / "model", {"command": "test"})
    command = [
        "perturb", f"--checkpoint={checkpoint}", f"--cells={toy_store.folder}", "--output=out",
        "--max_cells=4", "--statistics=none", "--tokens_per_device=256",
    ]  # fmt: skip
    expected = one_process(*command)
    assert many(*command, shares=3) == expected
    compiled = sorted(os.listdir(tmp_path / "compiled"))
    assert compiled
    killed = killer(2)
    assert many(*command, shares=5, folder="again") == expected
    assert len(killed) == 2
    assert sorted(os.listdir(tmp_path / "compiled")) == compiled
