"""Messages name arguments of Python functions; a command shows those that it has as flags."""

import pytest
from absl import flags

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.common import command_line
from geneformer_jax.common.log import logger
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


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`max_cells` is 0", "--max_cells is 0"),
        ("set `config.optimizer.b2`=0.9", "set --config.optimizer.b2=0.9"),
        ("begin with `config`", "begin with --config"),
        ("give `adata`, or `configs.x`", "give `adata`, or `configs.x`"),
    ],
)
def test_what_the_command_has_no_flag_for_stays_an_argument(message, shown, monkeypatch):
    known = flags.FlagValues()
    for name in ("max_cells", "config"):
        flags.DEFINE_string(name, "", "", flag_values=known)
    monkeypatch.setattr(command_line.flags, "FLAGS", known)
    assert command_line.as_flags(message) == shown


def test_what_is_logged_names_flags_too(monkeypatch, capsys):
    """A file left out is no error, but a line of the log, with the same words."""
    monkeypatch.setattr(command_line, "_parse", lambda argv: None)
    # What is defined here would stay, and be no flag of the commands of later tests.
    monkeypatch.setattr(command_line, "_define_json", lambda: None)
    monkeypatch.setattr(command_line.flags, "FLAGS", {"fractional": None})
    with pytest.raises(SystemExit):
        command_line.run(lambda: logger.warning("SKIPPED a.h5ad: see `fractional`"))
    assert capsys.readouterr().out == "SKIPPED a.h5ad: see --fractional\n"


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
