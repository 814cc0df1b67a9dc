"""Labels of a reference carried over to other cells, for notebooks; the command writes files."""

from pathlib import Path
from typing import Unpack

import anndata as ad
import jax
import numpy as np

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.common.arguments import require_text
from geneformer_jax.common.log import logger
from geneformer_jax.embedding.embedder import Embedder
from geneformer_jax.inference.arguments import check_model, check_runtime
from geneformer_jax.inference.cells import ChosenCells, places_in_input
from geneformer_jax.label_transfer.output import as_anndata
from geneformer_jax.label_transfer.prepare import read_input
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime

__all__ = ["transfer_labels"]


def transfer_labels(
    model: PretrainedModel,
    reference: ad.AnnData | Path | str,
    query: ad.AnnData | Path | str,
    label: str,
    *,
    group: str = "",
    hidden_layer: int = -1,
    all_cells: bool = False,
    runtime: Runtime | None = None,
    devices: list[jax.Device] | None = None,
    **reading: Unpack[CountArguments],
) -> ad.AnnData:
    """Carries the labels of a reference over to a query, without training the model.

    Both are embedded. Nearest neighbours, prototypes and logistic regression learn the labels from
    the embeddings and, beside them, from principal components of the log counts.

    Args:
      model: a pretrained encoder with its vocabulary.
      reference, query: cell stores, or raw counts; of stores alone no components are made.
      label: obs column of the reference. Where the query has it too, its labels are compared with.
      group: obs column of the reference such as donors, of which each is in one fold only, so that
        the held-out scores are those of new donors.
      hidden_layer: hidden state to use, counted back from the last.
      all_cells: return a row for every cell of the query, without a label where it was left out, so
        that results fit the input by position.
      runtime: how to compute; float32, and the attention that suits the device, by default.
      devices: which share the work; all of this process by default.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Returns:
      AnnData without X: the query's cells in input order with their obs, and in obs
      `transferred_label`, by the classifier of embeddings that was best on the held-out reference;
      `distance_to_reference` and `trusted`, false where that is larger than for 99 % of the
      reference's own cells; `FEATURES CLASSIFIER` for the label of each. Float32
      `.obsm["X_geneformer"]`. `.uns["label_transfer"]`: `scores` (accuracy and macro F1 of each, on
      the held-out reference in 5 folds and on the query's own labels, beside the commonest label),
      `by_label` (precision, recall, F1), `distance_limit`, `verdict`.

    Raises:
      InputError: cells cannot be read or do not fit the model; the reference lacks a column, has
        fewer than two labels of at least 5 cells, or fewer than 5 groups.
    """
    check_model(model)
    check_runtime(runtime, devices)
    require_text("label", label, "an obs column")
    given = read_input(model, reference, query, label, group, **reading)

    def embed(cells: ChosenCells, name: str) -> np.ndarray:
        embedder = Embedder(model, cells, "cell", hidden_layer, runtime, devices=devices)
        with embedder.progress(f"embed the {name}") as progress:
            return embedder.rows(0, len(cells.rows), progress)[:, 0]

    embeddings = embed(given.reference, "reference"), embed(given.query, "query")
    transferred = given.finish(*embeddings)
    for line in transferred.verdict:
        logger.info(line)
    if all_cells:
        obs, rows = places_in_input(given.query)
        return as_anndata(transferred, obs, embeddings[1], rows)
    return as_anndata(transferred, given.query.obs, embeddings[1])
