"""What the system refuses while a file is written: one kind of error, which names the file."""

import contextlib
import errno
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from geneformer_jax.common.command_line import explain
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import REFUSALS, atomic_write, fsync_tree_entry, remove, writing
from geneformer_jax.embedding.output import _write_npy


@pytest.mark.parametrize("number", REFUSALS)
def test_each_refusal_is_told_in_a_line_whatever_library_tells_it(number, tmp_path):
    target = tmp_path / "out.bin"
    for error in (
        OSError(number, os.strerror(number)),
        ValueError(f"RESOURCE_EXHAUSTED: cannot write: {os.strerror(number)} [os_error_code='1']"),
    ):
        with pytest.raises(OSError) as raised, atomic_write(target) as aside:
            aside.write_text("half")
            raise error
        line = explain(raised.value)
        assert str(target) in line and "; " in line and "\n" not in line
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_arrow_does_not_find_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        pq.ParquetFile(tmp_path / "gone.parquet", memory_map=True)
    assert explain(raised.value) == f"{tmp_path / 'gone.parquet'} does not exist; check the path"


def test_a_folder_that_is_not_empty_for_another_machine_is_told_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "shares").mkdir()
    (tmp_path / "shares" / "of-2").touch()
    monkeypatch.setattr(os, "scandir", lambda _: contextlib.nullcontext(iter(())))
    with pytest.raises(OSError) as raised:
        remove(tmp_path / "shares")
    assert explain(raised.value) == (
        f"{tmp_path / 'shares'} is in use, or holds what is not seen here yet; run the same "
        "command again in a minute"
    )


def test_other_errors_are_left_as_they_are():
    for error in (ValueError("no such gene"), InputError("x: Permission denied; give another")):
        with pytest.raises(type(error)) as raised, writing("out"):
            raise error
        assert raised.value is error


def test_what_cannot_be_removed_does_not_hide_what_came_first(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(OSError) as raised, atomic_write(tmp_path / "out") as aside:
        aside.write_text("half")
        monkeypatch.setattr("geneformer_jax.common.files.remove", refuse)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.errno == errno.ENOSPC


def test_a_file_system_may_be_unable_to_flush_folders_but_not_files(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    fsync_tree_entry(tmp_path)
    with pytest.raises(OSError), atomic_write(tmp_path / "out") as aside:
        aside.write_text("all of it")
    # As TensorStore tells it, which cannot do without.
    with (
        pytest.raises(InputError, match=r"cannot flush folders.*; name a folder on"),
        writing("run"),
    ):
        raise ValueError("Failed to fsync directory: Invalid argument [os_error_code='22']")


@pytest.mark.parametrize("layers", [1, 3])
def test_rows_are_written_as_numpy_writes_them(layers, tmp_path):
    rows = np.random.default_rng(0).normal(size=(7, layers, 5)).astype(np.float32)
    _write_npy(rows, tmp_path / "rows", size=3)
    with (tmp_path / "expected").open("wb") as file:
        np.save(file, rows if layers > 1 else rows[:, 0])
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "expected").read_bytes()
