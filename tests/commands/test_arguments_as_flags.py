"""Messages name arguments of Python functions; a command shows those that it has as flags."""

from geneformer_jax.cells.store.cell_store import CellStore
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.count_files import example_cells
from tests.helpers.toy import toy_vocabulary


def test_a_flag_is_named_where_python_names_an_argument(tmp_path, monkeypatch, capsys):
    example_cells().write_h5ad(tmp_path / "cells.h5ad")
    toy_vocabulary().save(tmp_path / "vocabulary")
    arguments = ["--counts=cells.h5ad", "--vocabulary=vocabulary", "--output=store"]
    monkeypatch.chdir(tmp_path)
    status, _, error = run_command(
        "tokenize", [*arguments, "--counts_layer=umo"], monkeypatch, capsys
    )
    assert status == 1
    assert_one_line(error)
    assert "--counts_layer" in error
    assert "`" not in error


def test_a_first_tilde_is_the_home_folder(tmp_path, monkeypatch, capsys):
    example_cells().write_h5ad(tmp_path / "cells.h5ad")
    toy_vocabulary(genes=83).save(tmp_path / "vocabulary")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    arguments = ["--counts=~/cells.h5ad", "--vocabulary=~/vocabulary", "--output=~/store"]
    status, _, error = run_command("tokenize", arguments, monkeypatch, capsys)
    assert status == 0, error
    assert len(CellStore.open("~/store")) == len(CellStore.open(tmp_path / "store")) > 0
    assert list((tmp_path / "work").iterdir()) == []
