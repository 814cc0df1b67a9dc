"""A run of `attend` in files: from its query, part by part, to its report."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
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
)
from geneformer_jax.attention_analysis.report import write_report
from geneformer_jax.attention_analysis.sums import AttentionTotals, CellMeasures
from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import remove, require_unchanged, slug, states_of
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.shares import WHOLE
from geneformer_jax.common.workdir import as_json, is_finished
from geneformer_jax.inference.batches import encoding_flops
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
from geneformer_jax.inference.resume.cell_parts import CellParts, cells_per_part, shareable_size
from geneformer_jax.inference.resume.folder import PartsFolder, parts_folder, save_arrays
from geneformer_jax.inference.resume.identity import identity_of, labels_sha256
from geneformer_jax.inference.resume.totals import PartTotals
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import profiled_runtime
from geneformer_jax.reporting.index import refresh_index

# Sums are float32 on the devices, and float64 on the host between parts.
CELLS_PER_PART = {"cpu": 1_024}
CELLS_PER_ACCELERATOR_PART = 16_384


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
        complete = is_finished(self._output, self._command, ["cells"])
        if complete:
            # What a run that was killed at its very end may have left, and left undone.
            remove(parts_folder(self._output))
            refresh_index(self._output)
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
        """Checks the query and readies the devices; nothing is computed or written yet.

        Args:
          model: a pretrained encoder with its vocabulary.
          cells: a store, or a file of counts.
          filters, max_cells, seed: which of them, see `select_cells`.
          precision, attention: how to compute, by name.
          tokens_per_device: padded tokens of a batch, or None.
          reading: of counts, see `CountOptions`.

        Raises:
          InputError: see `attend_cells`; a layer or head that the model has not.
        """
        _check_numbers("layers", self._only["layer"], model.config.layers)
        _check_numbers("heads", self._only["head"], model.config.heads)
        self._inputs = states_of([cells], self._output)
        chosen = select_cells(open_cells(cells, model, **reading), filters, max_cells, seed)
        runtime, line = profiled_runtime(int(chosen.lengths.max()), precision, attention)
        self._extractors = prepare(
            model, chosen, self._query, runtime, tokens_per_device=tokens_per_device
        )
        for told in describe_chosen(chosen, model.source, line):
            logger.info(told)
        identity = {**identity_of(model, chosen), "command": self._command}
        if column := self._query.groupby:
            identity["labels"] = labels_sha256(chosen.obs[column])
        folder = parts_folder(self._output)
        self._parts = {
            name: AttentionParts(folder / slug(name), extractor, identity)
            for name, extractor in self._extractors.items()
        }

    def make(self, shard: tuple[int, int] = WHOLE) -> bool:
        """Extracts what is missing of share i of n; returns True.

        Raises:
          InputError: more shares than cells; the parts are of another run; another process is
            making them.
        """
        for name, parts in self._parts.items():
            parts.extract(name, shard)
            if (throughput := self._extractors[name].throughput).done:
                logger.info(f"{name}: {throughput.describe()}")
        return True

    def finish(self) -> HeadAttention:
        """Computes the tables, writes the output and removes the parts.

        Raises:
          InputError: parts are missing, which it names.
        """
        with contextlib.ExitStack() as stack:
            joined = {name: parts.joined() for name, parts in self._parts.items()}
            return self._write({name: stack.enter_context(each) for name, each in joined.items()})

    def _write(self, sums: Mapping[str, AttentionSums]) -> HeadAttention:
        require_unchanged(self._inputs)
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
    """The unfinished attention of one model: totals of parts, and the measures of their cells."""

    def __init__(
        self,
        folder: Path,
        extractor: AttentionExtractor,
        identity: Mapping[str, Any],
        max_cells: int | None = None,
    ):
        """Describes the parts; nothing is written yet.

        Args:
          folder: of the parts.
          extractor: of the attention.
          identity: everything that the sums depend on.
          max_cells: of a new run's parts; None chooses for the devices.
        """
        parts = PartsFolder(folder)
        self._keeper = _SumsOfParts(parts, extractor)
        usual = cells_per_part(extractor.spec.mesh, CELLS_PER_PART, CELLS_PER_ACCELERATOR_PART)
        costs = encoding_flops(extractor.model.config, extractor.cells.lengths)
        size = shareable_size(usual, len(costs), extractor.layout.shape)
        self._parts = CellParts(parts, identity, costs, max_cells or size)

    def extract(self, name: str, shard: tuple[int, int] = WHOLE) -> None:
        """Extracts what is missing of a share.

        Args:
          name: of the model, for the progress.
          shard: (i, n), share i of n.

        Raises:
          InputError: see `CellParts.make`.
        """
        progress = functools.partial(Progress, description=f"attend: {name}", unit="cells")
        self._parts.make(self._keeper, shard, progress)

    @contextlib.contextmanager
    def joined(self) -> Iterator[AttentionSums]:
        """Yields the sums over all cells; no other process works on them meanwhile.

        Raises:
          InputError: parts are missing, which it names.
        """
        with self._parts.whole(self._keeper):
            yield self._keeper.joined()


class _SumsOfParts:
    """Totals of parts, and measures of their cells."""

    def __init__(self, folder: PartsFolder, extractor: AttentionExtractor):
        self._folder, self._extractor = folder, extractor

    def open(self, parts: int) -> None:
        """Takes the number of parts."""
        self._parts = parts
        self._totals = PartTotals(self._folder, parts, AttentionTotals, _added)

    def has(self, part: int, _start: int, _stop: int) -> bool:
        """Whether measures and totals of a part are there."""
        return self._folder.is_done(part) and self._totals.has(part)

    def make(self, part: int, start: int, stop: int, progress: Progress, own: range) -> None:
        """Extracts a part."""
        sums = self._extractor.run(start, stop, progress)
        save = functools.partial(save_arrays, arrays=sums.cells._asdict())
        self._folder.write(part, {_measures_file(part): save})
        if not self._totals.has(part):
            self._totals.put(part, sums.totals, own)

    def joined(self) -> AttentionSums:
        """Returns the sums over all parts."""
        kept = [self._folder.load(_measures_file(part)) for part in range(self._parts)]
        measures = CellMeasures(
            *(np.concatenate([each[name] for each in kept]) for name in CellMeasures._fields)
        )
        return AttentionSums(self._totals.joined(), measures)


def _added(one: AttentionTotals, other: AttentionTotals) -> AttentionTotals:
    return jax.tree.map(np.add, one, other)


def _measures_file(part: int) -> str:
    return f"cells-{part:06d}.npz"


def _check_numbers(name: str, numbers: Sequence[int], size: int) -> None:
    if any(not 1 <= number <= size for number in numbers):
        listed = ",".join(map(str, numbers))
        raise InputError(
            f"`{name}` is {listed}: the model has {size}; give numbers from 1 to {size}"
        )
