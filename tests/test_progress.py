"""Lines of progress where there is no terminal."""

import time

from geneformer_jax.common.progress import Progress


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


def test_nothing_is_said_of_no_work(capsys):
    with Progress(0, "perturb", "edits"):
        pass
    assert capsys.readouterr() == ("", "")
