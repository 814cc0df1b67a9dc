"""Numbers of cells, as all that reads cells by their numbers takes them."""

from collections.abc import Sequence

import numpy as np

from geneformer_jax.common.arguments import describe
from geneformer_jax.common.errors import InputError


def require_indices(name: str, value: Sequence[int] | np.ndarray, cells: int) -> np.ndarray:
    """Returns numbers of cells, as int64 [n], or raises InputError where there is no such cell.

    Args:
      name: of the argument.
      value: a sequence of whole numbers; truth values are none, nor is one number.
      cells: how many there are.
    """
    indices = np.asarray(value)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        kind = "truth values" if indices.dtype.kind == "b" else describe(value)
        raise InputError(
            f"`{name}` is {kind}; give a list or array of numbers of cells, such as range(8) or, "
            "of a mask, numpy.flatnonzero(mask)"
        )
    wrong = indices[(indices < 0) | (indices >= cells)]
    if wrong.size:
        raise InputError(
            f"cell {wrong[0]} is not among these {cells:,} cells; give 0 to {cells - 1}"
        )
    return indices.astype(np.int64)
