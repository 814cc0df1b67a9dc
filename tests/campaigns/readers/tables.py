"""Tables of results that are read again, and configurations."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from configs.quickstart import get_config
from geneformer_jax.common.workdir import claim_folder
from geneformer_jax.embedding.embedder import Embedded
from geneformer_jax.embedding.states import StateEmbeddings, state_embeddings
from geneformer_jax.perturbation.statistics.report import compute_statistic
from geneformer_jax.training.config import typed_config
from tests.campaigns.readers.reader import Reader, Result
from tests.helpers.shift_folders import shifts, write_run


def _write_states(folder: Path) -> Path:
    table = pd.DataFrame({"state": [*"ababb"]}, index=[f"c{i}" for i in range(5)])
    rows = np.random.default_rng(0).normal(size=(5, 2, 6)).astype(np.float32)
    facts = {"mode": "cell", "vocabulary_hash": "abc"}
    state_embeddings(Embedded(rows, table, (-1, 0), facts), "state").save(folder / "s.parquet")
    return folder / "s.parquet"


def _read_states(path: Path) -> Result:
    states = StateEmbeddings.load(path)
    found = {f"{s}{k}": v for k in (-1, 0) for s, v in states.vectors("mean", k).items()}
    return found | {"column": states.column, "facts": repr(states.facts)}


def _write_shifts(folder: Path) -> Path:
    return write_run(folder / "run", shifts())


def _read_shifts(folder: Path) -> Result:
    # What draws and writes pages takes seconds, and leaves files that nothing reads to be damaged.
    return {
        name: pd.concat(pieces)
        for mode in _MODES
        for name, pieces in compute_statistic(folder, mode, controls=()).tables.items()
    }


_MODES = ("goal_state_shift", "aggregate", "mixture_model", "combinations", "aggregate_gene_shifts")
_IDENTITY = {"command": "embed", "options": {"mode": "cell", "layers": [-1]}, "cells": "abc"}
_SETTINGS = {"tokens_per_part": 1000}


def _write_config(folder: Path) -> Path:
    claim_folder(folder / "run", _IDENTITY, file="config.json", elsewhere="name a new folder",
                 settings=_SETTINGS)  # fmt: skip
    content = json.dumps(get_config().to_dict())
    (folder / "run" / "pretrain.json").write_text(content)
    return folder / "run"


def _read_config(folder: Path) -> Result:
    kept = claim_folder(folder, _IDENTITY, file="config.json", elsewhere="name a new folder",
                        settings={"tokens_per_part": 7})  # fmt: skip
    if not (folder / "pretrain.json").is_file():
        return {"kept": repr(kept)}
    try:
        content = json.loads((folder / "pretrain.json").read_text())
    except ValueError:
        return {"kept": repr(kept)}
    return {"kept": repr(kept), "config": repr(typed_config(content))}


READERS = {
    "state embeddings": Reader(_write_states, _read_states),
    "shift tables": Reader(_write_shifts, _read_shifts),
    "configuration": Reader(_write_config, _read_config),
}
