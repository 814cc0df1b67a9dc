"""Tools, as scanpy has them: each writes its results into the AnnData, or returns a copy.

    gf.tl.embed(adata, model)                       # .obsm["X_geneformer"]
    gf.tl.umap(adata)                               # .obsm["X_geneformer_umap"]
    gf.tl.perturb(adata, model, genes=["CD74"])     # .uns["perturbation"]
    gf.tl.attend(adata, model, ["CD74", "CD3E"])    # .uns["attention"]

`layer` or `use_raw` name the raw counts where X does not hold them. Cells that are left out have
NaN in `.obs` and `.obsm`, and `.uns` counts the reasons. What is imported here starts no JAX.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.scverse.reading import GeneArguments, count_arguments
from geneformer_jax.scverse.writing import parameters, storable, written_into

if TYPE_CHECKING:
    import anndata
    import jax

    from geneformer_jax.attention_analysis.gene_lists import GeneLists
    from geneformer_jax.inference.filters import Filters
    from geneformer_jax.model.pretrained import PretrainedModel
    from geneformer_jax.model.runtime import Runtime

__all__ = ["attend", "embed", "perturb", "predict", "transfer", "umap"]
# Arguments of `perturb_cells` that are given otherwise, and those that ask for other tables.
_NOT_HERE = {"model", "cells", "output", "devices", "gene_shifts", "top", "reading"}


def __dir__() -> list[str]:
    # What completion in a notebook offers.
    return __all__


def embed(
    adata: anndata.AnnData,
    model: PretrainedModel,
    *,
    key_added: str = "X_geneformer",
    mode: str = "cell",
    hidden_layer: int | Sequence[int] = -1,
    layer: str | None = None,
    use_raw: bool | None = None,
    filters: Filters | None = None,
    max_cells: int | None = None,
    copy: bool = False,
    runtime: Runtime | None = None,
    devices: list[jax.Device] | None = None,
    **genes: Unpack[GeneArguments],
) -> anndata.AnnData | None:
    """Embeds cells; `gf.embed_cells` embeds genes and reads files too.

    Args:
      adata: raw counts.
      model: a pretrained encoder with its vocabulary.
      key_added: name of the embeddings in `.obsm`.
      mode: "cell", the mean over the cell's genes, or "cls", the `<cls>` token of V2 models.
      hidden_layer: hidden state to use, counted back from the last (0); several are
        `.obsm["X_geneformer_layer-1"]` and so on.
      layer: layer with the raw counts, or several, as "spliced+unspliced".
      use_raw: whether they are in `.raw`; by default the matrix that holds raw counts is found.
      filters: obs column -> value or values of which a cell must have one; all must pass.
      max_cells: cells to draw at random; None takes all.
      copy: return a copy with the results, and leave `adata` as it is.
      runtime, devices: see `gf.embed_cells`.
      genes: how gene ids are found, see `GeneArguments`; `gene_column` names a column of `.var`.

    Returns:
      None, or the copy. Written are float32 `.obsm[key_added]` [cells, D], NaN in cells that are
      left out, and `.uns["geneformer"]` (`.uns[key_added]` under another key): how they were made,
      and `left_out`, reason -> cells.

    Raises:
      InputError: see `gf.embed_cells`.
    """
    from geneformer_jax.embedding.api import embed_cells

    with written_into(adata, key_added, copy) as written:
        reading = count_arguments(adata, layer, use_raw, genes, embed)
        if mode in ("gene", "occurrence"):
            raise InputError(
                f'mode "{mode}" gives no rows of cells; use gf.embed_cells(model, adata, '
                f'mode="{mode}"), which returns an AnnData of genes'
            )
        embed_cells(
            model, written, mode=mode, hidden_layer=hidden_layer, filters=filters,
            max_cells=max_cells, key_added=key_added, inplace=True, runtime=runtime,
            devices=devices, **reading,
        )  # fmt: skip
    return written if copy else None


def umap(
    adata: anndata.AnnData,
    *,
    basis: str = "X_geneformer",
    seed: int = 0,
    copy: bool = False,
) -> anndata.AnnData | None:
    """Lays out cells in the plane by their embeddings, with UMAP (15 neighbours).

    Of scanpy's own, `sc.pp.neighbors(adata, use_rep="X_geneformer")` and `sc.tl.umap(adata)` do the
    same where no cell was left out.

    Args:
      adata: with the embeddings.
      basis: their name in `.obsm`.
      seed: of the layout.
      copy: return a copy with the results, and leave `adata` as it is.

    Returns:
      None, or the copy. Written is float32 `.obsm["<basis>_umap"]` [cells, 2], NaN where there is
      no embedding, for `gf.pl.umap(adata)` or `sc.pl.embedding(adata, "X_geneformer_umap")`.

    Raises:
      InputError: there are no such embeddings, or fewer than 4 cells have one.
    """
    import numpy as np

    from geneformer_jax.common.arguments import require_text, require_whole
    from geneformer_jax.inference.cells import fill_rows
    from geneformer_jax.reporting.figures import umap_positions

    with written_into(adata, f"{basis}_umap", copy) as written:
        require_text("basis", basis, "a name in .obsm")
        require_whole("seed", seed, 0)
        if basis not in adata.obsm:
            raise InputError(
                f'.obsm has no "{basis}"{did_you_mean(basis, adata.obsm)}; embed cells first: '
                "gf.tl.embed(adata, model)"
            )
        embeddings = np.asarray(adata.obsm[basis])
        rows = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
        positions = umap_positions(embeddings[rows], seed)
        written.obsm[f"{basis}_umap"] = fill_rows(positions, rows, adata.n_obs)
    return written if copy else None


def perturb(
    adata: anndata.AnnData,
    model: PretrainedModel,
    *,
    genes: str | Sequence[str] = "all",
    edit: str = "delete",
    states: object = None,
    key_added: str = "perturbation",
    layer: str | None = None,
    use_raw: bool | None = None,
    copy: bool = False,
    output: Path | str | None = None,
    **options: Any,
) -> anndata.AnnData | None:
    """Perturbs genes of cells in silico; what shifts them, and whether that can be believed.

    Args:
      adata: raw counts, under distinct `.obs_names`.
      model: a pretrained encoder with its vocabulary.
      genes: "all", every gene of a cell in turn, or gene ids or symbols, or a file of them.
      edit: "delete", "overexpress", "inhibit" or "activate".
      states: cell states towards which shifts are measured, such as `{"column": "disease", "start":
        "dilated", "goal": "healthy"}` or a `gf.CellStates`; the cells of the start are perturbed.
      key_added: name of the results in `.uns` and `.obsm`.
      layer: layer with the raw counts, or several, as "spliced+unspliced".
      use_raw: whether they are in `.raw`; by default the matrix that holds raw counts is found.
      copy: return a copy with the results, and leave `adata` as it is.
      output: folder that keeps the shifts of all cells and a page on them, in which the same call
        goes on after a kill; by default they are put together and gone.
      options: other arguments of `gf.perturb_cells`, such as `screen`, `max_cells` or `filters`;
        and of `GeneArguments`, such as `gene_column`.

    Returns:
      None, or the copy. Written is `.uns[key_added]`:
      `statistics`, one row for each edit, as `gf.perturbation_statistics` makes it:
      goal_state_shift with states, else aggregate, with the columns of its controls;
      `controls`, one row for each control: what it asks, its result, and the verdict;
      `verdict`, that of genes of like rank; `left_out`, reason -> cells or edits;
      `genes_left_out`, the listed genes that were, and why; `params`.
      Where genes are named, `.obsm[key_added]` too: a table [cells, edits] of the shifts of each
      cell (towards the goal; without states the cosine of before and after), NaN where a cell has
      no such edit.

    Raises:
      InputError: see `gf.perturb_cells`.
    """
    import pandas as pd

    from geneformer_jax.perturbation.api import perturb_cells
    from geneformer_jax.perturbation.statistics.report import compute_statistic
    from geneformer_jax.perturbation.tables import cells_by_edits

    mode = "aggregate" if states is None else "goal_state_shift"
    with written_into(adata, key_added, copy) as written, _folder(output) as folder:
        own, of_genes = _divided(options)
        reading = count_arguments(adata, layer, use_raw, of_genes, perturb)
        given = {"genes": genes, "edit": edit, "states": states, **own}
        shifts = perturb_cells(model, adata, output=folder, **given, **reading)
        found = compute_statistic(folder, mode)
        result = {
            "params": parameters(
                **given, **of_genes, layer=layer, use_raw=use_raw, output=output, statistic=mode,
                **found.used,
            ),
            "statistics": storable(pd.concat(found.tables[mode], ignore_index=True)),
            "left_out": dict(shifts.attrs["left_out"]),
            "genes_left_out": storable(pd.DataFrame(shifts.attrs["genes_left_out"])),
        }  # fmt: skip
        if found.controls:
            result["controls"] = storable(found.controls.table)
            result["verdict"] = found.controls.verdict
        written.uns[key_added] = result
        of_all = isinstance(genes, str) and genes == "all"
        if not of_all or own.get("combinations"):
            which = found.used["measure"], found.used.get("goal", "")
            written.obsm[key_added] = cells_by_edits(shifts, *which, adata.obs_names)
    return written if copy else None


@contextlib.contextmanager
def _folder(output: Path | str | None) -> Iterator[Path]:
    """Yields the folder that was named, or one that is gone afterwards."""
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "perturbation"


def _divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides arguments into those of perturbations and `GeneArguments`."""
    from geneformer_jax.perturbation.api import perturb_cells

    of_genes = GeneArguments.__annotations__
    known = {*inspect.signature(perturb_cells).parameters, *of_genes} - _NOT_HERE
    for name in options:
        if name not in {*known, "counts_layer"}:
            raise InputError(
                f"`{name}` is no argument{did_you_mean(name, known)} of gf.tl.perturb; it takes "
                "those of gf.perturb_cells that measure cells"
            )
    own = {name: value for name, value in options.items() if name in known - of_genes.keys()}
    return own, {name: value for name, value in options.items() if name not in own}


