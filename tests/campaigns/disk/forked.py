"""Runs of commands in forked children, which need not import everything anew."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Other processes may have the processors.
SECONDS = 1800


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status (below 0: by which signal), and what it printed."""

    status: int
    output: str
    error: str


def in_child(work: Callable[[], object], folder: Path, told: Path) -> Ended:
    """Calls a function in a forked child, within a folder.

    Args:
      work: may raise SystemExit; any other error is printed and ends in status 1.
      folder: where the child works.
      told: folder for what it prints.
    """
    files = told / "output.txt", told / "error.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number, file in enumerate(files, start=1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(folder)
            status = _status_of(work)
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    return Ended(_wait_for(child), *(file.read_text(errors="replace") for file in files))


def _status_of(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _wait_for(child: int) -> int:
    deadline = time.monotonic() + SECONDS
    while True:
        ended, state = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(state)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
