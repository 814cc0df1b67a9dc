"""What an interrupted run leaves behind, and how the same command finds that it may go on there."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.pretrained import PretrainedModel

PLAN = "plan.json"


def parts_folder(output: Path) -> Path:
    """Where the parts of an unfinished output lie."""
    return output.with_name(output.name + ".parts")


def identity_of(model: PretrainedModel, cells: EncodedCells) -> dict[str, Any]:
    """Returns what results depend on: weights, vocabulary and cells, as short texts and numbers."""
    lengths = np.asarray(cells.lengths, np.int64)
    return {
        "vocabulary": cells.vocabulary.hash,
        "weights": weights_sha256(model, ("embeddings", "blocks")),
        "cells": len(lengths),
        "lengths": sha256(lengths),
        "cell ids": sha256("\0".join(map(str, cells.obs.index)).encode()),
    }


def refuse_other_plan(
    folder: Path, plan: Mapping[str, Any], apart_from: Iterable[str] = ()
) -> None:
    """Raises InputError if the parts in `folder` were begun with another plan.

    Args:
      folder: holds `plan.json`.
      plan: of this run.
      apart_from: names that need not agree.
    """
    kept, plan = json.loads((folder / PLAN).read_text()), as_json(plan)
    names = [name for name in {**kept, **plan} if kept.get(name) != plan.get(name)]
    names = [name for name in names if name not in set(apart_from)]
    if names:
        raise InputError(
            f"{folder} holds an unfinished run with another {', '.join(names)}; give its command "
            "again, or remove the folder to begin anew"
        )


def as_json(value: Any) -> Any:
    """Returns a value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


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
