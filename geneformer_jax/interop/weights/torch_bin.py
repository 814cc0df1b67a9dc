"""PyTorch's files of weights (`pytorch_model.bin`), read without PyTorch and without trusting them.

Since PyTorch 1.6 such a file is a zip archive: a pickle that records which tensor lies where, and
one member of raw bytes for each storage. The pickle is read by `restricted_pickle` with stand-ins
for the few names it needs, which do nothing but record what they are given.
"""

import contextlib
import functools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.restricted_pickle import PickleSource, read_pickle
from geneformer_jax.interop.weights.stored_tensor import NUMBER_TYPES, StoredTensor

_LARGEST_PICKLE = 64 << 20
_MOST_ORDER = 16
# What zipfile raises on archives that are not whole or of a kind it does not read.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)
_STORAGE_KEY = re.compile(r"\w+")
_STORAGE_TYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


class _Storage(NamedTuple):
    number_type: str
    key: str
    size: int


class _Placed(NamedTuple):
    """A tensor's place in its storage, counted in numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def beyond(self) -> int:
        """One past the last number of the storage that the tensor needs."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return self.offset + sum((size - 1) * stride for size, stride in steps) + 1


class _PickledDict(dict):
    """What becomes of an ordered dictionary; attributes that PyTorch left on it are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _NewDict:
    """Stands in for collections.OrderedDict."""

    __slots__ = ()

    def __call__(self) -> _PickledDict:
        return _PickledDict()


class _PlaceTensor:
    """Stands in for the function that makes a tensor of a storage."""

    __slots__ = ()

    def __call__(
        self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any
    ) -> _Placed:
        placed = _Placed(storage, offset, shape, strides)
        numbers = (offset, *shape, *strides)
        if type(storage) is not _Storage or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("a tensor that is described in no known way")
        if len(shape) != len(strides) or placed.beyond > storage.size:
            raise ValueError("a tensor that reaches beyond its storage")
        return placed


class _KeepTensor:
    """Stands in for the function that makes a parameter of a tensor."""

    __slots__ = ()

    def __call__(self, tensor: _Placed, *_: Any) -> _Placed:
        return tensor


_STAND_INS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _NewDict(),
    ("torch._utils", "_rebuild_tensor_v2"): _PlaceTensor(),
    ("torch._utils", "_rebuild_parameter"): _KeepTensor(),
    **{("torch", name): number_type for name, number_type in _STORAGE_TYPES.items()},
}


def _find_storage(pid: Any) -> _Storage:
    """Reads PyTorch's persistent id: ("storage", type, key, device, size)."""
    kind, number_type, key, _, size = pid
    known = number_type in _STORAGE_TYPES.values()
    if kind != "storage" or not known or type(size) is not int or not _STORAGE_KEY.fullmatch(key):
        raise ValueError("a storage that is described in no known way")
    return _Storage(number_type, key, size)


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors in a file by name; reads no values.

    Raises:
      InputError: the file is no zip archive of PyTorch's, asks for anything but tensors, or is
        damaged.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no file of PyTorch 1.6 or later, which are the ones that are read; save "
            "the model again with a newer version, best as safetensors"
        )
    with _opened(path) as archive:
        root = _root(path, archive)
        content = _stored_bytes(path, archive, f"{root}/data.pkl", _LARGEST_PICKLE)
    holds = "a file of weights holds tensors"
    found = read_pickle(content, PickleSource(path, holds, _STAND_INS, _find_storage))
    if not isinstance(found, dict) or not all(
        type(name) is str and type(placed) is _Placed for name, placed in found.items()
    ):
        raise InputError(f"{path} is no dictionary of tensors by name; save the model's state_dict")
    return {
        name: StoredTensor(
            placed.shape, placed.storage.number_type, functools.partial(_read, path, root, placed)
        )
        for name, placed in found.items()
    }


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive; whatever goes wrong in it is an InputError of a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError:
        raise
    except _BROKEN as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _root(path: Path, archive: zipfile.ZipFile) -> str:
    """The folder that holds everything in the archive."""
    members = archive.namelist()
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise InputError(f"{path} is a zip archive, but none of PyTorch's; name a file of weights")
    order = f"{roots[0]}/byteorder"
    if order in members and _stored_bytes(path, archive, order, _MOST_ORDER) != b"little":
        raise InputError(f"{path} holds big-endian numbers; save the model again as safetensors")
    return roots[0]


def _stored_bytes(path: Path, archive: zipfile.ZipFile, member: str, max_bytes: int) -> bytes:
    """Reads a member that may have no more than `max_bytes` bytes."""
    if member not in archive.namelist() or archive.getinfo(member).file_size > max_bytes:
        raise InputError(f"{path} lacks {member} or holds too much there; get it anew")
    return archive.read(member)


def _read(path: Path, root: str, placed: _Placed) -> np.ndarray:
    number_type = np.dtype(NUMBER_TYPES[placed.storage.number_type])
    size = placed.storage.size * number_type.itemsize
    member = f"{root}/data/{placed.storage.key}"
    with _opened(path) as archive:
        content = _stored_bytes(path, archive, member, size)
    if len(content) != size:
        raise _damaged(path, f"{member} has {len(content)} bytes, not {size}")
    storage = np.frombuffer(content, number_type)
    strides = [stride * number_type.itemsize for stride in placed.strides]
    # Within the storage: _PlaceTensor has refused what reaches beyond it.
    return np.lib.stride_tricks.as_strided(
        storage[placed.offset :], placed.shape, strides, writeable=False
    )


def _damaged(path: Path, reason: object) -> InputError:
    return InputError(f"{path} is damaged ({reason}); get it anew from its source")
