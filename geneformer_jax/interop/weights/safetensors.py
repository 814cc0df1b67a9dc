"""Files of weights in the safetensors format, read and written one tensor at a time."""

import functools
import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.weights.stored_tensor import StoredTensor

_ALIGNMENT = 8


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors in a file by name; reads its header only.

    Raises:
      InputError: the file is no whole safetensors file.
    """
    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return {
                name: StoredTensor(
                    tuple(part.get_shape()), part.get_dtype(), functools.partial(_read, path, name)
                )
                for name, part in parts.items()
            }
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def _read(path: Path, name: str) -> np.ndarray:
    # Opened anew for each tensor: an open file stays mapped, and what was read of it in memory.
    try:
        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is no whole safetensors file ({error}); get it anew from its source")


class Tensor(NamedTuple):
    """Name and shape of a float32 tensor that is going to be written."""

    name: str
    shape: tuple[int, ...]


def write_tensors(path: Path, tensors: list[Tensor], values: Iterable[np.ndarray]) -> None:
    """Writes float32 tensors, drawing `values` one after another in the order of `tensors`.

    The library's own writer wants all of them in memory at once.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + 4 * math.prod(tensor.shape)
        described = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]}
        header[tensor.name] = described
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, value in zip(tensors, values, strict=True):
            file.write(np.ascontiguousarray(value, "<f4").data)
