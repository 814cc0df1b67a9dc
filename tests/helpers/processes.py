"""Processes that a test began, and those that these began, whoever is their parent by now."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

# Variable of the environment that all of them inherit.
BEGUN_IN = "BEGUN_IN"


def begun_in(mark: str) -> Iterator[int]:
    """Yields the numbers of the processes in whose environment BEGUN_IN has this value."""
    wanted = f"{BEGUN_IN}={mark}".encode()
    numbers = (int(process.name) for process in Path("/proc").glob("[0-9]*"))
    return (number for number in numbers if wanted in _listed(number, "environ"))


def title(number: int) -> str:
    """What a process calls itself, "" if it is gone."""
    return _listed(number, "cmdline")[0].decode()


def _listed(number: int, file: str) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/{file}").read_bytes().split(b"\0")
    return [b""]


def of_session(leader: int) -> Iterator[int]:
    """Yields the numbers of the processes of a session, of those that have not ended."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, *numbers = (process / "stat").read_text().rpartition(")")[2].split()
            if int(numbers[2]) == leader and state not in "ZX":
                yield int(process.name)
