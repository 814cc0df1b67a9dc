"""Pickles of plain dictionaries, lists, text and numbers, read without running anything in them."""

import dataclasses
import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.common.errors import InputError

_NUMBER_CODES = frozenset("iuf")
LARGEST_FILE = 64 << 20

# What the unpickler raises on bytes that are no whole pickle, or that misuse the stand-ins.
_BROKEN = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class _PickledDtype:
    """Stands in for numpy.dtype: remembers a number type, can do nothing else."""

    __slots__ = ("byte_order", "code")

    def __init__(self, code: str, *_: Any):
        if code[0] not in _NUMBER_CODES or code[1:] not in ("1", "2", "4", "8"):
            raise pickle.UnpicklingError(f"numpy type {code!r}")
        self.code = code
        self.byte_order = "="

    def __setstate__(self, state: tuple) -> None:
        self.byte_order = {"<": "<", ">": ">"}.get(state[1], "=")


class _PickledScalar:
    """Stands in for numpy's scalar: turns a number type and its bytes into a Python number."""

    # No attributes: a pickle cannot leave anything behind on it.
    __slots__ = ()

    def __call__(self, dtype: _PickledDtype, content: bytes) -> int | float:
        if type(dtype) is not _PickledDtype or type(content) is not bytes:
            raise pickle.UnpicklingError("a numpy scalar that is no number")
        (number,) = np.frombuffer(content, dtype.byte_order + dtype.code)
        return number.item()


# numpy 2 spells the module with an underscore.
STAND_INS = {
    ("numpy", "dtype"): _PickledDtype,
    ("numpy.core.multiarray", "scalar"): _PickledScalar(),
    ("numpy._core.multiarray", "scalar"): _PickledScalar(),
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Looks up stand-ins only; refuses every other name."""

    def __init__(self, content: bytes, source: "PickleSource"):
        _check_memo(content)
        super().__init__(io.BytesIO(content))
        self._source = source

    def find_class(self, module: str, name: str) -> Any:
        stand_in = self._source.stand_ins.get((module, name))
        if stand_in is None:
            wanted = f"{_one_line(module)}.{_one_line(name)}"
            raise InputError(
                f"{self._source.path} is refused: it asks for {wanted}, but {self._source.holds} "
                "only; nothing was executed, get the file anew from its source"
            )
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        if self._source.persistent_load is None:
            raise pickle.UnpicklingError("a persistent id")
        return self._source.persistent_load(pid)


@dataclasses.dataclass(frozen=True)
class PickleSource:
    """Where a pickle comes from, and what it may hold.

    Attributes:
      path: the file, for messages.
      holds: who holds what, for messages: "a dictionary of the original holds text and numbers".
      stand_ins: what is used for the names (module, name) that the pickle may mention. A stand-in
        must have no attributes, so that a pickle cannot leave anything behind on it.
      persistent_load: turns the persistent ids in the pickle into objects; None allows none.
    """

    path: Path
    holds: str
    stand_ins: Mapping[tuple[str, str], Any]
    persistent_load: Callable[[Any], Any] | None = None


def read_pickle(content: bytes, source: PickleSource) -> Any:
    """Returns what a pickle holds, calling nothing but the stand-ins.

    Raises:
      InputError: it mentions another name, or is no whole pickle.
    """
    try:
        return _RestrictedUnpickler(content, source).load()
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(
            f"{source.path} is no readable pickle ({type(error).__name__}: "
            f"{_one_line(str(error))}); get the file anew from its source"
        ) from error


def _one_line(words: str) -> str:
    return " ".join(words.split())[:80]


def _check_memo(content: bytes) -> None:
    """Refuses a memo index beyond the file's size: pickle would allocate a table up to it."""
    for opcode, index, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "LONG_BINPUT") and index > len(content):
            raise pickle.UnpicklingError(f"memo index {index}")
