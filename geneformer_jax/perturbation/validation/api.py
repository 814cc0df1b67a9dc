"""Predicted against measured perturbations, for notebooks; the validate command writes files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import anndata as ad
import jax
import pandas as pd

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.common.log import logger
from geneformer_jax.inference.arguments import check_model, check_runtime
from geneformer_jax.inference.counts import open_source
from geneformer_jax.inference.draw import check_draw
from geneformer_jax.inference.filters import Filters
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime, inference_runtime
from geneformer_jax.perturbation.validation.config import SEED, ValidationOptions
from geneformer_jax.perturbation.validation.perturbations import perturbation_table
from geneformer_jax.perturbation.validation.prepare import (
    Validator,
    make_validator,
)
from geneformer_jax.perturbation.validation.scoring import calibration, verdict
from geneformer_jax.perturbation.validation.scoring.compare import Effects, score
from geneformer_jax.perturbation.validation.screen.labels import describe_screen

__all__ = ["Validation", "validate_perturbations"]


@dataclass(frozen=True, eq=False)
class Validation:
    """How predicted perturbations fit measured ones.

    Attributes:
      verdict: sentences, the answer first.
      summary: one row for each metric, see `calibration.summarise`.
      scores: rows of `protocol`, `perturbation`, `source` and `value`, see `compare.score`.
      drf: each score of each perturbation beside its controls, see `calibration.drf`.
      results: a row for each perturbation, a column for each metric.
      agg_results: statistics of these over perturbations.
      perturbations: what is known of each, see `perturbation_table`.
      left_out: `perturbation`, `cells` and `reason` of labels that are left out.
    """

    verdict: list[str]
    summary: pd.DataFrame
    scores: pd.DataFrame
    drf: pd.DataFrame
    results: pd.DataFrame
    agg_results: pd.DataFrame
    perturbations: pd.DataFrame
    left_out: pd.DataFrame


def validate_perturbations(
    model: PretrainedModel,
    cells: ad.AnnData | Path | str,
    *,
    perturbation: str,
    control: str,
    edit: str = "delete",
    mode: str | None = None,
    hidden_layer: int = -1,
    min_cells: int = 10,
    edited_cells: int = 200,
    like_rank: int = 3,
    filters: Filters | None = None,
    max_cells: int | None = None,
    seed: int = SEED,
    runtime: Runtime | None = None,
    devices: Sequence[jax.Device] | None = None,
    tokens_per_device: int | None = None,
    **reading: Unpack[CountArguments],
) -> Validation:
    """Compares perturbations in silico with measured ones, and both with what they must beat.

    Control cells are edited in silico for each measured perturbation. Two things are predicted:
    where the cell's embedding moves (compared with the mean embedding of the perturbed cells less
    that of the controls), and how far each other gene moves (compared with which genes are
    expressed differently). Beside each prediction stand genes of like rank edited in its place,
    the mean over perturbations, and a second half of the measured cells.

    Args:
      model: a pretrained encoder with its vocabulary.
      cells: raw counts of control and perturbed cells: an AnnData or a file.
      perturbation: obs column of the perturbed gene, by symbol or id. Cells with several genes
        perturbed, or whose label names none, are left out and listed.
      control: label of the control cells; several as "A|B".
      edit: "delete" or "overexpress" (to the front).
      mode: what stands for a cell: "cell", the mean of its genes, or "cls"; by default "cls" where
        the model has it.
      hidden_layer: hidden state to compare, counted back from the last (0).
      min_cells: cells that each perturbation, and the controls, must have; edited cells that must
        have a gene in sight for it to be deleted, or called shifted. At least 4.
      edited_cells: control cells to edit, drawn at random.
      like_rank: genes of like rank and detection to edit beside each perturbed gene.
      filters: obs column -> value or values of which a cell must have one; all must pass.
      max_cells: cells to draw at random; None takes all.
      seed: of draws, halves and folds.
      runtime: how to compute; float32, and the attention that suits the device, by default.
      devices: which share the work; all of this process by default.
      tokens_per_device: padded tokens at a time on each; by default sized from its memory.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Returns:
      Verdict and tables.

    Raises:
      InputError: a column, label or option is unknown; the cells cannot be read or do not fit the
        model; too few control cells, or fewer than two perturbations are left.
    """
    check_model(model)
    check_runtime(runtime, devices)
    check_draw(max_cells, seed)
    options = ValidationOptions(
        perturbation=perturbation,
        control=control,
        edit=edit,
        mode=mode,
        hidden_layer=hidden_layer,
        min_cells=min_cells,
        edited_cells=edited_cells,
        like_rank=like_rank,
        filters=filters or {},
        max_cells=max_cells,
        seed=seed,
    )

    def choose_runtime(longest: int) -> Runtime:
        return runtime or inference_runtime(model.config, longest)[0]

    validator = make_validator(
        model, cells, options, choose_runtime, devices, tokens_per_device, **reading
    )
    for line in describe_screen(validator.screen):
        logger.info(line)
    embedder, perturber = validator.embedder, validator.perturber
    number = len(validator.cells.rows)
    with embedder.progress() as progress:
        embedded = [validator.embed(0, number, progress)]
    with perturber.progress(perturber.plan.edits) as progress:
        perturbed = [validator.perturb(*part, progress) for part in perturber.plan.parts]
    expression = validator.expression(open_source(cells, reading))
    return validation_of(validator, validator.effects(embedded, perturbed, expression))


def validation_of(validator: Validator, effects: Effects) -> Validation:
    """Scores what was computed."""
    scores = score(effects, validator.options.seed)
    summary = calibration.summarise(scores)
    results = calibration.results(scores)
    return Validation(
        verdict=verdict.describe(summary),
        summary=summary,
        scores=scores,
        drf=calibration.drf(scores),
        results=results,
        agg_results=calibration.agg_results(results),
        perturbations=perturbation_table(validator, effects),
        left_out=pd.DataFrame(
            validator.screen.left_out, columns=["perturbation", "cells", "reason"]
        ),
    )
