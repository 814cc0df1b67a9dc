"""A run of `embed` in files: from its options, part by part, to its output and report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.embedding.embedder import Embedded, Embedder, check_options
from geneformer_jax.embedding.output import check_output, write_output
from geneformer_jax.embedding.parts import EmbeddingParts
from geneformer_jax.embedding.report import EmbeddingReport, EmbeddingReportConfig
from geneformer_jax.inference.cells import ORIGINAL_SEED, open_cells, select_cells
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import inference_runtime


class EmbeddingRun:
    """One run, which goes on where an interrupted one of the same command stopped."""

    def __init__(
        self,
        output: Path,
        configuration: Mapping[str, Any],
        report: EmbeddingReportConfig,
        *,
        mode: str = "cell",
        hidden_layer: int | Sequence[int] = -1,
    ):
        """Takes what the run is asked to do.

        Args:
          output: file to write, see `write_output`.
          configuration: the command, for the provenance.
          report: what to measure and draw.
          mode, hidden_layer: of the embeddings, see `embed_cells`.

        Raises:
          InputError: the output holds something else, or the report is not for such embeddings.
        """
        check_output(output, configuration)
        report.check_mode(mode)
        self._output, self._command, self._config = output, configuration, report
        self._mode, self._hidden_layer = mode, hidden_layer

    def prepare(
        self,
        model: PretrainedModel,
        cells: Path | str,
        *,
        counts: Path | str | None = None,
        filters: Mapping[str, Sequence[str]] | None = None,
        max_cells: int | None = None,
        seed: int = ORIGINAL_SEED,
        precision: str = "float32",
        attention: str = "auto",
        tokens_per_device: int | None = None,
    ) -> None:
        """Checks the options, readies the devices, and begins the parts or finds those to go on.

        Args:
          model: a pretrained encoder with its vocabulary.
          cells: a store, or a file of counts.
          counts: file with the raw counts of a store's cells, to compare with.
          filters, max_cells, seed: which of the cells, see `select_cells`.
          precision, attention: how to compute, by name.
          tokens_per_device: padded tokens of a batch, or None.

        Raises:
          InputError: see `embed_cells`; the cells or counts lack what is to be measured; the parts
            are of another run.
        """
        check_options(model, self._mode, self._hidden_layer)
        chosen = select_cells(open_cells(cells, model), filters, max_cells, seed)
        self._inputs = [cells, *([counts] if counts else [])]
        if counts is None and Path(cells).is_file():
            counts = cells
        self._counts = open_counts(counts) if counts else None
        self._config.check_cells(chosen, self._counts)
        longest = int(chosen.lengths.max())
        runtime, line = inference_runtime(model.config, longest, precision, attention)
        logger.info("%s cells, model %s\n%s", f"{len(chosen.lengths):,}", model.source, line)
        self._embedder = Embedder(
            model,
            chosen,
            self._mode,
            self._hidden_layer,
            runtime,
            tokens_per_device=tokens_per_device,
        )
        self._parts = EmbeddingParts(self._output, self._embedder, {"command": self._command})

    def make(self) -> Embedded:
        """Embeds what is not embedded yet."""
        embedded = self._parts.embed()
        logger.info(self._embedder.throughput.describe())
        return embedded

    def finish(self, embedded: Embedded) -> None:
        """Measures, draws and writes everything, and removes the parts."""
        report = EmbeddingReport(self._config, self._embedder, embedded, self._counts, self._output)
        measures = report.make()
        counts = {"throughput": self._embedder.throughput.summary(), **embedded.facts, **measures}
        provenance = describe_run("embed", self._command, self._inputs, counts)
        text = json.dumps(provenance, indent=2, default=str)
        with atomic_write(self._output.with_suffix(".provenance.json")) as aside:
            aside.write_text(text + "\n")
        write_output(embedded, self._output, text, report.arrays)
        report.write(provenance)
        self._parts.remove()
        logger.info(
            "embeddings: %s (%s; %s rows)",
            self._output,
            ", ".join(embedded.by_key()),
            f"{len(embedded.table):,}",
        )
