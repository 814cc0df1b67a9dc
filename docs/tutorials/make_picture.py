"""Draws the picture of the start page: `python docs/tutorials/make_picture.py`, in two minutes.

On the left the embeddings of the tutorials' cells, on the right what deleting each gene does to a
hundred dendritic cells, beside what genes of like rank do.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import small_model

import geneformer_jax as gf

_PICTURE = Path(__file__).resolve().parents[1] / "_static" / "result.png"


def main() -> None:
    """Writes the picture."""
    adata, model = small_model.load()
    gf.tl.embed(adata, model)
    gf.tl.umap(adata)
    states = {"column": small_model.LABEL, "start": "Dendritic", "goal": "CD14+ Monocyte"}
    gf.tl.perturb(adata, model, states=states, screen=True, settle=0.02, max_cells=100)
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    gf.pl.umap(adata, small_model.LABEL, ax=axes[0])
    gf.pl.ranked_shifts(adata, ax=axes[1])
    figure.savefig(_PICTURE, dpi=90)


if __name__ == "__main__":
    main()
