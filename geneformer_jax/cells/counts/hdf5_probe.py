"""Reads an HDF5 file in a process of its own, before it is trusted.

The HDF5 library never returns from some damaged files (a stretch of zeros in a heap of texts, as a
full disk or a crash leaves it, is enough) and dies on others. Nothing in the same process can catch
that, so everything but the bulk of the numbers is read in a child first, with a limit on its
processor time. Of real files of 2,700 to 46,000 cells that takes 0.05 s, of a million cell ids
0.3 s. One child serves all files, since starting it takes far longer than reading. This file is
also that child: `python hdf5_probe.py` reads a path and seconds a line, and answers a line.
"""

import atexit
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

# Texts, the slowest, are read at some 230 MB a second.
_BYTES_PER_SECOND = 1 << 27
_BLOCK = 1 << 16
_SPARE_BYTES = 1 << 30
_DONE, _HEAVY = "done", "heavy"
# To visit all names takes HDF5 the square of how deep groups lie; AnnData's lie some ten deep.
_MOST_LEVELS = 200
_one_at_a_time = threading.Lock()


def survives(path: Path, seconds: int) -> bool:
    """Whether the HDF5 library comes to an end on this file, with or without an error.

    It must not take absurd memory either, as for a text of a damaged length.

    Each state of a file (by size and time of change) is probed once per process. Where no child
    can be started, files are trusted.

    Args:
      path: of the file.
      seconds: of processor time, beside a second for each 128 MB of the file.
    """
    stat = path.stat()
    with _one_at_a_time:
        return _survives(str(path.resolve()), seconds, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 14)
def _survives(path: str, seconds: int, size: int, _changed: int) -> bool:
    child = _child(os.getpid())
    if child is None:
        return True
    question = json.dumps([path, seconds + size // _BYTES_PER_SECOND])
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(question + "\n")
        child.stdin.flush()
    if answer := child.stdout.readline():
        return answer.strip() == _DONE
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
    atexit.register(_stop, child, os.getpid())
    return child if child.stdout.readline() else None


def _stop(child: subprocess.Popen, owner: int) -> None:
    # A forked process inherits this, but the child serves only the process that started it.
    if os.getpid() == owner:
        child.kill()
        child.communicate()


def _serve() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        path, seconds = json.loads(line)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
        # Machines that many log in at often have one, which nobody may raise.
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
        _limit_memory(2 * _SPARE_BYTES + 4 * os.path.getsize(path))
        before = _most_memory()
        levels = 0
        with _unless_damaged(), h5py.File(path, "r") as root:
            with _unless_damaged():
                levels = _visit(root, set())
            if levels <= _MOST_LEVELS:
                # As `links` does: where HDF5 lists some names, it may visit others without an end.
                root.visititems_links(_go_on)
                root.visititems(_go_on)
        taken = _most_memory() - before
        is_heavy = levels > _MOST_LEVELS or taken > _SPARE_BYTES + 4 * os.path.getsize(path)
        print(_HEAVY if is_heavy else _DONE, flush=True)


def _limit_memory(spare: int) -> None:
    """Lets Linux refuse what this process asks for beside what it has: others need theirs."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + spare, hard))


def _most_memory() -> int:
    """Bytes that this process had at most until now."""
    with contextlib.suppress(OSError):
        # What Linux tells of a process in the other way includes the parent that started it.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, but on a Mac bytes.
    return most if sys.platform == "darwin" else most << 10


def _unless_damaged() -> contextlib.AbstractContextManager[None]:
    """Goes on after any error: it is met and reported again where the file is read."""
    return contextlib.suppress(Exception)


def _visit(node: h5py.Group | h5py.Dataset, seen: set[int], level: int = 0) -> int:
    """Reads all attributes and texts below a node, and two corners of each other dataset.

    Args:
      node: group or dataset.
      seen: addresses of nodes that were visited before, since a node may have several names.
      level: groups that it lies in.

    Returns:
      How many groups lie in each other below it, no more being visited than may be.
    """
    address = h5py.h5o.get_info(node.id).addr
    if address in seen or level > _MOST_LEVELS:
        return level
    seen.add(address)
    deepest = level
    for name in _names(node.attrs):
        with _unless_damaged():
            node.attrs[name]
    if isinstance(node, h5py.Group):
        for name in _names(node):
            with _unless_damaged():
                if not isinstance(node.get(name, getlink=True), h5py.ExternalLink):
                    deepest = max(deepest, _visit(node[name], seen, level + 1))
        return deepest
    if node.is_virtual or node.external:
        return level
    # Texts live in heaps; of numbers, the corners show whether the chunks can be found.
    texts = h5py.check_string_dtype(node.dtype) is not None and node.ndim == 1
    for part in _blocks(node) if texts else [(0,) * node.ndim, (-1,) * node.ndim]:
        with _unless_damaged():
            node[part]
    return level


def _go_on(*_: object) -> None:
    """What is told of each name, and wants to be told of the next one."""


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
