"""A look at an HDF5 file in a process of its own, before it is trusted.

The HDF5 library never returns from some damaged files (a stretch of zeros in a heap of texts, as a
full disk or a crash leaves it, is enough) and dies on others. Nothing in the same process can catch
that, so everything but the bulk of the counts is read in a child first, with a limit on its
processor time: the file's structure when it is opened, texts when they are needed. One child serves
all files, since starting it takes far longer than a look. This file is also that child:
`python hdf5_probe.py` reads a path, the name of texts and seconds a line, and answers a line.
"""

import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import h5py

_SECONDS = 10
_BYTES_PER_SECOND = 1 << 28
_BLOCK = 1 << 16
_one_at_a_time = threading.Lock()


def survives(path: Path, texts_below: str = "") -> bool:
    """Whether the HDF5 library comes to an end on this file, with or without an error.

    Each state of a file (by size and time of change) is looked at once per process. Where no child
    can be started, files are trusted.

    Args:
      path: of the file.
      texts_below: the dataset or group whose texts are looked at; "" for all but texts.
    """
    stat = path.stat()
    with _one_at_a_time:
        return _survives(str(path.resolve()), texts_below, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 14)
def _survives(path: str, texts_below: str, size: int, _changed: int) -> bool:
    child = _child(os.getpid())
    if child is None:
        return True
    question = json.dumps([path, texts_below, _SECONDS + size // _BYTES_PER_SECOND])
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(question + "\n")
        child.stdin.flush()
    if child.stdout.readline():
        return True
    child.communicate()
    _child.cache_clear()
    return False


@functools.lru_cache(maxsize=1)
def _child(_parent: int) -> subprocess.Popen | None:
    """Starts the child of this process; None if it does not come up."""
    # -P keeps this folder, whose modules have common names, out of the child's import path; the
    # session of its own keeps Ctrl-C for the parent. The child ends when its input does.
    child = subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    return child if child.stdout.readline() else None


def _serve() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        path, texts_below, seconds = json.loads(line)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        with _unless_damaged(), h5py.File(path, "r") as root:
            _visit(root[texts_below] if texts_below else root, texts=bool(texts_below))
        print("done", flush=True)


def holds_texts(node: h5py.Dataset) -> bool:
    """Whether a dataset is a list of texts."""
    return h5py.check_string_dtype(node.dtype) is not None and node.ndim == 1


def _unless_damaged() -> contextlib.AbstractContextManager[None]:
    """Goes on after any error: it will be met again, and told, where the file is read."""
    return contextlib.suppress(Exception)


def _visit(node: h5py.Group | h5py.Dataset, texts: bool) -> None:
    """Reads all texts below a node, or all attributes and two corners of each other dataset."""
    for name in _names(node.attrs):
        with _unless_damaged():
            node.attrs[name]
    if isinstance(node, h5py.Group):
        for name in _names(node):
            with _unless_damaged():
                _visit(node[name], texts)
        return
    # Texts live in heaps; of numbers, the corners show whether the chunks can be found.
    if holds_texts(node) != texts:
        return
    for part in _blocks(node) if texts else [(0,) * node.ndim, (-1,) * node.ndim]:
        with _unless_damaged():
            node[part]


def _blocks(texts: h5py.Dataset) -> list[slice]:
    """Slices that hold a bounded number of texts, all of them together."""
    return [slice(first, first + _BLOCK) for first in range(0, len(texts), _BLOCK)]


def _names(holder: h5py.Group | h5py.AttributeManager) -> list[str]:
    names: list[str] = []
    with _unless_damaged():
        names.extend(holder)
    return names


if __name__ == "__main__":
    _serve()
