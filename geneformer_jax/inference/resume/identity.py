"""What results depend on, as short texts and numbers that a folder of parts can keep."""

import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.model.pretrained import PretrainedModel


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
    }


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
