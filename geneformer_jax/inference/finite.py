"""The check of embeddings before anything is measured of them.

One NaN makes some measures look like honest ones: scib-metrics gives a silhouette of exactly 0.5.
"""

from collections.abc import Sequence

import numpy as np

from geneformer_jax.common.errors import InputError

_ROWS_AT_ONCE = 65_536
_NAMED = 5


def require_finite(vectors: np.ndarray, ids: Sequence[object], name: str = "embeddings") -> None:
    """Raises InputError if a row holds NaN or infinity, or float32 cannot hold one of its values.

    Args:
      vectors: [rows, ...]; gone through in blocks, as it may lie in a file.
      ids: [rows] what the rows are called, to name them.
      name: of the vectors.
    """
    if len(vectors) != len(ids):
        raise InputError(f"{name}: {len(vectors):,} rows for {len(ids):,} cells; they must match")
    wrong: list[int] = []
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        with np.errstate(over="ignore"):
            block = np.asarray(vectors[start : start + _ROWS_AT_ONCE], np.float32)
        finite = np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        wrong.extend((start + np.flatnonzero(~finite)).tolist())
    if wrong:
        shown = ", ".join(f'"{ids[row]}" (row {row:,})' for row in wrong[:_NAMED])
        raise InputError(
            f"{name}: {len(wrong):,} of {len(vectors):,} rows hold NaN or infinite numbers, first "
            f"{shown}; leave these cells out, or embed them again in float32"
        )
