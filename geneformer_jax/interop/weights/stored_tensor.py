"""A tensor in a file of weights: known by shape and type, read when it is needed."""

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

# Named as in safetensors.
NUMBER_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


class StoredTensor(NamedTuple):
    """One tensor of a file.

    Attributes:
      shape: in the file.
      number_type: a key of NUMBER_TYPES, or another name for what is not read.
      read: returns the array, in the file's type; it is not kept.
    """

    shape: tuple[int, ...]
    number_type: str
    read: Callable[[], np.ndarray]
