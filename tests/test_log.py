"""What the package logs: nothing of its own accord, and plain lines where a command asks."""

import logging

import pytest

from geneformer_jax.common.log import logger, show_log


@pytest.fixture
def quiet(monkeypatch):
    """The logger as it is when the package is imported."""
    monkeypatch.setattr(logger, "handlers", logger.handlers[:1])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr(logger, "propagate", True)
    logger.manager._clear_cache()


def test_nothing_is_printed_in_a_notebook(quiet, capsys):
    logger.info("100 cells")
    logger.warning("a cell was left out")
    assert capsys.readouterr() == ("", "")


def test_commands_print_each_line_once_on_standard_output(quiet, capsys):
    show_log()
    show_log()
    logger.info("100 cells")
    assert capsys.readouterr() == ("100 cells\n", "")


def test_a_command_may_write_messages_in_its_own_words(quiet, capsys):
    show_log()
    show_log(written=str.upper)
    logger.info("give `seed`")
    assert capsys.readouterr() == ("GIVE `SEED`\n", "")


def test_a_level_keeps_lower_lines_out(quiet, capsys):
    show_log(logging.WARNING)
    logger.info("100 cells")
    logger.warning("a cell was left out")
    assert capsys.readouterr() == ("a cell was left out\n", "")


def test_a_message_is_printed_once_whatever_handles_the_root_logger(quiet, capsys):
    root, handler = logging.getLogger(), logging.StreamHandler()
    root.addHandler(handler)
    try:
        show_log()
        logger.info("cells: %d", 3)
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr() == ("cells: 3\n", "")
