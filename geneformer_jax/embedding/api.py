"""Embeddings of cells and genes from the hidden states of a pretrained encoder.

Cells are encoded in batches of similar length on all devices and come back in the order of the
input, where the original returns them from longest to shortest.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import anndata as ad
import jax

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.arguments import require_key
from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.embedder import (
    KEY,
    MODES,
    Embedded,
    Embedder,
    check_all_cells,
    check_options,
)
from geneformer_jax.inference.arguments import check_model, check_runtime
from geneformer_jax.inference.cells import (
    ChosenCells,
    open_cells,
    places_in_input,
    select_cells,
)
from geneformer_jax.inference.draw import ORIGINAL_SEED, check_draw
from geneformer_jax.inference.filters import Filters
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime

__all__ = ["KEY", "MODES", "embed_cells"]


def embed_cells(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    *,
    mode: str = "cell",
    hidden_layer: int | Sequence[int] = -1,
    filters: Filters | None = None,
    max_cells: int | None = None,
    seed: int = ORIGINAL_SEED,
    key_added: str = KEY,
    inplace: bool = False,
    all_cells: bool = False,
    runtime: Runtime | None = None,
    devices: list[jax.Device] | None = None,
    **reading: Unpack[CountArguments],
) -> ad.AnnData | None:
    """Embeds cells, or the genes in them, with a pretrained model.

    Args:
      model: a pretrained encoder with its vocabulary.
      cells: a cell store (open, or its folder), tokenised cells, an AnnData of raw counts, or an
        h5ad file of raw counts. Counts are tokenised with the model's vocabulary.
      mode: "cell", the mean over the cell's genes, special tokens left out; "cls", the `<cls>`
        token of V2 models; "gene", for each token its mean over the cells that contain it; or
        "occurrence", each token of each cell by itself.
      hidden_layer: hidden state to use, counted back from the last: 0 is the last, -1 the one
        before it (the original's choice, more general than the last). Several are read off one
        pass. Nothing above the highest is computed.
      filters: obs column -> value or values of which a cell must have one; all must pass.
      max_cells: cells to draw at random; None takes all.
      seed: of the draw; the default draws the cells that the original's `max_ncells` keeps.
      key_added: name of the embeddings in `.obsm`.
      inplace: add the embeddings to the AnnData given as `cells`, beside its counts and whatever
        else it holds, in place of returning a new one. For modes "cell" and "cls".
      all_cells: return a row for every cell of the input, with NaN in those of cells that are left
        out (no gene of the vocabulary, filtered out, not drawn), so that results fit the input by
        position. For modes "cell" and "cls".
      runtime: how to compute; float32, and the attention that suits the device, by default.
      devices: which share the work; all of this process by default.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Returns:
      AnnData without X and with float32 `.obsm[key_added]` [rows, D]; with several hidden layers
      `.obsm["X_geneformer_layer-1"]` and so on. Modes "cell" and "cls": one row per cell, in input
      order and under its id, with all its obs columns; cells that are left out are counted in
      `.uns["geneformer"]["left_out"]`. Mode "gene": one row per token that occurs, under its gene
      id, with obs columns `symbol`, `n_cells` and `spread`, the root mean square distance of its
      states from their mean. Mode "occurrence": obs columns `cell_id`, `gene_id`, `symbol` and
      `rank`, which counts from 0 and special tokens too.

      With `inplace`: None; the given AnnData gets `.obsm[key_added]`, NaN in the rows of cells that
      are left out, and `.uns["geneformer"]`, which counts them. Under another `key_added` than the
      default, the entry of `.uns` has that name too.

    Raises:
      InputError: there is no such mode or layer, the model has no vocabulary or no `<cls>`, the
        cells were tokenised with another vocabulary or are longer than the model's positions, no
        cell passes the filters, or `inplace` is asked for without an AnnData or for genes.
    """
    check_model(model)
    check_draw(max_cells, seed)
    check_runtime(runtime, devices)
    require_key("key_added", key_added, "a name in `.obsm`")
    check_options(model, mode, hidden_layer)
    if inplace and not (isinstance(cells, ad.AnnData) and mode in ("cell", "cls")):
        raise InputError(
            f'inplace adds embeddings of cells to an AnnData, but mode "{mode}" of a '
            f"{type(cells).__name__} was asked for; leave inplace out and take what is returned"
        )
    check_all_cells(mode, all_cells)
    chosen = select_cells(open_cells(cells, model, **reading), filters, max_cells, seed)
    embedder = Embedder(model, chosen, mode, hidden_layer, runtime, devices=devices)
    embedded = dataclasses.replace(_embed(embedder, chosen), name=key_added)
    obs, rows = places_in_input(chosen)
    if inplace:
        embedded.add_to(cells, rows)
        return None
    return (embedded.with_all(obs, rows) if all_cells else embedded).to_anndata()


def _embed(embedder: Embedder, cells: ChosenCells) -> Embedded:
    with embedder.progress() as progress:
        if embedder.pass_.mode == "gene":
            return embedder.gene_table(embedder.genes(0, len(cells.rows), progress))
        rows = embedder.rows(0, len(cells.rows), progress)
    return Embedded(rows, embedder.table(), embedder.layers, embedder.facts())
