"""A run of `predict` in files: from its options, part by part, to its output."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.tokenization.quality_control import describe_left_out
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import remove, require_unchanged, states_of, suffix_of
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import (
    describe_run,
    provenance_beside,
    require_same_inputs,
    written_configuration,
)
from geneformer_jax.common.shares import WHOLE
from geneformer_jax.common.workdir import as_json, require_own
from geneformer_jax.embedding.output import report_path, require_own_files_beside
from geneformer_jax.finetuning.prediction.api import open_cells_for
from geneformer_jax.finetuning.prediction.labels import (
    check_labels,
    compare_with_labels,
    find_output,
)
from geneformer_jax.finetuning.prediction.output import SUFFIXES, write_predicted
from geneformer_jax.finetuning.prediction.predictor import Predictor
from geneformer_jax.finetuning.prediction.report import write_prediction_report
from geneformer_jax.finetuning.prediction.tables import GeneVotes, cell_table
from geneformer_jax.inference.batches import encoding_flops
from geneformer_jax.inference.cells import left_out_of, reading_facts
from geneformer_jax.inference.resume.cell_parts import CellParts, cells_per_part, shareable_size
from geneformer_jax.inference.resume.folder import PartsFolder, parts_folder, save_arrays
from geneformer_jax.inference.resume.identity import identity_of, weights_sha256
from geneformer_jax.inference.resume.totals import PartTotals
from geneformer_jax.model.config import RuntimeConfig
from geneformer_jax.model.heads import CELLS, GENES
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.reporting.index import refresh_index

# A part ends with batches that are not full: a minute of work or more on a CPU.
CELLS_PER_PART = {"cpu": 4_096}
CELLS_PER_ACCELERATOR_PART = 65_536
# Options that predictions do not depend on.
_NOT_IN_PLAN = ("output", "tokens_per_device", "labels_key", "target", "all_cells")


class PredictionRun:
    """One run, which goes on where an interrupted one of the same command stopped."""

    def __init__(
        self,
        output: Path,
        configuration: Mapping[str, Any],
        *,
        labels_key: str = "",
        target: str = "",
        all_cells: bool = False,
    ):
        """Takes what the run is asked to do.

        Args:
          output: file to write: .h5ad (of cells), .parquet or .csv.
          configuration: the command, for the provenance.
          labels_key: obs column of known labels, to compare predictions with.
          target: output that they are of.
          all_cells: keep a row for every cell of the input.

        Raises:
          InputError: the output has another ending, or would take another's provenance.
        """
        if suffix_of(output) not in SUFFIXES:
            raise InputError(f"`output`={output} must end in one of {', '.join(SUFFIXES)}")
        require_own_files_beside(output)
        self._output, self._command = output, as_json(configuration)
        self._labels_key, self._target, self._all_cells = labels_key, target, all_cells

    def is_complete(self) -> bool:
        """Whether the output and its report are there already, written by this command.

        Raises:
          InputError: the output is something else.
        """
        if not self._output.exists():
            return False
        told = provenance_beside(self._output)
        require_own(self._output, written_configuration(told), self._command)
        require_same_inputs(self._output, told, self._command, ["cells"])
        if not report_path(self._output).is_file():
            return False
        # What a run that was killed at its very end may have left, and left undone.
        remove(parts_folder(self._output))
        refresh_index(self._output)
        return True

    def prepare(
        self,
        model: PretrainedModel,
        cells: Path | str,
        *,
        runtime: RuntimeConfig | None = None,
        tokens_per_device: int | None = None,
        **reading: Unpack[CountArguments],
    ) -> None:
        """Checks model and cells, and readies the devices; nothing is computed or written yet.

        Args:
          model: that `finetune` made.
          cells: a store, or a file of counts.
          runtime: how to compute.
          tokens_per_device: padded tokens of a batch, or None.
          reading: of counts, see `CountOptions`.

        Raises:
          InputError: the model has no classification head, or is not for such an output; the cells
            do not fit it, or lack known labels.
        """
        is_of_genes = model.head is not None and model.head.kind == GENES
        if is_of_genes and (suffix_of(self._output) == ".h5ad" or self._labels_key):
            raise InputError(
                f"the model of {model.source} classifies genes; write a .parquet or .csv table, "
                "without `labels_key`"
            )
        self._inputs = states_of([cells], self._output)
        opened = open_cells_for(model, cells, GENES if is_of_genes else CELLS, **reading)
        self._known = None
        if self._labels_key:
            self._task = find_output(model, self._target)
            self._known = check_labels(opened.obs, self._labels_key, self._task)
        self._predictor = Predictor(model, opened, runtime, tokens_per_device)
        command = {name: each for name, each in self._command.items() if name not in _NOT_IN_PLAN}
        identity = {
            **identity_of(model, opened),
            "head": weights_sha256(model, [model.head.kind]),
            "command": command,
        }
        costs = encoding_flops(model.config, opened.lengths)
        usual = cells_per_part(self._predictor.mesh, CELLS_PER_PART, CELLS_PER_ACCELERATOR_PART)
        folder = PartsFolder(parts_folder(self._output))
        kind = _VotesOfParts if is_of_genes else _LogitsOfParts
        self._keeper = kind(folder, self._predictor)
        size = shareable_size(usual, len(costs), self._predictor.shape)
        self._parts = CellParts(folder, identity, costs, size)

    def make(self, shard: tuple[int, int] = WHOLE) -> bool:
        """Predicts what is missing of share i of n; returns True.

        Raises:
          InputError: more shares than cells; the parts are of another run; another process is
            making them.
        """
        self._parts.make(
            self._keeper, shard, partial(Progress, description="predict", unit="cells")
        )
        return True

    def finish(self) -> None:
        """Compares with known labels, writes the output, and removes the parts.

        Raises:
          InputError: parts are missing, which it names.
        """
        with self._parts.whole(self._keeper):
            require_unchanged(self._inputs)
            predicted = self._keeper.table(self._all_cells)
            lines = []
            if self._known is not None:
                lines = compare_with_labels(predicted, self._known, self._task)
            for line in lines:
                logger.info(line)
            cells, unit = self._predictor.cells, self._keeper.unit
            left_out = left_out_of(cells)
            for line in describe_left_out(left_out):
                logger.info(line)
            counts = {unit: len(predicted), "left_out": left_out, **reading_facts(cells)}
            provenance = describe_run("predict", self._command, self._inputs, counts)
            # Of another output that was here.
            remove(report_path(self._output))
            write_predicted(predicted, self._output, provenance)
            report = write_prediction_report(predicted, self._output, lines, provenance)
            remove(parts_folder(self._output))
        logger.info(f"predictions: {self._output} ({len(predicted):,} {unit}); report: {report}")


class _LogitsOfParts:
    """Outputs of cells, a file for each part."""

    unit = "cells"

    def __init__(self, folder: PartsFolder, predictor: Predictor):
        self._folder, self._predictor = folder, predictor

    def open(self, parts: int) -> None:
        """Takes the number of parts."""
        self._parts = parts

    def has(self, part: int, _start: int, _stop: int) -> bool:
        """Whether the outputs of a part are there."""
        return self._folder.is_done(part)

    def make(self, part: int, start: int, stop: int, progress: Progress, _own: range) -> None:
        """Predicts the cells of a part."""
        outputs = self._predictor.outputs(start, stop, progress)
        save = partial(save_arrays, arrays={"logits": outputs.logits})
        self._folder.write(part, {_file(part): save})

    def table(self, all_cells: bool) -> ad.AnnData:
        """Returns the predictions of all cells."""
        logits = [self._folder.load(_file(part))["logits"] for part in range(self._parts)]
        predictor = self._predictor
        return cell_table(predictor.cells, predictor.model.head, np.concatenate(logits), all_cells)


class _VotesOfParts:
    """Votes of cells on genes, as totals of parts."""

    unit = "genes"

    def __init__(self, folder: PartsFolder, predictor: Predictor):
        self._folder, self._predictor = folder, predictor
        self._given = predictor.model.head, predictor.cells.vocabulary

    def open(self, parts: int) -> None:
        """Takes the number of parts."""
        self._totals = PartTotals(self._folder, parts, GeneVotes, GeneVotes.plus)

    def has(self, part: int, _start: int, _stop: int) -> bool:
        """Whether a part is in totals that are there."""
        return self._totals.has(part)

    def make(self, part: int, start: int, stop: int, progress: Progress, own: range) -> None:
        """Predicts the genes in the cells of a part."""
        outputs = self._predictor.outputs(start, stop, progress)
        self._totals.put(part, GeneVotes.of(*self._given, outputs), own)

    def table(self, _all_cells: bool) -> pd.DataFrame:
        """Returns the mean of each gene over all cells."""
        return self._totals.joined().table(*self._given)


def _file(part: int) -> str:
    return f"logits/part-{part:06d}.npz"
