"""Files of weights in the safetensors format; reading takes one tensor at a time."""

import contextlib
import functools
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.weights.stored_tensor import StoredTensor

_SYSTEM_ERROR = re.compile(r"os error (\d+)")


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


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], dtype: DTypeLike = np.float32
) -> None:
    """Writes tensors of one type, as transformers writes the weights of a PyTorch model.

    All of them are in memory at once, but what is of that type and contiguous is not copied: beside
    the weights themselves, 1.3 GB for the largest published model, that is as much again
    for matrices that are views of transposed ones.

    Args:
      path: a file, replaced if it exists.
      tensors: by name, of any strides.
      dtype: of what is written.

    Raises:
      OSError: the file cannot be written.
    """
    # The library writes the memory of an array from its first byte on, whatever its strides.
    whole = {name: np.asarray(value, dtype, order="C") for name, value in tensors.items()}
    # It also renames a file that only its owner may read to `path`: keep the usual permissions.
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(whole, path, {"format": "pt"})
    except SafetensorError as error:
        number = _SYSTEM_ERROR.search(str(error))
        raise OSError(*([int(number[1])] if number else []), str(error), str(path)) from error
    # Some file systems know no permissions.
    with contextlib.suppress(PermissionError):
        path.chmod(mode)
