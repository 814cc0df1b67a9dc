"""The layer of faults below a process: built, laid under it, and told what to do; see faults.c."""

import contextlib
import ctypes
import enum
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("faults.c")
_VARIABLE = "LD_PRELOAD"


class Kind(enum.IntFlag):
    """Kinds of calls that change a file system, and looks at it, as `faults.c` numbers them.

    Looks are those for names that other processes left; entries of listings count one by one.
    """

    CREATE = 1
    WRITE = 2
    RENAME = 4
    FOLDER = 8
    LINK = 16
    SYNC = 32
    SIZE = 64
    REMOVE = 128
    MODE = 256
    LOCK = 512
    SYNC_FOLDER = 1024
    LOOK = 2048
    LIST = 4096


class How(enum.IntEnum):
    """Which calls fail, from the chosen one on."""

    ONCE = 0
    FROM_THEN_ON = 1
    # The first is a write that writes half of what it is given.
    HALF_FIRST = 2
    # None fails; each writes half of what it is given.
    SHORT = 3
    # The name that the first is for is not seen as long as the process lives, nor what is in it.
    UNSEEN = 4


@dataclass(frozen=True)
class Fault:
    """What a file system does.

    Attributes:
      kinds: of calls that fail.
      error: their errno.
      how: which of them.
      harmless: whether a command is to end as if nothing had happened.
    """

    kinds: Kind
    error: int
    how: How
    harmless: bool = False


_TAKES_SPACE = Kind.CREATE | Kind.WRITE | Kind.FOLDER | Kind.LINK | Kind.SIZE
_CHANGES = _TAKES_SPACE | Kind.RENAME | Kind.REMOVE | Kind.MODE
_NAMES = Kind.CREATE | Kind.RENAME | Kind.FOLDER | Kind.LINK
FAULTS = {
    "no space": Fault(_TAKES_SPACE, errno.ENOSPC, How.FROM_THEN_ON),
    "no space amid a write": Fault(_TAKES_SPACE, errno.ENOSPC, How.HALF_FIRST),
    "no quota": Fault(_TAKES_SPACE, errno.EDQUOT, How.FROM_THEN_ON),
    "no permission": Fault(_NAMES, errno.EACCES, How.ONCE),
    "read-only": Fault(_CHANGES, errno.EROFS, How.FROM_THEN_ON),
    "disk error": Fault(Kind.WRITE | Kind.SYNC, errno.EIO, How.ONCE),
    "stale handle": Fault(_CHANGES, errno.ESTALE, How.ONCE),
    "no locks": Fault(Kind.LOCK, errno.ENOLCK, How.FROM_THEN_ON),
}
HARMLESS = {
    "short writes": Fault(Kind.WRITE, 0, How.SHORT, harmless=True),
    "no hard links": Fault(Kind.LINK, errno.EPERM, How.FROM_THEN_ON, harmless=True),
    "no modes": Fault(Kind.MODE, errno.EPERM, How.FROM_THEN_ON, harmless=True),
    "no flushing of folders": Fault(
        Kind.SYNC_FOLDER, errno.EINVAL, How.FROM_THEN_ON, harmless=True
    ),
}
EVERY = FAULTS | HARMLESS
_LOOKS = Kind.LOOK | Kind.LIST
# What a machine may see of what another wrote to a disk of both a moment ago.
LATE = {
    "seen late": Fault(Kind.LOOK, errno.ENOENT, How.ONCE),
    "unseen": Fault(_LOOKS, errno.ENOENT, How.UNSEEN),
    "stale listing": Fault(Kind.LIST, errno.ENOENT, How.UNSEEN),
}


@dataclass(frozen=True)
class Call:
    """A call that was made below the folder: number, kind, whether it failed, and where."""

    number: int
    kind: Kind
    failed: bool
    path: Path


def is_possible() -> bool:
    """Whether libraries can be laid under a process here, and a compiler for one is there."""
    return sys.platform == "linux" and shutil.which("gcc") is not None


def build(folder: Path) -> Path:
    """Compiles the layer into a folder; returns the library."""
    library = folder / "faults.so"
    command = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", str(_SOURCE), "-o",
               str(library), "-ldl"]  # fmt: skip
    subprocess.run(command, check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """Variables of a process that is to lie on the layer; they begin with this process's own."""
    return {**os.environ, _VARIABLE: str(library)}


@contextlib.contextmanager
def faulty(folder: Path, fault: Fault | None, first: int, told: Path) -> Iterator[None]:
    """Has calls below a folder fail in this process, which lies on the layer.

    Args:
      folder: without links in it.
      fault: what fails; None only counts.
      first: number of the first call that fails, from 1.
      told: file that all calls are told in, elsewhere; see `calls_in`.
    """
    layer = ctypes.CDLL(os.environ[_VARIABLE])
    with told.open("wb", buffering=0) as file:
        kinds, error, how = (fault.kinds, fault.error, fault.how) if fault else (_LOOKS, 0, 0)
        layer.faults_begin(
            os.fsencode(folder), kinds, error, ctypes.c_long(first if fault else 0), how,
            file.fileno(),
        )  # fmt: skip
        try:
            yield
        finally:
            layer.faults_end()


def calls_in(told: Path) -> list[Call]:
    """Returns the calls that `faulty` told of, in their order."""
    calls = []
    for line in told.read_text(errors="surrogateescape").splitlines():
        number, kind, fate, path = line.split("\t", 3)
        calls.append(Call(int(number), Kind(int(kind)), fate == "-1", Path(path)))
    return sorted(calls, key=lambda call: call.number)
