"""What results depend on, as short texts and numbers that a folder of parts can keep."""

import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pandas as pd

from geneformer_jax.cells.store.cell_store import CellStore, EncodedCells
from geneformer_jax.cells.store.shorter_cells import ShorterCells
from geneformer_jax.inference.cells import ChosenCells
from geneformer_jax.inference.filters import label_texts
from geneformer_jax.model.pretrained import PretrainedModel

_CELLS_AT_ONCE = 4_096


def identity_of(model: PretrainedModel, cells: EncodedCells) -> dict[str, Any]:
    """Returns what results depend on: weights, vocabulary and cells, as short texts and numbers."""
    lengths = np.asarray(cells.lengths, np.int64)
    rounded = {"quantize": model.quantization.kind} if model.quantization else {}
    return rounded | {
        "vocabulary": cells.vocabulary.hash,
        "weights": weights_sha256(model, ("embeddings", "blocks")),
        "cells": len(lengths),
        "lengths": sha256(lengths),
        "cell ids": sha256("\0".join(map(str, cells.obs.index)).encode()),
        "tokens": _tokens_sha256(cells),
    }


def _tokens_sha256(cells: EncodedCells) -> str:
    """Returns the hash of all cells that some were chosen of; of a store no cell is read for it."""
    while isinstance(cells, ChosenCells | ShorterCells):
        cells = cells.source
    if isinstance(cells, CellStore):
        return sha256("".join(shard.sha256 for shard in cells.shards).encode())
    digest, total = hashlib.sha256(), len(cells.lengths)
    for start in range(0, total, _CELLS_AT_ONCE):
        for tokens in cells.read(np.arange(start, min(start + _CELLS_AT_ONCE, total))):
            digest.update(np.ascontiguousarray(tokens))
    return digest.hexdigest()


def labels_sha256(values: pd.Series) -> str:
    """Returns the hash of labels of cells as texts."""
    return sha256("\0".join(map(str, label_texts(values))).encode())


def sha256(data: np.ndarray | bytes) -> str:
    """Returns the hash of bytes or of an array's values."""
    return hashlib.sha256(
        data if isinstance(data, bytes) else np.ascontiguousarray(data)
    ).hexdigest()


def weights_sha256(model: PretrainedModel, names: Iterable[str]) -> str:
    """Returns the hash of the weights of parts of a model, by their names in `params`."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves({name: model.params[name] for name in names}):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)))
    return digest.hexdigest()
