"""Messages name arguments of Python functions; a command shows those that it has as flags."""

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
