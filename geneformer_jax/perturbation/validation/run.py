"""A run of `validate` in files: from its options, part by part, to its tables and report."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.common.files import require_unchanged, states_of
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.workdir import as_json, is_finished
from geneformer_jax.embedding.parts import CELLS_PER_ACCELERATOR_PART, CELLS_PER_PART
from geneformer_jax.inference.cells import left_out_of, reading_facts
from geneformer_jax.inference.counts import open_source
from geneformer_jax.inference.resume.cell_parts import cells_per_part, part_ranges
from geneformer_jax.inference.resume.folder import PartsFolder, parts_folder, save_arrays, tidy
from geneformer_jax.inference.resume.identity import identity_of, sha256
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime, inference_runtime
from geneformer_jax.perturbation.validation.api import validation_of
from geneformer_jax.perturbation.validation.config import ValidationOptions
from geneformer_jax.perturbation.validation.output import write_validation
from geneformer_jax.perturbation.validation.prepare import make_validator
from geneformer_jax.perturbation.validation.scoring.effects import Arrays
from geneformer_jax.perturbation.validation.screen.labels import describe_screen
from geneformer_jax.reporting.index import refresh_index

EMBEDDED, PERTURBED = "embedded", "perturbed"
_PART_SIZE = "cells in a part"
# What does not change the tables.
_NOT_IN_PLAN = ("output", "tokens_per_device")

# Makes the part between two numbers.
MakePart = Callable[[int, int, Progress], Arrays]


class ValidationRun:
    """One run, which goes on where an interrupted one of the same command stopped."""

    def __init__(self, output: Path, options: ValidationOptions, configuration: Mapping[str, Any]):
        """Takes what the run is asked to do.

        Args:
          output: folder to write.
          options: of the run.
          configuration: the command, for the provenance.
        """
        self._output, self._options = output, options
        self._command = as_json(
            {name: value for name, value in configuration.items() if name not in _NOT_IN_PLAN}
        )
        self._parts = PartsFolder(parts_folder(output))

    def is_complete(self) -> bool:
        """Whether the output is there; raises InputError if it is another run's."""
        if not is_finished(self._output, self._command, ["cells"]):
            return False
        tidy(self._output, EMBEDDED, PERTURBED)
        return True

    def prepare(
        self,
        model: PretrainedModel,
        cells: str,
        precision: str = "float32",
        attention: str = "auto",
        tokens_per_device: int | None = None,
        **reading: Unpack[CountArguments],
    ) -> None:
        """Reads the cells, logs what is to be done, and begins the parts or finds them.

        Args:
          model: that is validated.
          cells: path of the counts.
          precision, attention: how to compute, by name.
          tokens_per_device: padded tokens at a time, or None.
          reading: of counts, see `CountOptions`.

        Raises:
          InputError: see `validate_perturbations`; the output is of another run or damaged.
        """

        def choose_runtime(longest: int) -> Runtime:
            runtime, line = inference_runtime(model.config, longest, precision, attention)
            logger.info(f"model {model.source}\n{line}")
            return runtime

        self._model, self._cells, self._reading = model, cells, reading
        self._inputs = states_of([cells], self._output)
        sizes = {"tokens_per_device": tokens_per_device}
        made = make_validator(model, cells, self._options, choose_runtime, **sizes, **reading)
        self._validator, plan = made, made.perturber.plan
        for line in describe_screen(made.screen):
            logger.info(line)
        logger.info(
            f"{plan.edits:,} edits ({plan.rule.kind}) in {plan.edited_cells:,} control cells, "
            f"{len(made.cells.rows):,} cells to embed"
        )
        identity = {
            **identity_of(model, made.cells),
            "command": self._command,
            "screen": sha256(np.stack([made.groups, made.halves])),
            "edits": sha256(np.array(plan.sets.listed + tuple(np.ravel(plan.parts)), np.int64)),
        }
        mesh = made.perturber.spec.mesh
        size = cells_per_part(mesh, CELLS_PER_PART, CELLS_PER_ACCELERATOR_PART)
        kept = self._parts.begin(identity, {_PART_SIZE: size})
        self._embedded = part_ranges(made.embedder.offsets, kept[_PART_SIZE])

    def make(self) -> None:
        """Makes the parts that are not made yet."""
        made = self._validator
        with made.embedder.progress() as progress:
            self._each_part(EMBEDDED, self._embedded, made.embed, progress)
        with made.perturber.progress(made.perturber.plan.edits) as progress:
            self._each_part(PERTURBED, made.perturber.plan.parts, made.perturb, progress)

    def _each_part(
        self, name: str, ranges: list[tuple[int, int]], make: MakePart, progress: Progress
    ) -> None:
        for number, (start, stop) in enumerate(ranges):
            part = f"{name}-{number:06d}"
            if self._parts.is_done(part):
                progress.advance(stop - start)
                continue
            save = partial(save_arrays, arrays=make(start, stop, progress))
            self._parts.write(part, {_file(name, number): save})

    def finish(self) -> None:
        """Scores what was computed, and writes tables, figures, report and provenance."""
        require_unchanged(self._inputs)
        made = self._validator
        embedded, perturbed = (
            [self._parts.load(_file(name, number)) for number in range(len(ranges))]
            for name, ranges in (
                (EMBEDDED, self._embedded),
                (PERTURBED, made.perturber.plan.parts),
            )
        )
        expression = made.expression(open_source(self._cells, self._reading))
        validation = validation_of(made, made.effects(embedded, perturbed, expression))
        provenance = describe_run("validate", self._command, self._inputs, self._counts())
        write_validation(self._parts.folder, validation, provenance)
        self._parts.become(self._output)
        tidy(self._output, EMBEDDED, PERTURBED)
        refresh_index(self._output)
        logger.info(validation.verdict[0])
        logger.info(f"tables and report: {self._output}")

    def _counts(self) -> dict[str, Any]:
        made = self._validator
        plan, spec = made.perturber.plan, made.perturber.spec
        return {
            "perturbations": len(made.screen.names),
            "perturbed_cells": int(made.screen.cells.sum()),
            "control_cells": made.screen.controls,
            "edit": plan.rule.kind,
            "edits": plan.edits,
            "edited_cells": plan.edited_cells,
            "left_out": left_out_of(made.cells),
            **reading_facts(made.cells),
            "mode": spec.mode,
            "hidden_layer": spec.hidden_layer,
            "checkpoint": self._model.source,
            "vocabulary_hash": self._model.vocabulary.hash,
            "precision": spec.runtime.precision.name,
            "attention": spec.runtime.attention,
        }


def _file(name: str, number: int) -> str:
    return f"{name}/part-{number:06d}.npz"
