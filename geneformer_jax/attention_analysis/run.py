"""A run of `attend` in files: from its query, part by part, to its report."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np

from geneformer_jax.attention_analysis.api import (
    AttentionQuery,
    HeadAttention,
    prepare,
    tabulate,
)
from geneformer_jax.attention_analysis.extractor import (
    AttentionExtractor,
    AttentionSums,
    sum_devices,
)
from geneformer_jax.attention_analysis.report import write_report
from geneformer_jax.attention_analysis.sums import AttentionTotals, CellMeasures
from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import remove, slug
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.workdir import as_json, is_finished
from geneformer_jax.inference.cells import (
    describe_chosen,
    left_out_of,
    open_cells,
    reading_facts,
    select_cells,
)
from geneformer_jax.inference.draw import ORIGINAL_SEED
from geneformer_jax.inference.filters import Filters
from geneformer_jax.inference.random_control import MODEL
from geneformer_jax.inference.resume import (
    PartsFolder,
    cells_per_part,
    identity_of,
    part_ranges,
    parts_folder,
    save_arrays,
)
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import profiled_runtime

# Sums are float32 on the devices, and float64 on the host between parts.
CELLS_PER_PART = {"cpu": 1_024}
CELLS_PER_ACCELERATOR_PART = 16_384
_PART_SIZE = "cells in a part"


class AttentionRun:
    """One run, which goes on where an interrupted one with the same query stopped."""

    def __init__(
        self,
        output: Path | str,
        query: AttentionQuery,
        configuration: Mapping[str, Any],
        *,
        layers: Sequence[int] = (),
        heads: Sequence[int] = (),
    ):
        """Takes what the run is asked to do.

        Args:
          output: folder to write.
          query: what is asked of the heads.
          configuration: the command, for the provenance.
          layers, heads: numbers from 1, to which the tables of genes and pairs are limited; all if
            empty.
        """
        self._output, self._query = Path(output), query
        self._command = as_json(configuration)
        self._only = {"layer": tuple(layers), "head": tuple(heads)}

    def is_complete(self) -> bool:
        """Whether the output is there already, written by this command.

        Raises:
          InputError: the output holds something else.
        """
        complete = is_finished(self._output, self._command)
        if complete:
            # A run that was killed at its very end may have left them.
            remove(parts_folder(self._output))
        return complete

    def prepare(
        self,
        model: PretrainedModel,
        cells: Path | str,
        *,
        filters: Filters | None = None,
        max_cells: int | None = None,
        seed: int = ORIGINAL_SEED,
        precision: str = "float32",
        attention: str = "auto",
        tokens_per_device: int | None = None,
        **reading: Unpack[CountArguments],
    ) -> None:
        """Checks the query, readies the devices, and begins the parts or finds those to go on with.

        Args:
          model: a pretrained encoder with its vocabulary.
          cells: a store, or a file of counts.
          filters, max_cells, seed: which of them, see `select_cells`.
          precision, attention: how to compute, by name.
          tokens_per_device: padded tokens of a batch, or None.
          reading: of counts, see `CountOptions`.

        Raises:
          InputError: see `attend_cells`; a layer or head that the model has not; the parts are of
            another run.
        """
        _check_numbers("layers", self._only["layer"], model.config.layers)
        _check_numbers("heads", self._only["head"], model.config.heads)
        self._inputs = [cells]
        chosen = select_cells(open_cells(cells, model, **reading), filters, max_cells, seed)
        runtime, line = profiled_runtime(int(chosen.lengths.max()), precision, attention)
        self._extractors = prepare(
            model, chosen, self._query, runtime, tokens_per_device=tokens_per_device
        )
        for told in describe_chosen(chosen, model.source, line):
            logger.info(told)
        identity = {**identity_of(model, chosen), "command": self._command}
        folder = parts_folder(self._output)
        self._parts = {
            name: AttentionParts(folder / slug(name), extractor, identity)
            for name, extractor in self._extractors.items()
        }

    def make(self) -> dict[str, AttentionSums]:
        """Extracts what is missing; returns the sums of each model over all cells."""
        sums = {}
        for name, parts in self._parts.items():
            sums[name] = parts.extract(name)
            logger.info(f"{name}: {self._extractors[name].throughput.describe()}")
        return sums

    def finish(self, sums: Mapping[str, AttentionSums]) -> HeadAttention:
        """Computes the tables, writes the output and removes the parts."""
        extractor = self._extractors[MODEL]
        found = tabulate(self._query, extractor, sums)
        cells = extractor.cells
        counts = {
            "cells": len(cells.lengths),
            "left_out": left_out_of(cells),
            "groups_skipped": dict(found.skipped_groups),
            **reading_facts(cells),
            "throughput": {
                name: each.throughput.summary() for name, each in self._extractors.items()
            },
        }
        provenance = describe_run("attend", self._command, self._inputs, counts)
        write_report(found, extractor, self._output, provenance, self._only)
        remove(parts_folder(self._output))
        return found


class AttentionParts:
    """The unfinished attention of one model: totals so far, and the measures of each part's cells.

    Attributes:
      ranges: (first cell, cell behind the last) of each part.
    """

    def __init__(
        self,
        folder: Path,
        extractor: AttentionExtractor,
        identity: Mapping[str, Any],
        max_cells: int | None = None,
    ):
        """Opens the parts of an interrupted run, or begins new ones.

        Args:
          folder: of the parts.
          extractor: of the attention.
          identity: everything that the sums depend on.
          max_cells: of a new run's parts; None chooses for the devices.

        Raises:
          InputError: the folder holds parts of other cells, of another model or command.
        """
        self._extractor, self._parts = extractor, PartsFolder(folder)
        default = cells_per_part(extractor.spec.mesh, CELLS_PER_PART, CELLS_PER_ACCELERATOR_PART)
        size = {_PART_SIZE: max_cells or default}
        kept = self._parts.begin(identity, size)
        cells = len(extractor.cells.lengths)
        self.ranges = part_ranges(np.arange(cells + 1), kept[_PART_SIZE])

    def extract(self, name: str) -> AttentionSums:
        """Extracts what is missing; returns the sums over all cells.

        Args:
          name: of the model, for the progress.
        """
        totals, done = self._totals()
        cells, kept = self.ranges[-1][1], self.ranges[done - 1][1] if done else 0
        with Progress(cells, f"attend: {name}", "cells", initial=kept) as progress:
            for part, (start, stop) in enumerate(self.ranges[done:], done):
                sums = self._extractor.run(start, stop, progress)
                totals = jax.tree.map(np.add, totals, sums.totals)
                save = functools.partial(save_arrays, arrays=sums.cells._asdict())
                self._parts.write(part, {_measures_file(part): save})
                self._parts.save_totals(totals._asdict(), part + 1)
        return AttentionSums(totals, self._measures())

    def _totals(self) -> tuple[AttentionTotals, int]:
        kept, done = self._parts.load_totals()
        if done:
            return AttentionTotals(**kept), done
        return jax.tree.map(lambda leaf: sum_devices(leaf[None]), self._extractor.empty()), 0

    def _measures(self) -> CellMeasures:
        kept = [self._parts.load(_measures_file(part)) for part in range(len(self.ranges))]
        return CellMeasures(
            *(np.concatenate([each[name] for each in kept]) for name in CellMeasures._fields)
        )


def _measures_file(part: int) -> str:
    return f"cells-{part:06d}.npz"


def _check_numbers(name: str, numbers: Sequence[int], size: int) -> None:
    if any(not 1 <= number <= size for number in numbers):
        listed = ",".join(map(str, numbers))
        raise InputError(
            f"`{name}` is {listed}: the model has {size}; give numbers from 1 to {size}"
        )