def attend(
    adata: anndata.AnnData,
    model: PretrainedModel,
    genes: GeneLists,
    *,
    key_added: str = "attention",
    groupby: str | None = None,
    pairs: Sequence[str] = (),
    control: bool = False,
    min_cells: int = 10,
    filters: Filters | None = None,
    max_cells: int | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    copy: bool = False,
    runtime: Runtime | None = None,
    devices: list[jax.Device] | None = None,
    **ids: Unpack[GeneArguments],
) -> anndata.AnnData | None:
    """Finds what the heads of a model attend to in these cells.

    Args:
      adata: raw counts.
      model: a pretrained encoder with its vocabulary.
      genes: genes to compare with all others, such as transcription factors: one list, lists by
        name, or a file.
      key_added: name of the results in `.uns`.
      groupby, pairs, control, min_cells, filters, max_cells: see `gf.attend_cells`.
      layer: layer with the raw counts, or several, as "spliced+unspliced".
      use_raw: whether they are in `.raw`; by default the matrix that holds raw counts is found.
      copy: return a copy with the results, and leave `adata` as it is.
      runtime, devices: see `gf.attend_cells`.
      ids: how gene ids are found, see `GeneArguments`; `gene_column` names a column of `.var`.

    Returns:
      None, or the copy. Written is `.uns[key_added]`: the tables that `gf.attend_cells` returns,
      `heads`, `ranks`, `layers`, `thirds`, `statements`, `groups` and `pairs`, and `params`.

    Raises:
      InputError: see `gf.attend_cells`.
    """
    from geneformer_jax.attention_analysis.api import attend_cells

    with written_into(adata, key_added, copy) as written:
        reading = count_arguments(adata, layer, use_raw, ids, attend)
        how = {"groupby": groupby, "pairs": pairs, "control": control, "min_cells": min_cells,
               "filters": filters, "max_cells": max_cells}  # fmt: skip
        found = attend_cells(
            model, adata, genes, runtime=runtime, devices=devices, **how, **reading
        )
        tables = {name: storable(table) for name, table in found.tables().items() if len(table)}
        params = parameters(genes=genes, layer=layer, use_raw=use_raw, **how, **ids)
        written.uns[key_added] = {**tables, "params": params}
    return written if copy else None


