"""A mistyped cluster: one line before any work."""

import socket
import sys
from unittest.mock import MagicMock

import pytest

from geneformer_jax.cluster import ray_cluster, run
from geneformer_jax.cluster.names import sole_command
from geneformer_jax.common.errors import InputError
from tests.helpers.commands import assert_one_line, run_command


def refused(arguments: list[str], monkeypatch, capsys) -> str:
    status, output, error = run_command("cluster", arguments, monkeypatch, capsys)
    assert (status, output) == (1, "")
    assert_one_line(error)
    return error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shares=2"], '"" is no command that can be shared out'),
        (["--shares=2", "--", "tokenise"], 'did you mean "tokenize"?'),
        (["--shares=2", "--", "pretrain"], '"pretrain" is no command that can be shared out'),
        (["--", "tokenize"], "--shares must be given"),
        (["--shares=2", "--", "embed", "--help"], "python -m geneformer_jax.embed --help"),
        (["--shares=0", "--", "tokenize"], "shares"),
        (["--shares=2", "tokenize"], "flags start with --"),
    ],
)
def test_what_is_mistyped_is_told(arguments, told, monkeypatch, capsys):
    assert told in refused(arguments, monkeypatch, capsys)


def test_without_ray_the_remedy_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    error = refused(["--shares=2", "--", "tokenize"], monkeypatch, capsys)
    assert 'pip install "geneformer_jax[ray]"' in error


@pytest.mark.parametrize("output", [["--output=store"], ["--output", "{here}/store/"]])
def test_a_second_command_on_an_output_is_refused(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    given = ["--shares=2", "--", "tokenize", *(each.format(here=tmp_path) for each in output)]
    with sole_command("store"):
        error = refused(given, monkeypatch, capsys)
    assert "another process is sharing out the work on" in error
    assert "needs Ray" in refused(given, monkeypatch, capsys)


def test_ray_that_does_not_begin_is_told(monkeypatch, capsys):
    def init(*_, **__):
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(
        ray_cluster, "_import_ray", lambda: MagicMock(**{"is_initialized.return_value": False})
    )
    monkeypatch.setattr(ray_cluster, "_init", init)
    error = refused(["--shares=2", "--", "tokenize"], monkeypatch, capsys)
    assert "Ray does not begin on this machine (The current node timed out during startup)" in error


@pytest.mark.parametrize("shares", [0, 1.5, None, "2"])
def test_python_refuses_what_is_no_number_of_shares(shares):
    with pytest.raises(InputError, match="`shares`"):
        run(["tokenize"], shares=shares)


def test_python_asks_for_a_list():
    with pytest.raises(InputError, match="`command`"):
        run("tokenize --counts=a.h5ad", shares=2)


@pytest.mark.multiprocess
def test_an_address_where_no_cluster_is(needs_ray, monkeypatch, capsys):
    arguments = ["--shares=2", "--address=nonsense", "--", "tokenize"]
    error = refused(arguments, monkeypatch, capsys)
    assert "--address=nonsense does not answer as a Ray cluster (Invalid address format" in error


@pytest.mark.multiprocess
def test_an_address_that_does_not_answer(needs_ray, monkeypatch, capsys):
    monkeypatch.setattr(ray_cluster, "_SECONDS_TO_ANSWER", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        error = refused(
            ["--shares=2", f"--address={address}", "--", "tokenize"], monkeypatch, capsys
        )
    assert f"--address={address} does not answer as a Ray cluster (nothing came in 1 s" in error
