"""What the tutorials begin with: 700 real blood cells, and a small model pretrained on them.

Made by the same commands as `make quickstart`, once, in about three minutes on two cores.
"""

import contextlib
import sys
from pathlib import Path

import anndata as ad

import geneformer_jax as gf

_DOCS = Path(__file__).resolve().parents[1]
FOLDER = _DOCS / "_build" / "small_model"
LABEL = "bulk_labels"


def load() -> tuple[ad.AnnData, gf.PretrainedModel]:
    """Returns the cells, with raw counts and obs column `bulk_labels`, and the model."""
    counts = FOLDER / "counts.h5ad"
    if not (FOLDER / "model" / "held_out.csv").exists():
        sys.path.append(str(_DOCS.parent / "launch"))
        import quickstart

        FOLDER.mkdir(parents=True, exist_ok=True)
        quickstart.demo_cells().write_h5ad(counts)
        with contextlib.chdir(_DOCS.parent):
            quickstart.make_model(counts, FOLDER, LABEL)
    return ad.read_h5ad(counts), gf.load_model(FOLDER / "model")
