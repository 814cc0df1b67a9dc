"""A perturbation run in files, from its options to its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.embedding.states import StateEmbeddings
from geneformer_jax.inference.cells import open_cells
from geneformer_jax.inference.resume import as_json, identity_of, weights_sha256
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime, inference_runtime
from geneformer_jax.perturbation.config import MEANS, Options
from geneformer_jax.perturbation.engine.edits import SpecialTokens
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.engine.plan import Work
from geneformer_jax.perturbation.layout import OUTPUTS, REPORT, SHIFTS
from geneformer_jax.perturbation.output import PerturbationFolder, check_space, plan_of
from geneformer_jax.perturbation.prepare import (
    check,
    choose_cells,
    find_states,
    find_work,
    measures_of,
)
from geneformer_jax.perturbation.statistics.figures import ranked_figure
from geneformer_jax.reporting.html import Report

# What does not change the tables.
_NOT_IN_PLAN = ("output", "shard", "finish", "tokens_per_device")

_TOLD = {
    "mean_gene_cosine": "mean over the genes left of the cosine of each before and after the edit",
    "cell_cosine": "cosine of the cell's embedding before and after the edit",
    "cls_cosine": "cosine of <cls> before and after the edit",
    "state_shift": "what the edit adds to the cosine of the cell with the state",
    "class_probability_before": "probability of the class before the edit",
    "class_probability_after": "probability of the class after the edit",
}


class PerturbationRun:
    """One run, or this process's share of it."""

    def __init__(
        self,
        output: Path,
        options: Options,
        configuration: Mapping[str, Any],
        share: tuple[int, int],
    ):
        """Takes what the run is asked to do.

        Args:
          output: folder to write.
          options: of the run.
          configuration: the command, for the provenance.
          share: (i, n), this process makes the i-th of n shares.
        """
        self._options = options
        self._command = as_json(
            {name: value for name, value in configuration.items() if name not in _NOT_IN_PLAN}
        )
        self._folder = PerturbationFolder(output, share)

    def is_complete(self) -> bool:
        """Whether the output is there; raises InputError if it is another run's."""
        return self._folder.is_complete(self._command)

    def prepare(
        self,
        model: PretrainedModel,
        cells: str,
        precision: str,
        attention: str,
        tokens_per_device: int | None,
    ) -> None:
        """Plans the work, tells its size and readies the devices.

        Args:
          model: that perturbs.
          cells: path of a store or of counts.
          precision, attention: how to compute, by name.
          tokens_per_device: padded tokens at a time, or None.

        Raises:
          InputError: see `perturb_cells`; the output is of another run, damaged or does not fit.
        """
        options, self._model, self._inputs = self._options, model, [cells]
        check(model, options)
        opened = open_cells(cells, model, whole=options.refill)
        chosen = choose_cells(opened, options, model)
        work = find_work(chosen, options, model)
        # Attention is chosen for what is encoded, which may be shorter than the cells.
        longest = int(work.longest.max())
        runtime, told = inference_runtime(model.config, longest, precision, attention)
        print(f"model {model.source}\n{told}")
        identity = identity_of(model, chosen)
        if options.classes:
            identity["head"] = weights_sha256(model, [model.head.kind])
        self._tell_size(work)
        # A wrong file of state embeddings is told before anything is written.
        given = find_states(model, opened, options) if options.state_embeddings else None
        self._folder.begin(plan_of(self._command, identity, work.parts))
        measures = measures_of(model, options, given or self._states(opened, runtime))
        self._perturber = Perturber(
            model, work, measures, runtime, tokens_per_device=tokens_per_device
        )

    def _states(self, cells: EncodedCells, runtime: Runtime) -> StateEmbeddings | None:
        """Finds the state embeddings, which all shares and beginnings take from one file."""
        if (kept := self._folder.states()) is not None:
            return StateEmbeddings.load(kept)
        states = find_states(self._model, cells, self._options, runtime)
        if states is not None:
            self._folder.keep_states(states.save)
        return states

    def make(self) -> None:
        """Makes the edits of this share that are not made yet."""
        self._folder.run(self._perturber, self._options.gene_shifts == MEANS)
        print(self._perturber.throughput.describe(), flush=True)

    def finish(self) -> None:
        """Puts all tables together, with their story and a report."""
        counts = self._counts()
        story = describe_run("perturb", self._command, self._inputs, counts)
        means = self._options.gene_shifts == MEANS
        self._folder.finish(self._perturber, means, story, write_report)
        print(f"tables and report: {self._folder.output}")

    def _tell_size(self, work: Work) -> None:
        options = self._options
        values = len(measures_of(self._model, options, None).names)
        values += len(options.states.names) if options.states else 0
        means = options.gene_shifts == MEANS
        size = work.table_bytes(values, options.gene_rows(), means)
        cells = int((work.counts > 0).sum())
        print(
            f"{work.edits:,} edits ({options.edit}) in {cells:,} of {len(work.counts):,} cells, "
            f"{work.tokens:,} tokens to encode; tables of about {size / 1e6:,.1f} MB",
            flush=True,
        )
        for reason, number in {**getattr(work.cells, "dropped", {}), **work.left_out}.items():
            print(f"  left out: {number:,} {reason}")
        check_space(self._folder.output, size)

    def _counts(self) -> dict[str, Any]:
        work, options, measures = self._perturber.work, self._options, self._perturber.measures
        states = options.states
        return {
            "edit": options.edit,
            "edits": work.edits,
            "cells": int((work.counts > 0).sum()),
            "left_out": {**getattr(work.cells, "dropped", {}), **work.left_out},
            "measures": sorted({measure for measure, _ in measures.names}),
            "gene_shifts": options.gene_shifts,
            "mode": measures.mode,
            "layer": measures.layer,
            "states": None
            if states is None
            else {
                "column": states.column,
                "start": states.start,
                "goal": states.goal,
                "alternatives": list(states.alternatives),
            },
            "checkpoint": self._model.source,
            "vocabulary_hash": self._model.vocabulary.hash,
            "positions": SpecialTokens.of(
                self._model.vocabulary, self._model.config.positions
            ).limit,
            "precision": self._perturber.pass_.runtime.precision.name,
            "attention": self._perturber.pass_.runtime.attention,
        }


