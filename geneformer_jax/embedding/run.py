"""A run of `embed` in files: from its options, part by part, to its output and report."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from geneformer_jax.cells.counts.options import CountArguments, CountOptions
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.formats.paths import as_path, is_counts
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import (
    atomic_write,
    read_json,
    remove,
    require_unchanged,
    states_of,
    suffix_of,
)
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import (
    THROUGHPUT,
    describe_run,
    provenance_beside,
    require_same_inputs,
    without_times,
)
from geneformer_jax.common.shares import WHOLE
from geneformer_jax.common.workdir import as_json, one_at_a_time
from geneformer_jax.embedding.embedder import (
    Embedded,
    Embedder,
    as_layers,
    check_all_cells,
    check_options,
    keys_of,
)
from geneformer_jax.embedding.figures import UMAP_KEY
from geneformer_jax.embedding.output import (
    check_columns_fit,
    check_output,
    provenance_of,
    read_output,
    report_path,
    write_output,
)
from geneformer_jax.embedding.parts import EmbeddingParts, embedding_identity
from geneformer_jax.embedding.report import EmbeddingReport, EmbeddingReportConfig
from geneformer_jax.inference.cells import (
    describe_chosen,
    fill_rows,
    open_cells,
    places_in_input,
    select_cells,
)
from geneformer_jax.inference.draw import ORIGINAL_SEED
from geneformer_jax.inference.filters import Filters, is_number
from geneformer_jax.inference.pipeline import Throughput
from geneformer_jax.inference.resume.folder import parts_folder
from geneformer_jax.inference.resume.identity import sha256
from geneformer_jax.inference.viewers import CONFIG, check_vitessce, with_counts, write_vitessce
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import inference_runtime
from geneformer_jax.reporting.index import refresh_index

# Options that change the report, or how the same is computed, but no embedding.
_NOT_IN_PLAN = (
    "output",
    "tokens_per_device",
    "counts",
    *(each.name for each in dataclasses.fields(EmbeddingReportConfig)),
)
_IDENTITY = "identity"


class EmbeddingRun:
    """One run, which goes on where an interrupted one of the same command stopped.

    Embeddings that are there are not computed again for another report.
    """

    def __init__(
        self,
        output: Path,
        configuration: Mapping[str, Any],
        report: EmbeddingReportConfig,
        *,
        mode: str = "cell",
        hidden_layer: int | Sequence[int] = -1,
        all_cells: bool = False,
    ):
        """Takes what the run is asked to do.

        Args:
          output: file to write, see `write_output`.
          configuration: the command, for the provenance.
          report: what to measure and draw.
          mode, hidden_layer, all_cells: of the embeddings, see `embed_cells`.

        Raises:
          InputError: the output holds something else, or the report is not for such embeddings.
        """
        check_output(output, configuration, _NOT_IN_PLAN)
        if report.with_counts and suffix_of(output) != ".h5ad":
            raise InputError(f"`with_counts` is for an .h5ad; `output` is {output}")
        check_vitessce(_vitessce_path(output))
        report.check_mode(mode)
        self._output, self._command, self._config = output, configuration, report
        check_all_cells(mode, all_cells)
        self._mode, self._hidden_layer, self._all_cells = mode, hidden_layer, all_cells

    def is_complete(self) -> bool:
        """Whether the output and its report are there already, written by this command."""
        written = provenance_of(self._output).get("configuration") == as_json(self._command)
        asked = [self._output, report_path(self._output)]
        if self._config.vitessce:
            asked.append(_vitessce_path(self._output) / CONFIG)
        complete = written and all(path.is_file() for path in asked)
        if complete:
            told = provenance_beside(self._output)
            require_same_inputs(self._output, told, self._command, ["cells", "counts"])
            # What a run that was killed at its very end may have left, and left undone.
            remove(parts_folder(self._output))
            refresh_index(self._output)
        return complete

    def prepare(
        self,
        model: PretrainedModel,
        cells: Path | str,
        *,
        counts: Path | str | None = None,
        filters: Filters | None = None,
        max_cells: int | None = None,
        seed: int = ORIGINAL_SEED,
        precision: str = "float32",
        attention: str = "auto",
        tokens_per_device: int | None = None,
        **reading: Unpack[CountArguments],
    ) -> None:
        """Checks the options and readies the devices; nothing is computed or written yet.

        Args:
          model: a pretrained encoder with its vocabulary.
          cells: a store, or a file of counts.
          counts: file with the raw counts of a store's cells, to compare with.
          filters, max_cells, seed: which of the cells, see `select_cells`.
          precision, attention: how to compute, by name.
          tokens_per_device: padded tokens of a batch, or None.
          reading: of counts, those to compare with if they are given apart; see `CountOptions`.

        Raises:
          InputError: see `embed_cells`; the cells or counts lack what is to be measured.
        """
        check_options(model, self._mode, self._hidden_layer)
        self._inputs = states_of([cells, *([counts] if counts else [])], self._output)
        # Of a store that is compared with its counts, only the counts are read anew.
        for_cells = {} if counts and not is_counts(as_path(cells)) else reading
        opened = open_cells(cells, model, **for_cells)
        chosen = select_cells(opened, filters, max_cells, seed)
        if self._mode in ("cell", "cls"):
            keys = keys_of(as_layers(self._hidden_layer))
            check_columns_fit(self._output, chosen.obs.columns, keys)
        if counts is None and is_counts(as_path(cells)):
            counts = cells
        options = CountOptions.from_arguments(reading)
        self._counts = open_counts(counts, options) if counts else None
        self._config.check_cells(chosen, self._counts)
        longest = int(chosen.lengths.max())
        runtime, line = inference_runtime(model.config, longest, precision, attention)
        for told in describe_chosen(chosen, model.source, line):
            logger.info(told)
        self._embedder = Embedder(
            model,
            chosen,
            self._mode,
            self._hidden_layer,
            runtime,
            tokens_per_device=tokens_per_device,
        )
        command = {name: each for name, each in self._command.items() if name not in _NOT_IN_PLAN}
        identity = embedding_identity(self._embedder, command)
        self._identity = sha256(json.dumps(identity, sort_keys=True, default=str).encode())
        self._parts = None
        if self._output.exists():
            self._check_identity()
        else:
            self._parts = EmbeddingParts(self._output, self._embedder, identity)

    def _check_identity(self) -> None:
        """Raises InputError if the output that is there was made of other cells or weights."""
        counts = provenance_of(self._output)["counts"]
        if counts.get(_IDENTITY) != self._identity:
            raise InputError(
                f"{self._output} was made of other cells or weights than those that are there now; "
                "remove it or name another file"
            )
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            made = read_json(provenance_beside(self._output))["counts"][THROUGHPUT]
            self._embedder.throughput = Throughput("cells", *made.values())

    def make(self, shard: tuple[int, int] = WHOLE) -> bool:
        """Embeds what is missing of share i of n; returns True.

        Raises:
          InputError: more shares than cells; the parts are of another run; another process is
            making them.
        """
        if self._parts is not None:
            self._parts.make(shard)
            if (throughput := self._embedder.throughput).done:
                logger.info(throughput.describe())
        return True

    def finish(self) -> None:
        """Measures, draws and writes everything, and removes the parts.

        Raises:
          InputError: parts are missing, which it names.
        """
        if self._parts is None:
            logger.info("%s: embeddings are there, only the report is new", self._output)
            with one_at_a_time(self._output.with_name(f"{self._output.name}.lock")):
                self._write(self._kept())
            return
        with self._parts.joined() as embedded:
            self._write(embedded)

    def _kept(self) -> Embedded:
        """Returns the embeddings of the output."""
        embedder = self._embedder
        rows, table = read_output(self._output, keys_of(embedder.layers))
        if self._all_cells:
            rows = rows[places_in_input(embedder.cells)[1]]
        if embedder.pass_.mode != "gene":
            # As they are given, whatever the format of the output made of them.
            table = embedder.table()
        return Embedded(rows, table, embedder.layers, embedder.facts())

    def _write(self, embedded: Embedded) -> None:
        """Measures, draws and writes everything, and removes the parts."""
        require_unchanged(self._inputs)
        report = EmbeddingReport(self._config, self._embedder, embedded, self._counts, self._output)
        measures = report.make()
        made = {THROUGHPUT: self._embedder.throughput.summary(), _IDENTITY: self._identity}
        counts = {**made, **embedded.facts, **measures}
        provenance = describe_run("embed", self._command, self._inputs, counts)
        # Of another report that was here.
        remove(report_path(self._output))
        with atomic_write(provenance_beside(self._output)) as aside:
            aside.write_text(json.dumps(provenance, indent=2, default=str) + "\n")
        arrays = report.arrays
        if self._config.vitessce:
            self._write_vitessce(embedded, arrays)
        if self._all_cells:
            obs, rows = places_in_input(self._embedder.cells)
            arrays = {key: fill_rows(values, rows, len(obs)) for key, values in arrays.items()}
            embedded = embedded.with_all(obs, rows)
        counts = self._counts if self._config.with_counts else None
        text = json.dumps(without_times(provenance), indent=2, default=str)
        write_output(embedded, self._output, text, arrays, counts=counts)
        report.write(provenance)
        remove(parts_folder(self._output))
        logger.info(
            "embeddings: %s (%s; %s rows)",
            self._output,
            ", ".join(embedded.by_key()),
            f"{len(embedded.table):,}",
        )

    def _write_vitessce(self, embedded: Embedded, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the folder for Vitessce, and says how it is looked at."""
        if UMAP_KEY not in arrays:
            logger.warning(
                "%s is not written: only so many cells have a UMAP, of %s; choose with `max_cells`",
                _vitessce_path(self._output),
                f"{len(embedded.table):,}",
            )
            return
        adata, folder = embedded.to_anndata(), _vitessce_path(self._output)
        adata.obsm.update(arrays)
        adata = with_counts(adata, self._counts) if self._counts else adata
        labels = [name for name in self._config.color if not is_number(adata.obs[name])]
        url = self._config.vitessce
        write_vitessce(folder, adata, url, labels, {"UMAP": UMAP_KEY})
        logger.info(
            "for Vitessce: %s; serve this folder as %s, other origins (CORS) allowed, and open "
            "https://vitessce.io/#?url=%s/%s",
            folder, url, url.rstrip("/"), CONFIG,
        )  # fmt: skip


def _vitessce_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}.vitessce")
