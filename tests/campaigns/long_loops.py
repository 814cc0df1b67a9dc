"""The loops that `long_runs` looks at, each in a process of its own.

Usage: python -m tests.campaigns.long_loops train|load|embed|pretrain|compare FOLDER ...
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from geneformer_jax.batches.loader import read_ahead
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.embedder import Embedder
from geneformer_jax.embedding.parts import EmbeddingParts
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.run import prepare_run
from geneformer_jax.training.telemetry import read_metrics
from tests.helpers.pretrain_runs import assert_identical, config_of, parameters
from tests.helpers.toy import make_store, toy_cells, toy_model, toy_vocabulary

STORE = "store"
_TINY = {"model.layers": 1, "model.width": 16, "model.heads": 2, "model.feed_forward": 16}
_OFTEN = 50


class RepeatedCells:
    """Simulated cells without end: those of a small store, over and over; reads as a CellStore."""

    def __init__(self, store: CellStore, cells: int):
        self._store = store
        self.vocabulary: GeneVocabulary = store.vocabulary
        self.lengths = np.resize(store.lengths, cells)
        self.obs = pd.DataFrame(index=pd.RangeIndex(cells))

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens of cells."""
        return self._store.read(np.asarray(indices) % len(self._store.lengths))


def _store(folder: Path, cells: int = 240, genes: int = 150) -> CellStore:
    if (folder / STORE).exists():
        return CellStore.open(folder / STORE)
    return make_store(folder / STORE, toy_cells(cells)[:, :genes].copy(), toy_vocabulary())


def _config(store: CellStore, steps: int, changes: dict[str, object] | None = None):
    every = {
        "checkpoint.every_steps": max(steps // _OFTEN, 1),
        "evaluation.every_steps": max(steps // _OFTEN, 1),
        "log_every_steps": 20,
    }
    return config_of(store, steps=steps, **(_TINY | every | (changes or {})))


def train(folder: Path, steps: str) -> None:
    """The training loop, with checkpoints, evaluations and metrics."""
    pretrain(_config(_store(folder), int(steps)), folder / "run")


def load(folder: Path, steps: str, workers: str) -> None:
    """The loader alone."""
    store = _store(folder)
    run = prepare_run(_config(store, int(steps), {"data.workers": int(workers)}), store)
    for step, batch in enumerate(read_ahead(run.batches, 0, int(workers)), start=1):
        assert batch.tokens_BT.any()
        if step == int(steps):
            return


def embed(folder: Path, cells: str) -> None:
    """The embedding loop, its parts written as the command writes them."""
    store = _store(folder, genes=12)
    model = toy_model(special_tokens=store.vocabulary.special_tokens, layers=1, width=8)
    embedder = Embedder(model, RepeatedCells(store, int(cells)))
    parts = EmbeddingParts(folder / "embeddings.npy", embedder, {"of": "simulated cells"})
    parts.make()
    with parts.joined() as embedded:
        first = embedded.rows[: len(store.lengths)]
        np.testing.assert_allclose(embedded.rows[len(first) : 2 * len(first)], first, atol=1e-6)


def pretrain_once(folder: Path, name: str, steps: str) -> None:
    """A run, to its end or until it is told to stop."""
    config = _config(_store(folder), int(steps), {"model.width": 64, "model.layers": 2})
    pretrain(config, folder / name)


def compare(folder: Path) -> None:
    """Whether both runs have the same weights and losses, bit for bit."""
    one, other = folder / "whole", folder / "restarted"
    assert_identical(parameters(one), parameters(other))
    # Means over steps are left out: where a run was stopped it has a line more.
    losses = [
        {row["step"]: row["held_out_loss"] for row in read_metrics(run) if "held_out_loss" in row}
        for run in (one, other)
    ]
    assert losses[0] == losses[1] and len(losses[0]) > 1


LOOPS = {
    "train": train,
    "load": load,
    "embed": embed,
    "pretrain": pretrain_once,
    "compare": compare,
}


def main() -> None:
    """Runs a loop."""
    # grain looks at flags before it starts processes.
    flags.FLAGS.mark_as_parsed()
    what, folder, *arguments = sys.argv[1:]
    try:
        LOOPS[what](Path(folder), *arguments)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
