"""A run of `transfer` in files: both embedded part by part, then labels, tables and report."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import (
    atomic_write,
    remove,
    require_unchanged,
    states_of,
    suffix_of,
)
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import (
    describe_run,
    provenance_beside,
    require_same_inputs,
    written_configuration,
)
from geneformer_jax.common.workdir import as_json, require_own
from geneformer_jax.embedding.embedder import Embedder
from geneformer_jax.embedding.output import report_path, require_own_files_beside
from geneformer_jax.embedding.parts import EmbeddingParts, embedding_identity
from geneformer_jax.inference.cells import describe_chosen, left_out_of
from geneformer_jax.inference.resume.folder import parts_folder
from geneformer_jax.inference.written_anndata import write_anndata
from geneformer_jax.label_transfer.output import as_anndata, write_report, write_tables
from geneformer_jax.label_transfer.prepare import read_input
from geneformer_jax.label_transfer.transfer import Transferred
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import inference_runtime
from geneformer_jax.reporting.index import refresh_index

_NAMES = ("reference", "query")
# How the same is computed.
_NOT_IN_PLAN = ("output", "tokens_per_device")


class TransferRun:
    """One run, which goes on where an interrupted one of the same command stopped."""

    def __init__(self, output: Path, configuration: Mapping[str, Any]):
        """Takes where to write, and the command.

        Raises:
          InputError: the output is no h5ad, or something else is there.
        """
        if suffix_of(output) != ".h5ad":
            raise InputError(f"`output` {output} must end in .h5ad")
        require_own_files_beside(output)
        self._output, self._command = output, as_json(configuration)
        if output.exists():
            told = provenance_beside(output)
            require_own(output, written_configuration(told), self._command)
            require_same_inputs(output, told, self._command, _NAMES)

    def is_complete(self) -> bool:
        """Whether output and report are there."""
        complete = self._output.exists() and report_path(self._output).is_file()
        if complete:
            # What a run that was killed at its very end may have left, and left undone.
            self._remove_parts()
            refresh_index(self._output)
        return complete

    def prepare(
        self,
        model: PretrainedModel,
        reference: str,
        query: str,
        label: str,
        group: str = "",
        *,
        hidden_layer: int = -1,
        precision: str = "float32",
        attention: str = "auto",
        tokens_per_device: int | None = None,
        **reading: Unpack[CountArguments],
    ) -> None:
        """Reads both, and readies the devices; see `transfer_labels`.

        Raises:
          InputError: see `transfer_labels`.
        """
        self._inputs = states_of([reference, query], self._output)
        self._given = read_input(model, reference, query, label, group, **reading)
        self._parts = []
        plan = {name: each for name, each in self._command.items() if name not in _NOT_IN_PLAN}
        for name, cells in zip(_NAMES, (self._given.reference, self._given.query), strict=True):
            longest = int(cells.lengths.max())
            runtime, line = inference_runtime(model.config, longest, precision, attention)
            for told in describe_chosen(cells, model.source, line):
                logger.info(f"{name}: {told}")
            embedder = Embedder(
                model, cells, "cell", hidden_layer, runtime, tokens_per_device=tokens_per_device
            )
            identity = embedding_identity(embedder, plan)
            self._parts.append(EmbeddingParts(self._beside(name), embedder, identity))

    def _beside(self, name: str) -> Path:
        return self._output.with_name(f"{self._output.stem}.{name}")

    def make(self) -> None:
        """Embeds what is not embedded yet."""
        for parts in self._parts:
            parts.make()

    def finish(self) -> None:
        """Carries the labels over, and writes everything; removes the parts."""
        with contextlib.ExitStack() as stack:
            both = [stack.enter_context(parts.joined()) for parts in self._parts]
            transferred = self._write(*(np.array(each.rows[:, 0]) for each in both))
        for line in transferred.verdict:
            logger.info(line)
        logger.info(f"labels: {self._output}; report: {report_path(self._output)}")

    def _write(self, reference_RD: np.ndarray, query_QD: np.ndarray) -> Transferred:
        require_unchanged(self._inputs)
        transferred = self._given.finish(reference_RD, query_QD)
        tables = write_tables(transferred, self._output)
        provenance = describe_run("transfer", self._command, self._inputs, self._counts())
        with atomic_write(provenance_beside(self._output)) as aside:
            aside.write_text(json.dumps(provenance, indent=2, default=str) + "\n")
        # Of another output that was here.
        remove(report_path(self._output))
        with atomic_write(self._output) as aside:
            write_anndata(as_anndata(transferred, self._given.query.obs, query_QD), aside)
        write_report(transferred, query_QD, self._output, provenance, tables)
        self._remove_parts()
        return transferred

    def _remove_parts(self) -> None:
        for name in _NAMES:
            remove(parts_folder(self._beside(name)))

    def _counts(self) -> dict[str, Any]:
        given = self._given
        return {
            name: {"cells": len(cells.rows), "left_out": left_out_of(cells)}
            for name, cells in zip(_NAMES, (given.reference, given.query), strict=True)
        }
