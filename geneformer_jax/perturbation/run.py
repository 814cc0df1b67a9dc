"""A perturbation run in files, from its options to its report."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import anndata as ad
import numpy as np
import pyarrow as pa

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.tokenization.quality_control import describe_left_out
from geneformer_jax.common.files import require_unchanged, states_of
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.shares import WHOLE, require_shares
from geneformer_jax.common.workdir import as_json
from geneformer_jax.embedding.states import StateEmbeddings
from geneformer_jax.inference.cells import (
    open_cells,
    reading_facts,
    select_cells,
)
from geneformer_jax.inference.counts import expression_reader
from geneformer_jax.inference.listed_genes import describe_missing
from geneformer_jax.inference.pipeline import Throughput
from geneformer_jax.inference.resume.folder import Part
from geneformer_jax.inference.resume.identity import (
    identity_of,
    labels_sha256,
    sha256,
    weights_sha256,
)
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import inference_runtime
from geneformer_jax.perturbation.cell_states import CellStates
from geneformer_jax.perturbation.config import MEANS, PerturbationOptions
from geneformer_jax.perturbation.controls.baselines import compare_states
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.engine import Engine
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.engine.plan import TOKENS_PER_PART, EditPlan
from geneformer_jax.perturbation.engine.screening.reranking import RerankingPerturber
from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.layout import (
    COUNTS,
    GENE_SHIFTS,
    MEANS_OF_PARTS,
    RANKS,
    SHIFTS,
)
from geneformer_jax.perturbation.output import PerturbationFolder, check_space, estimates_of
from geneformer_jax.perturbation.prepare import (
    all_left_out,
    find_states,
    make_plan,
    make_spec,
    name_states,
    resolve_edits,
    state_vectors,
    with_reranking,
)
from geneformer_jax.perturbation.report import write_report
from geneformer_jax.perturbation.screen import Screen, describe_screen, plan_screen
from geneformer_jax.perturbation.tables import (
    gene_means_table,
    gene_shifts_table,
    shifts_table,
)
from geneformer_jax.reporting.index import refresh_index

# What does not change the tables; statistics may be asked of tables that are there.
_NOT_IN_PLAN = ("output", "tokens_per_device", "statistics", "null", "controls",
                "min_cells", "group", "dry_run")  # fmt: skip


class Planned(NamedTuple):
    """What a run is going to do.

    Attributes:
      model: that perturbs.
      options: with the states as the cells' column names them.
      spec: what is computed of each edit.
      plan: the edits.
      all_cells: those that are perturbed, and others.
    """

    model: PretrainedModel
    options: PerturbationOptions
    spec: ForwardSpec
    plan: EditPlan
    all_cells: EncodedCells


class PerturbationRun:
    """One run, of which any number of processes may make shares.

    Attributes:
      planned: what it does, once `plan` was called.
    """

    def __init__(
        self,
        output: Path,
        options: PerturbationOptions,
        configuration: Mapping[str, Any],
        *,
        tokens_per_part: int = TOKENS_PER_PART,
    ):
        """Takes what the run is asked to do.

        Args:
          output: folder to write.
          options: of the run.
          configuration: the command, for the provenance.
          tokens_per_part: tokens to encode at most in a part, which is written at one go.
        """
        self._options, self._tokens_per_part = options, tokens_per_part
        self._command = as_json(
            {name: value for name, value in configuration.items() if name not in _NOT_IN_PLAN}
        )
        self._folder = PerturbationFolder(output)
        self._engine: Engine | None = None

    def is_complete(self) -> bool:
        """Whether the output is there; raises InputError if it is another run's."""
        if not self._folder.is_complete(self._command):
            return False
        # A run that was killed at its very end may have left it undone.
        refresh_index(self._folder.output)
        has_parts = self._folder.has_parts() and not self._options.screen
        self._options = replace(self._options, reranking=has_parts)
        return True

    def plan(
        self,
        model: PretrainedModel,
        cells: EncodedCells | ad.AnnData | Path | str,
        precision: str,
        attention: str,
        tokens_per_device: int | None,
        **reading: Unpack[CountArguments],
    ) -> None:
        """Plans the edits, and logs their size; nothing is computed or written yet.

        Args:
          model: that perturbs.
          cells: see `perturb_cells`.
          precision, attention: how to compute, by name.
          tokens_per_device: padded tokens at a time, or None.
          reading: of counts, see `CountOptions`.

        Raises:
          InputError: see `perturb_cells`; the tables do not fit on the disk.
        """
        options, self._model, self._given = self._options, model, cells
        paths = [cells] if isinstance(cells, Path | str) else []
        self._inputs = states_of(paths, self._folder.output)
        self._sizes, self._reading = {"tokens_per_device": tokens_per_device}, reading
        spec, (rule, sets) = make_spec(model, options), resolve_edits(model, options)
        opened = open_cells(cells, model, whole=options.refill, **reading)
        options, spec = name_states(options, spec, opened)
        plan = make_plan(opened, options, spec, rule, sets, self._tokens_per_part)
        plan = plan_screen(plan, spec, options) if options.screen else plan
        self._options = options = with_reranking(options, plan)
        # Attention is chosen for what is encoded, which may be shorter than the cells.
        longest = int(plan.longest.max())
        runtime, line = inference_runtime(model.config, longest, precision, attention)
        logger.info(f"model {model.source}\n{line}")
        self.planned = Planned(model, options, replace(spec, runtime=runtime), plan, opened)
        self._check_size(plan, spec)
        self._costs = plan.part_costs(model.config)
        # A wrong file of state embeddings is refused before anything is computed.
        given = bool(options.state_embeddings)
        self._given_states = find_states(model, opened, options, spec) if given else None

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What the tables depend on; shares of other ones are refused."""
        model, options, _, plan, opened = self.planned
        identity = identity_of(model, plan.cells)
        if options.states:
            identity["labels"] = labels_sha256(opened.obs[options.states.column])
        if options.classes:
            identity["head"] = weights_sha256(model, [model.head.kind])
        edits = {"command": self._command, "edits": sha256(np.array(plan.parts, np.int64))}
        return {**identity, **edits, "reranking": options.reranking}

    def make(self, shard: tuple[int, int] = WHOLE) -> bool:
        """Makes the edits of a share that are not made yet, and writes them part by part.

        Args:
          shard: (i, n), share i, from 0, of n.

        Returns:
          Whether they are made; a screen is settled only when all shares have estimated theirs.

        Raises:
          InputError: more shares than edits; the output is of another run, or damaged; another
            process is making this share.
        """
        require_shares(shard, self.planned.plan.edits, "edits")
        parts = self._folder.parts
        with parts.at_work(self._identity, shard=shard):
            own = parts.own(self._costs)
            if not parts.missing(own):
                return True
            self._ready_engine()
            if not self._options.screen:
                self._each_part(own, self._make_part, self._engine.throughput)
                return True
            return self._screen_parts(own)

    def _ready_engine(self) -> None:
        """Readies the devices, once for all shares, and finds the embeddings of the states."""
        if self._engine is not None:
            return
        model, options, spec, plan, opened = self.planned
        vectors = state_vectors(self._given_states or self._states(opened, spec), options)
        given = model, plan, spec, vectors
        if options.screen:
            self._screen = Screen(*given, options, **self._sizes)
            self._engine = self._screen.screener
        else:
            kind = RerankingPerturber if options.reranking else Perturber
            self._engine = kind(*given, **self._sizes)

    def minutes(self, encodings: int) -> float | None:
        """Returns about how long more encodings take, None if this process has made no edits."""
        if self._engine is None or not (done := self._engine.throughput).done:
            return None
        plan = self.planned.plan
        return encodings * plan.tokens / plan.passes.sum() * done.seconds / done.tokens / 60

    def _states(self, cells: EncodedCells, spec: ForwardSpec) -> StateEmbeddings | None:
        """Finds the state embeddings, which all shares and beginnings take from one file."""
        if (kept := self._folder.states()) is not None:
            return kept
        states = find_states(self._model, cells, self._options, spec)
        if states is not None:
            self._folder.save_states(states)
        return states

    def _screen_parts(self, own: range) -> bool:
        self._each_part(own, self._estimate_part, self._engine.throughput, name=estimates_of)
        if self._folder.parts.missing(map(estimates_of, range(len(self._costs)))):
            return False
        sizes = self._settled_sizes
        self._each_part(own, self._settle_part, self._screen.settling, sizes)
        return True

    @functools.cached_property
    def _settled_sizes(self) -> np.ndarray:
        """Edits to settle in each part, once all are estimated."""
        estimates = map(self._folder.read_estimates, range(len(self._costs)))
        chosen = self._screen.choose(estimates).all
        return np.diff(np.searchsorted(chosen, np.array(self._engine.plan.parts)))[:, 0]

    def _each_part(
        self,
        own: range,
        make: Callable[[int, Progress], None],
        throughput: Throughput,
        sizes: np.ndarray | None = None,
        name: Callable[[int], Part] = int,
    ) -> None:
        """Makes each part of a share that is not recorded yet.

        Args:
          own: parts of the share.
          make: makes and writes a part.
          throughput: of what is made.
          sizes: edits to make in each part; all by default.
          name: under which a part is recorded; its number by default.
        """
        parts = self._folder.parts
        sizes = np.diff(np.array(self._engine.plan.parts))[:, 0] if sizes is None else sizes
        todo = [part for part in own if not parts.is_done(name(part))]
        with self._engine.progress(int(sizes[own].sum())) as progress:
            progress.advance(int(sum(sizes[part] for part in own if part not in todo)))
            for place, part in enumerate(todo):
                make(part, progress)
                if place == 0 and len(todo) > 1:
                    # Parts are of about as many tokens, and take about as long.
                    _log_time(throughput, len(todo) - 1)
        if throughput.done:
            logger.info(throughput.describe())

    def _make_part(self, part: int, progress: Progress) -> None:
        shifts = self._engine.shifts(*self._engine.plan.parts[part], progress)
        self._folder.write_part(part, self._tables(shifts))

    def _estimate_part(self, part: int, progress: Progress) -> None:
        estimates = self._engine.shifts(*self._engine.plan.parts[part], progress)
        self._folder.write_estimates(part, estimates)

    def _settle_part(self, part: int, progress: Progress) -> None:
        table = self._screen.settle(self._folder.read_estimates(part), progress)
        self._folder.write_part(part, {SHIFTS: table})

    def _tables(self, shifts: Shifts) -> dict[str, pa.Table]:
        """Returns the tables of one part by the names of their folders."""
        spec, cells = self._engine.spec, self._engine.plan.cells
        named = self._options.edit, cells.obs.index.to_numpy(), cells.vocabulary
        tables = {SHIFTS: shifts_table(shifts, spec.measures, *named)}
        if self._options.gene_shifts == MEANS:
            tables[MEANS_OF_PARTS] = gene_means_table(shifts, cells.vocabulary)
        elif spec.gene_rows:
            tables[GENE_SHIFTS] = gene_shifts_table(shifts, *named)
        return tables

    def finish(self) -> None:
        """Joins all tables, and writes their provenance and a report.

        Raises:
          InputError: parts are missing, or were made by another run; a process is at work on them.
        """
        plan, parts = self.planned.plan, self._folder.parts
        with parts.at_work(self._identity):
            parts.require_whole(parts.missing(range(len(self._costs))), self._costs)
            if not self._given_states:
                # Made again where they are damaged.
                self._states(self.planned.all_cells, self.planned.spec)
            self._join(plan)

    def _join(self, plan: EditPlan) -> None:
        require_unchanged(self._inputs)
        counts = self._counts() | {"variance_by_rank": self._folder.variance_by_rank()}
        if states := self._options.states:
            counts |= self._compare_states(states)
        if self._options.screen:
            counts["screen"] = describe_screen(self._folder.parts.folder / SHIFTS, self._options)
        provenance = describe_run("perturb", self._command, self._inputs, counts)
        cells = plan.cells
        named = self._options.edit, cells.vocabulary, cells.obs
        self._folder.finish(len(self._costs), *named, provenance, write_report)
        refresh_index(self._folder.output)
        logger.info(f"tables and report: {self._folder.output}")

    def _compare_states(self, states: CellStates) -> dict[str, Any]:
        """Writes what can be said of genes without a model; returns what that rests on."""
        cells = select_cells(self.planned.all_cells, self._options.filters)
        named = states.column, states.goal, states.start
        expression = expression_reader(cells, self._given, self._reading)
        table, sizes = compare_states(cells, *named, self._options.seed, expression)
        if len(table):
            self._folder.save_baselines(table)
        return {"cells_compared": sizes, "expression_of": COUNTS if expression else RANKS}

    def _check_size(self, plan: EditPlan, spec: ForwardSpec) -> None:
        """Logs the size of the work, and raises InputError if its tables would not fit."""
        options = self._options
        means = options.gene_shifts == MEANS
        columns = 4 * len(spec.screened) if options.screen else len(spec.measures)
        columns *= 3 if options.reranking else 1
        size = plan.table_bytes(columns, spec.gene_rows, means)
        logger.info(
            f"{plan.edits:,} edits ({options.edit}) in {plan.edited_cells:,} of "
            f"{len(plan.counts):,} cells, {plan.tokens:,} tokens to encode; tables of about "
            f"{size / 1e6:,.1f} MB"
        )
        for line in describe_left_out(all_left_out(plan)):
            logger.info(line)
        for line in describe_missing(plan.missing_genes):
            logger.warning(line)
        check_space(self._folder.output, size)

    def _counts(self) -> dict[str, Any]:
        spec, plan = self.planned.spec, self.planned.plan
        states = self._options.states
        measures = sorted({measure for measure, _ in spec.measures})
        if self._options.screen:
            measures = sorted({measure for measure, _ in spec.screened})
        return {
            "edit": plan.rule.kind,
            "edits": plan.edits,
            "cells": plan.edited_cells,
            "chosen_cells": len(plan.counts),
            "left_out": all_left_out(plan),
            **reading_facts(plan.cells),
            "genes_left_out": plan.missing_genes,
            "measures": measures,
            "gene_shifts": self._options.gene_shifts,
            "mode": spec.mode,
            "hidden_layer": spec.hidden_layer,
            "states": None if states is None else asdict(states),
            "checkpoint": self._model.source,
            "vocabulary_hash": self._model.vocabulary.hash,
            "positions": plan.special.limit,
            "precision": spec.runtime.precision.name,
            "attention": spec.runtime.attention,
        }


def _log_time(done: Throughput, parts: int) -> None:
    logger.info(f"about {done.seconds * parts / 60:,.1f} minutes to go for {parts:,} more parts")
