"""Commands shared out among Ray's workers on this machine: the bytes of one process."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

import geneformer_jax as gf
from geneformer_jax.cluster.ray_cluster import connected
from geneformer_jax.model.pretrained import save_model
from tests.helpers.commands import run_command
from tests.helpers.perturb_runs import make_model

# Not imported here: what Ray reads of the environment then, the project sets.
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="no Ray"),
]


@pytest.fixture(scope="module")
def two_workers():
    with connected("", 2) as ray:
        yield ray


def contents(folder: Path) -> dict[str, object]:
    """Every file of a folder by its name; of provenance what does not tell the time."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".html"
    }  # fmt: skip
    provenance = json.loads(found.pop("provenance.json"))
    return {**found, "provenance.json": {**provenance, "written_at": None}}


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


def test_perturbation_and_programs_that_are_compiled_once(many, one_process, toy_store, tmp_path):
    checkpoint = save_model(make_model(), tmp_path / "model", {"command": "test"})
    command = [
        "perturb", f"--checkpoint={checkpoint}", f"--cells={toy_store.folder}", "--output=out",
        "--max_cells=4", "--statistics=none", "--tokens_per_device=256",
    ]  # fmt: skip
    expected = one_process(*command)
    assert many(*command, shares=3) == expected
    compiled = sorted(os.listdir(tmp_path / "compiled"))
    assert compiled
    assert many(*command, shares=5, folder="again") == expected
    assert sorted(os.listdir(tmp_path / "compiled")) == compiled