def predict(
    adata: anndata.AnnData,
    model: PretrainedModel,
    *,
    layer: str | None = None,
    use_raw: bool | None = None,
    copy: bool = False,
    **genes: Unpack[GeneArguments],
) -> anndata.AnnData | None:
    """Predicts the classes of cells, or their numbers, with a fine-tuned model.

    Args:
      adata: raw counts.
      model: with a cell classifier, as `gf.finetune_cells` makes it.
      layer: layer with the raw counts, or several, as "spliced+unspliced".
      use_raw: whether they are in `.raw`; by default the matrix that holds raw counts is found.
      copy: return a copy with the results, and leave `adata` as it is.
      genes: how gene ids are found, see `GeneArguments`; `gene_column` names a column of `.var`.

    Returns:
      None, or the copy. Written is, for each output of classes, `.obs["predicted_NAME"]`,
      `.obs["probability_NAME"]`, `.obsm["probabilities_NAME"]` [cells, C] and
      `.uns["classes_NAME"]`, and for each number `.obs["predicted_NAME"]`; the output of a plain
      classifier is called "label". Cells that are left out have no value.

    Raises:
      InputError: see `gf.predict_cells`.
    """
    from geneformer_jax.finetuning.prediction.api import predict_cells
    from geneformer_jax.finetuning.prediction.tables import columns_of

    with written_into(adata, "predicted", copy) as written:
        reading = count_arguments(adata, layer, use_raw, genes, predict)
        predicted = predict_cells(model, adata, all_cells=True, **reading)
        _take(written, predicted, columns_of(model.head))
    return written if copy else None