def write_report(folder: Path, summary: pd.DataFrame, story: Mapping[str, Any]) -> None:
    """Writes report.html into the folder of a run.

    Args:
      folder: of the run.
      summary: mean, sd and n of each edit, measure and state; see `summarise`.
      story: the provenance.
    """
    counts = story["counts"]
    report = Report(
        "In silico perturbation",
        f"{counts['edits']:,} edits ({counts['edit']}) in {counts['cells']:,} cells; layer "
        f"{counts['layer']} of {counts['checkpoint']}.",
    )
    for (measure, state), rows in summary.groupby(["measure", "state"], sort=False):
        ranked = rows.sort_values("mean", ascending=measure != "state_shift", ignore_index=True)
        report.section(f"{measure} {state}".strip(), _TOLD[measure].capitalize() + ".")
        caption = "Every edit by its rank; mean over the cells it was made in."
        named = ranked.assign(Gene_name=ranked["perturbed_symbol"].astype(str))
        labels = f"{measure} {state}".strip() + ", mean over cells", "one cell only"
        report.figure(ranked_figure(named, "mean", ranked["n"] == 1, labels), caption)
        # One cell has no deviation; 0 would look like a very certain one.
        ranked["sd"] = ranked["sd"].where(ranked["n"] > 1)
        columns = ["perturbed_symbol", "perturbed", "mean", "sd", "n"]
        shown = ranked[columns].rename(columns={"n": "cells"})
        report.table(shown, "Mean and standard deviation over cells.", f"{SHIFTS}/")
    if counts["left_out"]:
        left = pd.DataFrame(counts["left_out"].items(), columns=["left out", "number"])
        report.section("What was left out")
        report.table(left, "Cells and edits, by reason.")
    report.files(path for path in folder.iterdir() if path.name in OUTPUTS)
    report.provenance(story)
    report.write(folder / REPORT)
