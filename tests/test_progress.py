"""Lines of progress where there is no terminal."""

import os
import signal
import time

import pytest

from geneformer_jax.common.commands.interrupts import note_interrupts
from geneformer_jax.common.log import show_log
from geneformer_jax.common.progress import Progress


@pytest.fixture
def shown():
    """The log as a command shows it."""
    show_log()


@pytest.mark.usefixtures("shown")
def test_lines_tell_the_time_left_at_the_rate_so_far(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(1_000, "perturb", "edits", initial=200) as progress:
        now = 20.0
        progress.advance(100)
        now = 30.0
        progress.advance(100)
        now = 40.0
        progress.advance(200, loss="3.21")
        progress.advance(400)
    # 100 edits in 20 s leave 700 for 140 s; 400 in 40 s leave 400 for 40 s.
    assert capsys.readouterr().err.splitlines() == [
        "perturb: 300 of 1,000 edits, about 02:20 left",
        "perturb: 600 of 1,000 edits, about 00:40 left  loss 3.21",
        "perturb: 1,000 of 1,000 edits  loss 3.21",
    ]


@pytest.mark.usefixtures("shown")
def test_compiling_is_left_out_of_the_time_and_the_last_line_stands_once(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(30, "embed", "cells") as progress:
        now = 70.0
        progress.advance(10, compiling=60.0)
        now = 90.0
        progress.advance(20, compiling=60.0)
    # 10 cells in 10 s beside a minute of compiling.
    assert capsys.readouterr().err.splitlines() == [
        "embed: 10 of 30 cells, about 00:20 left",
        "embed: 30 of 30 cells",
    ]


@pytest.mark.usefixtures("shown")
def test_nothing_is_said_of_no_work(capsys):
    with Progress(0, "perturb", "edits"):
        pass
    assert capsys.readouterr() == ("", "")


def test_python_functions_draw_a_bar_on_a_terminal_and_print_no_lines_elsewhere(
    monkeypatch, capsys
):
    monkeypatch.setattr("geneformer_jax.common.progress._SECONDS_BETWEEN_LINES", -1.0)
    for terminal, begins in ((False, ""), (True, "\rembed: ")):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        with Progress(30, "embed", "cells") as progress:
            progress.advance(30)
        error = capsys.readouterr().err
        assert error.startswith(begins) and bool(error) == terminal


def test_ctrl_c_that_a_library_drops_ends_the_work_all_the_same():
    before = signal.getsignal(signal.SIGINT)
    note_interrupts()
    with Progress(3, "embed", "cells") as progress:
        progress.advance(1)
        # As Python does where it is raised as garbage is collected.
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        with pytest.raises(KeyboardInterrupt):
            progress.advance(1)
    note_interrupts()
    with Progress(1, "embed", "cells") as progress:
        progress.advance(1)
    signal.signal(signal.SIGINT, before)