def transfer(
    adata: anndata.AnnData,
    model: PretrainedModel,
    reference: anndata.AnnData | Path | str,
    label: str,
    *,
    group: str = "",
    hidden_layer: int = -1,
    layer: str | None = None,
    use_raw: bool | None = None,
    copy: bool = False,
    runtime: Runtime | None = None,
    devices: list[jax.Device] | None = None,
    **genes: Unpack[GeneArguments],
) -> anndata.AnnData | None:
    """Carries the labels of a reference over to these cells, without training the model.

    Args:
      adata: raw counts of the cells to label.
      model: a pretrained encoder with its vocabulary.
      reference: labelled cells: an AnnData of raw counts, or a file or store.
      label: obs column of the reference; where `adata` has it too, its labels are compared with.
      group: obs column of the reference such as donors, of which each is in one fold only.
      hidden_layer, runtime, devices: see `gf.transfer_labels`.
      layer: layer with the raw counts of both.
      use_raw: whether they are in `.raw` of both; by default the matrix that holds raw counts is
        found.
      copy: return a copy with the results, and leave `adata` as it is.
      genes: how gene ids are found, see `GeneArguments`; `gene_column` names a column of `.var`.

    Returns:
      None, or the copy. Written are `.obs["transferred_label"]`, `"distance_to_reference"`,
      `"trusted"` and the label by each classifier, `.obsm["X_geneformer"]` and
      `.uns["label_transfer"]`; see `gf.transfer_labels`. Cells that are left out have no label and
      are not trusted.

    Raises:
      InputError: see `gf.transfer_labels`.
    """
    from geneformer_jax.label_transfer.api import transfer_labels
    from geneformer_jax.label_transfer.output import columns_of

    with written_into(adata, "label_transfer", copy) as written:
        reading = count_arguments(adata, layer, use_raw, genes, transfer)
        labelled = transfer_labels(
            model, reference, adata, label, group=group, hidden_layer=hidden_layer, all_cells=True,
            runtime=runtime, devices=devices, **reading,
        )  # fmt: skip
        _take(written, labelled, columns_of(labelled))
    return written if copy else None


def _take(written: anndata.AnnData, results: anndata.AnnData, columns: Sequence[str]) -> None:
    """Writes some obs columns of the same cells, and all of obsm and uns, into an AnnData."""
    for name in columns:
        written.obs[name] = results.obs[name].array
    written.obsm.update(results.obsm)
    written.uns.update(results.uns)
