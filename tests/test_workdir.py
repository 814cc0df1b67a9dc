"""Folders and files of runs: whose they are, and who may write them."""

import errno
import os
import subprocess
import sys

import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.workdir import claim_workdir, sole_writer

_LOCKS = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
input()
"""


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"mode": "\xff"}', b"[" * 100_000]
)
def test_a_damaged_record_is_told(content, tmp_path):
    claim_workdir(tmp_path / "run", {"mode": "cell"})
    claim_workdir(tmp_path / "run", {"mode": "cell"})
    (tmp_path / "run" / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config.json is damaged; name a new `workdir`"):
        claim_workdir(tmp_path / "run", {"mode": "cell"})


def test_what_a_killed_process_wrote_is_made_again_and_nothing_else_is_touched(tmp_path):
    output, lock = tmp_path / "output", tmp_path / "output.lock"

    def killed():
        with sole_writer(output, {"source": "a"}):
            assert not output.exists()
            output.write_text("whole, but not told of")
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            killed()
    for arguments in ({"source": "b"}, {"source": "b"}):
        with pytest.raises(RuntimeError), sole_writer(output, arguments):
            assert output.read_text() == "whole, but not told of"
            raise RuntimeError
        assert not lock.exists()


def test_of_two_processes_one_writes(tmp_path):
    output = tmp_path / "output"
    arguments = [sys.executable, "-c", _LOCKS, str(tmp_path / "output.lock")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        refused = pytest.raises(InputError, match="another process is writing")
        with refused, sole_writer(output, {}):
            pass
        other.kill()
    with sole_writer(output, {}):
        output.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_full_disk_is_told_with_its_path_and_hides_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def write(error):
        with sole_writer(tmp_path / "output", {}):
            monkeypatch.setattr(os, "ftruncate", refuse)
            if error:
                raise error

    for first in (OSError(errno.ENOSPC, "", "output"), InputError("other"), None):
        with pytest.raises(type(first or OSError())) as raised:
            write(first)
        if first:
            assert raised.value is first
        monkeypatch.undo()
    assert raised.value.filename == str(tmp_path / "output.lock")
