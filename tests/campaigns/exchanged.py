"""A cell store, a run with its checkpoints and a classifier, to be read by other versions.

Usage: python -m tests.campaigns.exchanged write FOLDER
       python -m tests.campaigns.exchanged read FOLDER
The second prints {"reads": ..., "error": ...} as JSON, and needs nothing of the writer's versions.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import anndata as ad
import numpy as np

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.embedding.api import embed_cells
from geneformer_jax.embedding.embedder import KEY
from geneformer_jax.finetuning.prediction.api import predict_cells
from geneformer_jax.model.heads import CELLS, HeadConfig
from geneformer_jax.model.pretrained import CHECKPOINTS, load_model, save_model
from geneformer_jax.training.api import pretrain
from tests.helpers.pretrain_runs import config_of
from tests.helpers.toy import make_store, toy_cells, toy_model, toy_vocabulary

STORE, RUN, INTERRUPTED, CLASSIFIER, RESULTS = "store", "run", "interrupted", "head", "results.npz"
# Of a run of 12 steps with a checkpoint after every third; what an interrupted one has left.
KEPT = ("3", "6")
# Embeddings and probabilities; and the loss after six further steps, in nats. Versions of XLA add
# up in other orders.
OUTPUTS, LOSS = 2e-5, 1e-4


def write(folder: Path) -> None:
    """Writes all of it, and what it computes."""
    store = make_store(folder / STORE, toy_cells(), toy_vocabulary(), obs=("kind",))
    finished = pretrain(config_of(store, **{"checkpoint.keep": 9}), folder / RUN)
    shutil.copytree(folder / RUN, folder / INTERRUPTED)
    for checkpoint in (folder / INTERRUPTED / CHECKPOINTS).glob("[0-9]*"):
        if checkpoint.name not in KEPT:
            shutil.rmtree(checkpoint)
    head = HeadConfig(CELLS, ("a", "b"), 0.0)
    save_model(toy_model(special_tokens=("<pad>", "<mask>"), head=head), folder / CLASSIFIER, {})
    outputs = _outputs(folder)
    np.savez(folder / RESULTS, loss=finished.held_out.loss, **outputs)


def _outputs(folder: Path) -> dict[str, np.ndarray]:
    store = CellStore.open(folder / STORE)
    embedded = embed_cells(load_model(folder / RUN), store)
    predicted: ad.AnnData = predict_cells(load_model(folder / CLASSIFIER), toy_cells(40))
    return {
        "lengths": np.asarray(store.lengths),
        "embeddings": embedded.obsm[KEY],
        "probabilities": predicted.obsm["probabilities_label"],
    }


def read(folder: Path) -> dict[str, float]:
    """Reads all of it and goes on with the interrupted run; returns largest differences."""
    with np.load(folder / RESULTS) as file:
        written = dict(file)
    found = _outputs(folder)
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch) / RUN
        shutil.copytree(folder / INTERRUPTED, workdir)
        store = CellStore.open(folder / STORE)
        resumed = pretrain(config_of(store, **{"checkpoint.keep": 9}), workdir)
        # A run that began anew would have written the first checkpoint again.
        kept = (folder / INTERRUPTED / CHECKPOINTS / KEPT[0]).stat().st_mtime_ns
        assert (workdir / CHECKPOINTS / KEPT[0]).stat().st_mtime_ns == kept, "began anew"
    np.testing.assert_array_equal(found.pop("lengths"), written["lengths"])
    apart = {name: float(np.abs(each - written[name]).max()) for name, each in found.items()}
    apart["loss"] = abs(float(resumed.held_out.loss) - float(written["loss"]))
    wrong = {name: each for name, each in apart.items() if not each <= _allowed(name)}
    assert not wrong, f"too far apart: {wrong}"
    return apart


def _allowed(name: str) -> float:
    return LOSS if name == "loss" else OUTPUTS


def main() -> None:
    """Writes or reads."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "write":
        write(folder)
        return
    try:
        print(json.dumps({"reads": read(folder), "error": ""}))
    except Exception as error:  # Whatever it is, it is a row of the table.
        told = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        print(json.dumps({"reads": {}, "error": told}))


if __name__ == "__main__":
    main()
