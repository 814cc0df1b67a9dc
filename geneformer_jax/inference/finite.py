"""Checks that what models give is finite, and where in the model it began not to be.

One NaN makes some measures look like honest ones: scib-metrics gives a silhouette of exactly 0.5.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.encoder import encode_all_layers
from geneformer_jax.model.precision import Precision
from geneformer_jax.model.pretrained import PretrainedModel, describe_not_finite
from geneformer_jax.model.runtime import Runtime

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


def first_not_finite(results: np.ndarray, cells: np.ndarray) -> int | None:
    """Returns the first cell whose results hold NaN or infinity, or None.

    Args:
      results: [rows, ...] of a batch; rows beyond the cells are filler.
      cells: [cells] their numbers.
    """
    is_finite = np.isfinite(results[: len(cells)]).reshape(len(cells), -1).all(axis=1)
    return None if is_finite.all() else int(np.min(cells[~is_finite]))


def not_finite(
    cell: int,
    cells: EncodedCells,
    model: PretrainedModel,
    precision: Precision,
    edit: str = "",
) -> InputError:
    """Returns the error for a cell of which a model computes NaN or infinity, with the layer.

    Args:
      cell: its number among `cells`.
      cells: read anew, and gone through layer by layer.
      model: that computes.
      precision: in which it did.
      edit: what was done to the cell, if anything.
    """
    name = f'cell "{cells.obs.index[cell]}"' + edit
    retrain = "take an earlier save of it, or train it with a lower learning rate"
    if wrong := describe_not_finite(model.params):
        return InputError(f"no result for {name}: {wrong} in {model.source}; {retrain}")
    layer = _first_layer(cells.read(np.array([cell]))[0], model, precision)
    if layer is None:
        where = (
            "are finite without the edit" if edit else "are finite, but what is made of them is not"
        )
    else:
        at = f"layer {layer} of {model.config.layers}" if layer else "the embeddings"
        where = f"are NaN or infinite from {at} on"
    remedy = f"the weights of {model.source} are out of bounds: {retrain}"
    if precision.name != "float32":
        remedy = "compute in float32"
    return InputError(
        f"no result for {name}: its hidden states in {precision.name} {where}; {remedy}"
    )


def _first_layer(tokens: np.ndarray, model: PretrainedModel, precision: Precision) -> int | None:
    """Returns the first layer whose hidden states are not finite; 0 is the embeddings."""
    tokens_1T = tokens[None, : model.config.positions].astype(np.int32)
    lengths = np.array([tokens_1T.shape[1]], np.int32)
    encode = functools.partial(encode_all_layers, model.config, runtime=Runtime(precision))
    hidden_LTD = jax.device_get(jax.jit(encode)(model.params, tokens_1T, lengths))[:, 0]
    is_finite = np.isfinite(hidden_LTD.astype(np.float32)).all(axis=(1, 2))
    return None if is_finite.all() else int(np.argmin(is_finite))
