"""The cluster command as a process: what it says, what a Ctrl-C leaves, and that it goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geneformer_jax.cells.store.cell_store import CellStore
from tests.helpers.commands import run_command
from tests.helpers.processes import BEGUN_IN, begun_in
from tests.helpers.small_stores import same_stores
from tests.helpers.toy import toy_cells, toy_vocabulary

PROJECT = Path(__file__).resolve().parents[2]
DRIVER = """
import runpy, sys
try:
    runpy.run_module("geneformer_jax.cluster", run_name="__main__", alter_sys=True)
finally:
    print("imported by the driver:", sorted({"jax", "anndata"} & set(sys.modules)))
"""


@pytest.fixture
def counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy_vocabulary().save(tmp_path / "vocabulary")
    for file in range(6):
        toy_cells(20, seed=file).write_h5ad(f"{file}.h5ad")


def begin(folder: Path) -> subprocess.Popen:
    """The command in a session of its own, as in a terminal."""
    arguments = ["--shares=6", "--workers=2", "--", "tokenize", "--counts=*.h5ad",
                 "--vocabulary=vocabulary", "--output=many", "--prefix_cell_ids"]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT), BEGUN_IN: str(folder)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_leaves_nothing_and_goes_on(
    number, status, needs_ray, counts, tmp_path, monkeypatch, capsys
):
    driver = begin(tmp_path)
    assert driver.stdout.readline().startswith("Ray ")
    assert len(list(begun_in(str(tmp_path)))) > 2
    everywhere = number == signal.SIGINT
    (os.killpg if everywhere else os.kill)(driver.pid, number)
    _, error = driver.communicate()
    assert driver.returncode == status
    assert "Traceback" not in error
    assert list(begun_in(str(tmp_path))) == []
    driver = begin(tmp_path)
    output, error = driver.communicate()
    assert driver.returncode == 0, error
    assert "tokenize: 6 of 6 shares" in error and "120 of 120 cells" in output
    assert "imported by the driver: []" in output
    given = ["--counts=*.h5ad", "--vocabulary=vocabulary", "--output=one", "--prefix_cell_ids"]
    assert run_command("tokenize", given, monkeypatch, capsys)[0] == 0
    same_stores(CellStore.open(tmp_path / "many"), CellStore.open(tmp_path / "one"))
