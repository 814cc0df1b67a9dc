"""Folders and files of runs: whose they are, and who may write them."""

import errno
import os
import subprocess
import sys

import pytest

from geneformer_jax.common.command_line import explain
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import require_can_appear
from geneformer_jax.common.provenance import read_provenance
from geneformer_jax.common.workdir import claim_workdir, one_at_a_time, sole_writer
from geneformer_jax.training.telemetry import read_metrics

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


def test_what_is_left_of_damaged_records_is_no_traceback(tmp_path):
    for content in ("{", "[]", "null"):
        (tmp_path / "provenance.json").write_text(content)
        with pytest.raises(InputError, match=r"provenance\.json is damaged .*; restore it from a"):
            read_provenance(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('7}\n5\nnull\n[1]\n{"step": 1}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1}]


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


def test_a_lock_of_someone_else_is_left_as_it_is(tmp_path):
    lock = tmp_path / "pixi.lock"
    lock.write_text('{"version": 6}')
    for guard in (sole_writer(tmp_path / "pixi", {}), one_at_a_time(lock)):
        with pytest.raises(InputError, match=r"pixi\.lock is no lock of this package"), guard:
            pass
    assert lock.read_text() == '{"version": 6}'


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


def test_an_output_that_cannot_get_its_name_is_refused_before_the_work(tmp_path, monkeypatch):
    empty, full, file = tmp_path / "empty", tmp_path / "full", tmp_path / "file"
    for folder in (empty, full):
        folder.mkdir()
    (full / "config.json").touch()
    file.touch()
    os.mkfifo(tmp_path / "pipe")
    for name, target in {"to_empty": empty, "to_nothing": "gone", "loop": "loop"}.items():
        (tmp_path / name).symlink_to(target)
        with pytest.raises(InputError, match=f"{name} is a symbolic link.*; name that itself"):
            require_can_appear(tmp_path / name, "--output")
    with pytest.raises(InputError, match=r"--output=.*/pipe is no file or folder"):
        require_can_appear(tmp_path / "pipe", "--output")
    with pytest.raises(InputError, match="a name of 201 bytes"):
        require_can_appear(tmp_path / ("\xe4" * 100 + "b"), "--output")
    # What a run goes on in may lie behind a link.
    for name, target in {"to_full": full, "to_file": file}.items():
        (tmp_path / name).symlink_to(target)
        require_can_appear(tmp_path / name, "--output")
    for path in (empty, full, file, tmp_path / "new", "new", "."):
        require_can_appear(path, "--output")
    monkeypatch.chdir(empty)
    with pytest.raises(InputError, match=r"--output=\. is the folder that you are in"):
        require_can_appear(".", "--output")


def test_names_that_lead_nowhere_are_told_in_a_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / ("a" * 300)):
        with pytest.raises(OSError) as raised:
            path.open()
        assert explain(raised.value).endswith("; name another path")
