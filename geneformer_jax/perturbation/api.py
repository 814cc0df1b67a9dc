"""In silico perturbation: what a model makes of cells whose genes are deleted or moved.

`perturb_cells` is for notebooks; the perturb command writes tables as they come.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import anndata as ad
import jax
import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.tokenization.quality_control import describe_left_out
from geneformer_jax.common.arguments import require_path
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.inference.arguments import check_model, check_runtime
from geneformer_jax.inference.cells import open_cells
from geneformer_jax.inference.draw import ORIGINAL_SEED
from geneformer_jax.inference.filters import Filters
from geneformer_jax.inference.listed_genes import describe_missing
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.perturbation.cell_states import CellStates
from geneformer_jax.perturbation.config import (
    MEANS,
    NONE,
    ORIGINAL,
    RENUMBER,
    PerturbationOptions,
    choose_controls,
)
from geneformer_jax.perturbation.controls.choice import NONE as NO_CONTROLS
from geneformer_jax.perturbation.controls.choice import read_controls, refuse
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.gene_sets import ALL, EACH
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.engine.plan import EditPlan
from geneformer_jax.perturbation.engine.screening.reranking import RerankingPerturber
from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.in_folder import join_tables, perturb_into
from geneformer_jax.perturbation.layout import METHODS, SPLIT_POINTS
from geneformer_jax.perturbation.prepare import (
    all_left_out,
    choose_runtime,
    make_plan,
    make_spec,
    name_states,
    resolve_edits,
    with_reranking,
)
from geneformer_jax.perturbation.screen import Screen, log_accuracy, plan_screen
from geneformer_jax.perturbation.statistics.accuracy.screen_accuracy import screen_accuracy
from geneformer_jax.perturbation.statistics.from_table import RUN
from geneformer_jax.perturbation.tables import (
    gene_means_table,
    gene_shifts_table,
    merge_gene_means,
    shifts_table,
)

__all__ = ["CellStates", "perturb_cells"]


def perturb_cells(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    *,
    edit: str = "delete",
    genes: str | Sequence[str] = ALL,
    combine: str = EACH,
    anchor: str | None = None,
    combinations: Sequence[Sequence[str]] | None = None,
    ranks: int | None = None,
    quantile: float | None = None,
    truncation: str = ORIGINAL,
    positions: str = RENUMBER,
    mode: str | None = None,
    hidden_layer: int = -1,
    states: CellStates | Mapping[str, object] | None = None,
    state_embeddings: Path | str | None = None,
    classes: bool = False,
    gene_shifts: str = NONE,
    top: int = 100,
    filters: Filters | None = None,
    expressing: Sequence[str] = (),
    max_cells: int | None = None,
    seed: int = ORIGINAL_SEED,
    screen: bool = False,
    split_points: int = SPLIT_POINTS,
    settle: int | float | None = None,
    output: Path | str | None = None,
    controls: str | Sequence[str] = NO_CONTROLS,
    runtime: Runtime | None = None,
    devices: Sequence[jax.Device] | None = None,
    tokens_per_device: int | None = None,
    **reading: Unpack[CountArguments],
) -> pd.DataFrame:
    """Perturbs genes of cells and measures how the model's view of the cells shifts.

    Args:
      model: a pretrained encoder with its vocabulary.
      cells: a cell store (open, or its folder), tokenised cells, an AnnData of raw counts, or a
        file of raw counts.
      edit: "delete", "overexpress" (to the front), "inhibit" or "activate" (down or up by `ranks`).
      genes: "all", every gene of a cell in turn, or gene ids or symbols, or a file of them. A gene
        that a cell does not express is left out there, unless it is overexpressed; genes that are
        not in the vocabulary, or in no cell, are logged and listed in `.attrs["genes_left_out"]`;
        how many cells and edits are left out, and why, in `.attrs["left_out"]` (a gene that is
        alone in its cell cannot be deleted, for nothing is left to compare).
      combine: "each" gene in turn, all "together" as one set (what the original does with a list),
        or all "pairs".
      anchor: a gene that is perturbed together with each of the others.
      combinations: sets of genes, each perturbed together.
      ranks, quantile: how far "inhibit" and "activate" move a gene: a number of ranks, or a
        fraction of the cell's genes.
      truncation: "original", nothing slides in from beyond the model's context, or "refill".
      positions: "renumber", all that stands behind a deleted gene moves up by one position, as in
        the original; or "keep": it keeps its position numbers, and no part of a shift comes from
        later genes moving up.
      mode: what stands for a cell: "cell", the mean of its genes, or "cls"; by default "cls" where
        the model has it.
      hidden_layer: hidden state of the model to compare, counted back from the last (0).
      states: cell states towards which shifts are measured, or a dict of its attributes; the cells
        of its start are perturbed.
      state_embeddings: a file that `embed --states` wrote; computed from `cells` by default.
      classes: measure class probabilities too (a model with a cell classifier).
      gene_shifts: "none"; or return shifts of single genes instead: "full", the "top" that are
        shifted most in each edit, or "means" over the cells.
      top: genes of each edit for "top".
      filters: obs column -> value or values of which a cell must have one; all must pass.
      expressing: genes that a cell must express.
      max_cells: cells to draw at random; None takes all.
      seed: of the draws.
      screen: estimate what deletions do to the states' cosines, at the cost of about
        `split_points` + 2 encodings of each cell and 4 more for each state and class, instead of
        one encoding for each of its genes. Cells with no more edits than that are made exactly.
      split_points: of a screen: positions of a cell at which its later genes are moved up exactly.
      settle: of a screen: how many of the edits with the strongest estimates towards the goal are
        then made exactly, a number or (a float) their fraction; and a random sample of 200 edits
        besides, on which the screen is measured (rows in `.attrs["screen_accuracy"]`). 1.0 makes
        all.
      output: folder to write all into that the command perturb writes, part by part: the same call
        goes on there after a kill. `perturbation_statistics` can then be asked about it.
      controls: "none", or "reranking": exact deletions too get the two parts of a screen's shifts,
        at the cost of one more encoding of each edit, or as a screen does where that is less. Into
        `output` also "random_weights", the same edits with a model that has learned nothing, and
        "self_deletion", the states without each of the strongest genes; "all" makes what the run
        allows.
      runtime: how to compute; float32, and the attention that suits the device, by default.
      devices: which share the work; all of this process by default.
      tokens_per_device: padded tokens at a time on each; by default sized from its memory.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Returns:
      One row for each cell, edit and measure, as `perturbation_statistics` takes it too: columns
      `cell`, `edit`, `perturbed` (gene id, ids of a set joined by "+"), `perturbed_symbol`,
      `rank` (of the gene in the cell, the first of a set, from 1; 0 where it is not in sight),
      `measure`, `state` and `value`. Measures:
      "mean_gene_cosine", the original's measure of V1 cells: mean over the genes left of the cosine
      of each before and after; "cell_cosine", of the cell's mean embedding; "cls_cosine";
      "state_shift", what the edit adds to the cosine with a state; "class_probability_before" and
      "class_probability_after". With `gene_shifts`: `affected`, `affected_symbol` and `value`, or
      `mean`, `sd` and `n` (cells), in place of the measures. With the control "reranking" shifts
      towards states have two parts, as those of a screen. A screen has "state_shift" and,
      with `classes`, "class_probability_shift" (after less before) alone, each with its two parts
      `reranking` (all later genes move up by one position; exact in the random sample and where all
      edits are, else interpolated between split points) and `removal` (the rest: the gene is
      missing), the screen's own `estimate`, `method` ("exact" or "estimated"), and whether the edit
      is of the random sample, `sampled`.

    Raises:
      InputError: a gene, state, hidden layer or option is unknown or contradicts another; the cells
        do not fit the model; or no chosen cell expresses the genes.
    """
    check_model(model)
    check_runtime(runtime, devices)
    options = PerturbationOptions(
        edit=edit,
        genes=genes,
        combine=combine,
        anchor=anchor,
        combinations=combinations,
        ranks=ranks,
        quantile=quantile,
        truncation=truncation,
        positions=positions,
        mode=mode,
        hidden_layer=hidden_layer,
        states=states,
        state_embeddings=state_embeddings,
        classes=classes,
        gene_shifts=gene_shifts,
        top=top,
        filters=filters or {},
        expressing=expressing,
        max_cells=max_cells,
        seed=seed,
        screen=screen,
        split_points=split_points,
        settle=settle,
    )
    read_controls(controls)
    options, dear = choose_controls(controls, options)
    if output is not None:
        require_path("output", output, "the folder to write")
        _require_all_devices(devices)
        how = runtime, tokens_per_device, reading
        return perturb_into(Path(output).expanduser(), model, cells, options, dear, *how)
    if dear:
        raise refuse(dear[0], "a folder to be written into: name it by `output`")
    spec, (rule, sets) = make_spec(model, options, devices), resolve_edits(model, options)
    opened = open_cells(cells, model, whole=options.refill, **reading)
    options, spec = name_states(options, spec, opened)
    plan = make_plan(opened, options, spec, rule, sets)
    options = with_reranking(options, plan)
    for line in describe_left_out(plan.left_out):
        logger.info(line)
    for line in describe_missing(plan.missing_genes):
        logger.warning(line)
    given = choose_runtime(model, opened, options, spec, plan, runtime)
    make = _screen if options.screen else _perturb
    table = make(model, plan, *given, options, tokens_per_device)
    table.attrs["genes_left_out"] = plan.missing_genes
    table.attrs["left_out"] = all_left_out(plan)
    table.attrs[RUN] = _facts(plan, options, table)
    return table


def _facts(plan: EditPlan, options: PerturbationOptions, table: pd.DataFrame) -> dict[str, Any]:
    """Returns what statistics need to know of a run beside its table."""
    facts = {"chosen_cells": len(plan.counts)}
    if options.states is not None:
        facts["states"] = asdict(options.states)
    if options.screen:
        methods = table["method"].value_counts()
        facts["screen"] = {name: int(methods.get(name, 0)) for name in METHODS}
    return facts


def _require_all_devices(devices: Sequence[jax.Device] | None) -> None:
    if devices is not None:
        raise InputError(
            "`devices` are given, but a run that is written to `output` takes all; leave one out"
        )


def _perturb(
    model: PretrainedModel,
    plan: EditPlan,
    spec: ForwardSpec,
    states_SD: np.ndarray | None,
    options: PerturbationOptions,
    tokens_per_device: int | None,
) -> pd.DataFrame:
    kind = RerankingPerturber if options.reranking else Perturber
    perturber = kind(model, plan, spec, states_SD, tokens_per_device=tokens_per_device)
    with perturber.progress(plan.edits) as progress:
        parts = [perturber.shifts(*part, progress) for part in plan.parts]
    return _table(parts, perturber, options)


def _screen(
    model: PretrainedModel,
    plan: EditPlan,
    spec: ForwardSpec,
    states_SD: np.ndarray,
    options: PerturbationOptions,
    tokens_per_device: int | None,
) -> pd.DataFrame:
    plan, sizes = plan_screen(plan, spec, options), {"tokens_per_device": tokens_per_device}
    screen = Screen(model, plan, spec, states_SD, options, **sizes)
    with screen.screener.progress(plan.edits) as progress:
        parts = [screen.screener.shifts(*part, progress) for part in plan.parts]
    chosen = screen.choose(parts)
    with screen.screener.progress(len(chosen.all)) as progress:
        tables = [screen.settle(part, progress).to_pandas() for part in parts]
    table = join_tables(tables)
    if len(chosen.sampled):
        log_accuracy(accuracy := screen_accuracy(table[table["sampled"]]))
        # Rows, as pandas neither joins nor writes tables whose attributes are tables.
        table.attrs["screen_accuracy"] = accuracy.to_dict("records")
    return table


def _table(
    parts: Sequence[Shifts], perturber: Perturber, options: PerturbationOptions
) -> pd.DataFrame:
    cells = perturber.plan.cells
    named = options.edit, cells.obs.index.to_numpy(), cells.vocabulary
    if options.gene_shifts == MEANS:
        means = [gene_means_table(part, cells.vocabulary) for part in parts]
        return merge_gene_means(means, options.edit).to_pandas()
    if options.gene_shifts != NONE:
        tables = [gene_shifts_table(part, *named).to_pandas() for part in parts]
    else:
        measures = perturber.spec.measures
        tables = [shifts_table(part, measures, *named).to_pandas() for part in parts]
    return join_tables(tables)
