"""Controls of a run that take further encodings: what they would cost, and their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.log import logger
from geneformer_jax.embedding.embedder import Embedder
from geneformer_jax.inference.cells import ChosenCells, select_cells
from geneformer_jax.inference.filters import label_texts
from geneformer_jax.inference.random_control import random_model
from geneformer_jax.perturbation.config import NONE, lacks_for_reranking
from geneformer_jax.perturbation.controls import self_deletion as without_genes
from geneformer_jax.perturbation.controls.choice import RANDOM_WEIGHTS, RERANKING, SELF_DELETION
from geneformer_jax.perturbation.engine.screening.reranking import encodings_of_reranking
from geneformer_jax.perturbation.layout import RANDOM_RUN, SHIFTS, WITHOUT_OWN
from geneformer_jax.perturbation.run import PerturbationRun, Planned
from geneformer_jax.perturbation.statistics.moments import GeneIndex, RunningMoments
from geneformer_jax.perturbation.statistics.tables import STATE_SHIFT, ShiftRows

_TABLES = {RANDOM_WEIGHTS: RANDOM_RUN, SELF_DELETION: WITHOUT_OWN}


@dataclass(frozen=True)
class HowToRun:
    """What a run is given beside its options; see `PerturbationRun.plan`.

    Attributes:
      min_cells: genes in fewer cells are not among the strongest.
    """

    cells: EncodedCells | ad.AnnData | Path | str
    precision: str
    attention: str
    tokens_per_device: int | None
    reading: Mapping[str, Any]
    min_cells: int

    def plan(self, run: PerturbationRun, model: Any) -> None:
        """Plans a run."""
        named = self.cells, self.precision, self.attention, self.tokens_per_device
        run.plan(model, *named, **self.reading)


def missing_controls(output: Path, names: Sequence[str]) -> list[str]:
    """Returns those of the controls whose tables are not in the folder of a run yet."""
    return [name for name in names if not (output / _TABLES[name]).exists()]


def describe_costs(planned: Planned, names: Sequence[str]) -> list[str]:
    """Returns lines on what a run, and each of its controls, has to encode.

    Args:
      planned: the run.
      names: of controls to be made that take further encodings.
    """
    options, edits = planned.options, int(planned.plan.passes.sum())
    computed = 0 if options.state_embeddings else _cells_of_states(planned)[0]
    own = f"{edits:,} encodings for the edits"
    lines = [own + (f", {computed:,} for the states" if computed else "")]
    if (parts := _encodings_of_parts(planned)) is not None:
        line = f"control {RERANKING}: {_more(parts, edits)}"
        lines.append(line if options.reranking else f"{line}, left out unless `controls` name it")
    if RANDOM_WEIGHTS in names:
        further = _encodings_of(RANDOM_WEIGHTS, planned)
        lines.append(f"control {RANDOM_WEIGHTS}: {_more(further, edits)}")
    if SELF_DELETION in names:
        further = _encodings_of(SELF_DELETION, planned)
        lines.append(
            f"control {SELF_DELETION}: at most {_more(further, edits)}, cells of the states "
            f"without each of {without_genes.GENES} genes"
        )
    return [*lines, "controls from the same tables: no further encodings"]


def _more(encodings: int, edits: int) -> str:
    return f"{encodings:,} encodings more ({encodings / edits:.1%} of the edits')"


def _encodings_of(name: str, planned: Planned) -> int:
    """Returns how many encodings a control of the finished run takes at most."""
    states, sampled = _cells_of_states(planned)
    if name == SELF_DELETION:
        return sampled * (without_genes.GENES + 1)
    parts = _encodings_of_parts(planned) if planned.options.reranking else 0
    return int(planned.plan.passes.sum()) + parts + states


def _encodings_of_parts(planned: Planned) -> int | None:
    """Returns what the part of re-ranking takes; None where a run has it anyway or cannot."""
    options = planned.options
    if options.screen or lacks_for_reranking(options):
        return None
    return encodings_of_reranking(planned.plan, len(options.states.names))


def _cells_of_states(planned: Planned) -> tuple[int, int]:
    """Returns how many cells the states have, and how many of start and goal are sampled."""
    if (states := planned.options.states) is None:
        return 0, 0
    passing = select_cells(planned.all_cells, planned.options.filters)
    cells = label_texts(passing.obs[states.column]).value_counts()
    compared = cells[cells.index.isin([states.start, states.goal])]
    sampled = compared.clip(upper=without_genes.MAX_CELLS)
    return int(cells[cells.index.isin(states.names)].sum()), int(sampled.sum())


def make_control(
    name: str,
    output: Path,
    run: PerturbationRun,
    configuration: Mapping[str, Any],
    how: HowToRun,
) -> None:
    """Makes one control into the folder of a finished run.

    Args:
      name: of the control.
      output: the folder.
      run: that made it, planned.
      configuration: its command, for the provenance.
      how: what it was given beside.
    """
    planned, encodings = run.planned, _encodings_of(name, run.planned)
    minutes = run.minutes(encodings)
    time = "" if minutes is None else f", about {minutes:,.1f} minutes"
    logger.info(f"control {name}: at most {encodings:,} encodings{time}")
    if name == RANDOM_WEIGHTS:
        _make_random_weights(output, planned, configuration, how)
    else:
        _make_self_deletion(output, planned, how)


def _make_random_weights(
    output: Path, planned: Planned, configuration: Mapping[str, Any], how: HowToRun
) -> None:
    """Makes the same edits with random weights, as a run within the run."""
    options = replace(planned.options, classes=False, gene_shifts=NONE, state_embeddings=None)
    run = PerturbationRun(output / RANDOM_RUN, options, configuration)
    how.plan(run, random_model(planned.model))
    run.make()
    run.finish()


def _make_self_deletion(output: Path, planned: Planned, how: HowToRun) -> None:
    """Embeds start and goal without each of the genes with the strongest goal minus start."""
    model, options, spec, plan, _ = planned
    cells, is_goal = _sample(planned)
    tokens = plan.cells.vocabulary.tokens_of(_strongest(output, planned, how.min_cells)).tolist()
    if not tokens:
        logger.warning(
            f"the control {SELF_DELETION} needs a gene that was deleted in {how.min_cells:,} "
            "cells: perturb more cells, or lower `min_cells`"
        )
        return

    def embed(edited: without_genes.CellsWithoutGenes) -> np.ndarray:
        embedder = Embedder(
            model, edited, spec.mode, options.hidden_layer, spec.runtime,
            devices=list(spec.mesh.devices.flat), tokens_per_device=how.tokens_per_device,
        )  # fmt: skip
        with embedder.progress("states without a gene") as progress:
            return embedder.rows(0, len(edited.rows), progress)[:, 0]

    table = without_genes.self_deletion(cells, is_goal, tokens, embed)
    with atomic_write(output / WITHOUT_OWN) as aside:
        table.to_parquet(aside, index=False, compression="zstd")


def _sample(planned: Planned) -> tuple[ChosenCells, np.ndarray]:
    """Returns cells of start and goal, perturbed ones first of all, and which are of the goal."""
    options = planned.options
    passing = select_cells(planned.all_cells, options.filters)
    labels = label_texts(passing.obs[options.states.column])
    is_perturbed = passing.obs.index.isin(planned.plan.cells.obs.index)
    rng = np.random.default_rng(options.seed)
    drawn = []
    for state in (options.states.start, options.states.goal):
        own = rng.permutation(np.flatnonzero(labels == state))
        own = own[np.argsort(~is_perturbed[own], kind="stable")]
        drawn.append(own[: without_genes.MAX_CELLS])
    rows = np.sort(np.concatenate(drawn))
    return ChosenCells(passing, rows, {}), (labels.iloc[rows] == options.states.goal).to_numpy()


def _strongest(output: Path, planned: Planned, min_cells: int) -> list[str]:
    """Returns ids of the genes with the strongest shift towards goal minus start."""
    states, means, edits = planned.options.states, [], GeneIndex()
    for state in (states.goal, states.start):
        where, moments = {"measure": STATE_SHIFT, "state": state}, RunningMoments()
        for piece in ShiftRows(output / SHIFTS, ("perturbed", "perturbed_symbol", "value"), where):
            numbers = edits.add(piece["perturbed"], piece["perturbed_symbol"])
            moments.add(numbers, piece["value"].to_numpy(np.float64))
        means.append(moments.result().dense(len(edits)))
    enough = means[0].counts >= min_cells
    strength = np.where(enough, np.abs(means[0].means - means[1].means), -1)
    order = np.argsort(-strength, kind="stable")[: without_genes.GENES]
    return edits.names[order[strength[order] >= 0]].tolist()
