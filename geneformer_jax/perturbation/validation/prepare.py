"""A validation made ready: labels read, genes found, cells split, the work cut into parts."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import anndata as ad
import jax
import numpy as np

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.tokenization.tokenizer import TokenizedCells
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.arguments import require_type
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.progress import Progress
from geneformer_jax.embedding.embedder import Embedder
from geneformer_jax.inference.cells import ChosenCells, open_cells, select_cells
from geneformer_jax.inference.counts import read_counts
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.perturbation.config import FULL, PerturbationOptions
from geneformer_jax.perturbation.engine.edits import DELETE, SpecialTokens
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.prepare import make_plan, make_spec, resolve_edits
from geneformer_jax.perturbation.validation.config import ValidationOptions
from geneformer_jax.perturbation.validation.scoring.compare import Effects
from geneformer_jax.perturbation.validation.scoring.effects import (
    Arrays,
    measured_shifts,
    measured_sums,
    predicted_effects,
    predicted_sums,
)
from geneformer_jax.perturbation.validation.screen.expression import (
    HALVES,
    Expression,
    measure_expression,
    split_halves,
)
from geneformer_jax.perturbation.validation.screen.labels import CONTROLS, Screen, read_screen
from geneformer_jax.perturbation.validation.screen.like_rank import (
    Visibility,
    genes_of_like_rank,
    visibility,
)
from geneformer_jax.perturbation.validation.screen.screen_file import require_counts


@dataclass(frozen=True, eq=False)
class Validator:
    """All that a validation computes, in parts that may be made one by one.

    Attributes:
      options: of the run.
      screen: the P measured perturbations, their genes as tokens.
      cells: all chosen cells.
      like_rank: int64 [P, K] tokens of genes of like rank.
      seen: where genes stand in the control cells that are edited.
      embedder: of all cells.
      perturber: of the edits.
    """

    options: ValidationOptions
    screen: Screen
    cells: ChosenCells
    like_rank: np.ndarray
    seen: Visibility
    embedder: Embedder
    perturber: Perturber

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """int64 [cells] number of the perturbation, P for the controls, -1 for no part."""
        groups = self.screen.groups
        return np.select([groups >= 0, groups == CONTROLS], [groups, len(self.screen.names)], -1)

    @functools.cached_property
    def halves(self) -> np.ndarray:
        """int64 [cells]."""
        return split_halves(self.groups, self.options.seed)

    @property
    def targets(self) -> np.ndarray:
        """int64 [P] tokens of the perturbed genes."""
        return np.array(self.screen.genes, np.int64)

    def embed(self, start: int, stop: int, progress: Progress) -> dict[str, np.ndarray]:
        """Embeds cells `start` to before `stop`, and sums them up; see `measured_sums`."""
        rows = self.embedder.rows(start, stop, progress)[:, 0]
        own = slice(start, stop)
        number = len(self.screen.names) + 1
        return measured_sums(rows, self.groups[own], self.halves[own], number)

    def perturb(self, start: int, stop: int, progress: Progress) -> dict[str, np.ndarray]:
        """Makes edits `start` to before `stop`, and sums them up; see `predicted_sums`."""
        shifts = self.perturber.shifts(start, stop, progress)
        config = self.perturber.spec.config
        return predicted_sums(shifts, config.width, config.vocabulary_size)

    def expression(self, source: CountSource) -> Expression:
        """Reads the counts of the cells; see `measure_expression`."""
        tokenized: TokenizedCells = self.cells.source
        tokenized.match.choice.apply(source)
        batches = read_counts(source, tokenized.rows[self.cells.rows])
        shape = len(self.screen.names) + 1, self.cells.vocabulary.size
        return measure_expression(batches, tokenized.match.tokens, self.groups, self.halves, shape)

    def effects(
        self, embedded: Iterable[Arrays], perturbed: Iterable[Arrays], expression: Expression
    ) -> Effects:
        """Puts together what was computed, part by part."""
        return Effects(
            names=self.screen.names,
            targets=self.targets,
            like_rank=self.like_rank,
            predicted=predicted_effects(
                perturbed, self.cells.vocabulary.size, self.options.min_cells
            ),
            measured=measured_shifts(embedded),
            differential=tuple(map(expression.differential, range(HALVES))),
        )


def make_validator(
    model: PretrainedModel,
    cells: ad.AnnData | Path | str,
    options: ValidationOptions,
    choose_runtime: Callable[[int], Runtime],
    devices: Sequence[jax.Device] | None = None,
    tokens_per_device: int | None = None,
    **reading: Unpack[CountArguments],
) -> Validator:
    """Reads the cells and readies the devices.

    Args:
      model, cells, options, devices, tokens_per_device, reading: see `validate_perturbations`.
      choose_runtime: says how to compute cells of so many tokens.
    """
    _check_cells(cells)
    opened = open_cells(cells, model, **reading)
    chosen = select_cells(opened, options.filters, options.max_cells, options.seed)
    how = {"mode": options.mode, "hidden_layer": options.hidden_layer, "gene_shifts": FULL}
    asked = PerturbationOptions(edit=options.edit, **how)
    spec = replace(make_spec(model, asked, devices), cell_vectors=True)
    screen = _read_screen(chosen, options)
    edited = _draw_controls(chosen, screen, options)
    seen = _visibility(edited, spec.special)
    screen = _in_sight(screen, seen, options)
    given = np.array(screen.genes), options.min_cells, options.like_rank
    like_rank = genes_of_like_rank(seen, *given)
    tokens = np.unique(np.append(like_rank, screen.genes)).tolist()
    asked = replace(asked, genes=list(map(model.vocabulary.gene_id_of, tokens)))
    plan = make_plan(edited, asked, spec, *resolve_edits(model, asked))
    longest = max(int(plan.longest.max()), int(chosen.lengths.max()))
    spec = replace(spec, runtime=choose_runtime(longest))
    embedder = _make_embedder(model, chosen, spec, tokens_per_device)
    perturber = Perturber(model, plan, spec, tokens_per_device=tokens_per_device)
    return Validator(options, screen, chosen, like_rank, seen, embedder, perturber)


def _read_screen(cells: ChosenCells, options: ValidationOptions) -> Screen:
    """Reads the labels; genes are tokens."""
    find = functools.partial(find_tokens, cells.vocabulary)
    named = options.perturbation, options.control
    return read_screen(cells.obs, *named, find, options.min_cells)


def _make_embedder(
    model: PretrainedModel, cells: ChosenCells, spec: ForwardSpec, tokens_per_device: int | None
) -> Embedder:
    """Readies the embedding of all cells, as the edited ones are embedded."""
    return Embedder(
        model,
        cells,
        spec.mode,
        spec.hidden_layer,
        spec.runtime,
        devices=list(spec.mesh.devices.flat),
        tokens_per_device=tokens_per_device,
    )


def _check_cells(cells: object) -> None:
    """Raises InputError unless there are raw counts, from which expression is measured."""
    require_type(
        "cells", cells, (ad.AnnData, Path, str), "give an AnnData of raw counts, or their file"
    )
    if not isinstance(cells, ad.AnnData):
        require_counts(cells)


def find_tokens(vocabulary: GeneVocabulary, names: Sequence[str]) -> list[int | None]:
    """Returns the token of each gene id or symbol, in any case; None for what is no known gene."""
    # Gene ids that are symbols themselves are in capitals.
    asked = (names, [name.upper() for name in names])
    tokens = np.maximum(*(vocabulary.tokens_of(each, symbols="names") for each in asked))
    return [int(each) if each >= vocabulary.first_gene_token else None for each in tokens]


def _draw_controls(cells: ChosenCells, screen: Screen, options: ValidationOptions) -> ChosenCells:
    """Draws the control cells that are edited, in input order."""
    rows = np.flatnonzero(screen.groups == CONTROLS)
    drawn = np.random.default_rng(options.seed).permutation(rows)[: options.edited_cells]
    return ChosenCells(cells, np.sort(drawn), {})


def _visibility(cells: ChosenCells, special: SpecialTokens) -> Visibility:
    read = cells.read(np.arange(len(cells.rows)))
    genes = (special.in_sight(special.genes_of(each)) for each in read)
    return visibility(genes, cells.vocabulary.size)


def _in_sight(screen: Screen, seen: Visibility, options: ValidationOptions) -> Screen:
    """Leaves out genes that too few of the edited cells have in sight to be deleted there.

    Raises:
      InputError: fewer than two are left.
    """
    if options.edit != DELETE:
        return screen
    cells = seen.cells[list(screen.genes)]
    why = f"in sight in fewer than {options.min_cells:,} of {seen.total:,} control cells"
    few = dict.fromkeys(np.flatnonzero(cells < options.min_cells).tolist(), why)
    left = screen.without(few)
    if len(left.names) < 2:
        raise InputError(
            f"{len(few):,} of {len(cells):,} perturbed genes are {why}, so "
            "fewer than 2 are left to delete; edit more control cells with `edited_cells`, lower "
            "`min_cells`, or use `edit` overexpress"
        )
    return left
