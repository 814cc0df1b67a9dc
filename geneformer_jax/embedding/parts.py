"""Embeddings that are computed part by part, and go on where an earlier run stopped.

Rows lie in one array on disk that the parts fill, each recorded with the checksum of its rows. A
run that is given again computes what is missing in the same batches as if it had never been
stopped, so the result is the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.embedding.embedder import Embedded, Embedder
from geneformer_jax.embedding.gene_means import GeneTotals
from geneformer_jax.inference.resume import (
    PartsFolder,
    cells_per_part,
    identity_of,
    log_damaged,
    part_ranges,
    parts_folder,
    sha256,
)

# A part ends with batches that are not full, so it holds many more cells than a batch: some minutes
# of work on a CPU, half a minute on an accelerator.
CELLS_PER_PART = {"cpu": 8_192}
CELLS_PER_ACCELERATOR_PART = 131_072
# Every occurrence of a gene is a row: some hundred megabytes in a part.
ROWS_PER_PART = 262_144
ROWS = "rows.npy"
_PART_SIZE = "cells in a part"


def embedding_identity(embedder: Embedder, command: Mapping[str, Any]) -> dict[str, Any]:
    """Returns everything that embeddings depend on, as short texts and numbers.

    Devices are not part of it: others only round differently.

    Args:
      embedder: of the cells.
      command: its options, without those of the report.
    """
    facts = embedder.facts()
    return {
        **{name: facts[name] for name in ("mode", "hidden_layer", "precision", "attention")},
        **identity_of(embedder.model, embedder.cells),
        "command": dict(command),
    }


class EmbeddingParts:
    """The unfinished embeddings of one output.

    Attributes:
      ranges: (first cell, cell behind the last) of each part.
    """

    def __init__(
        self,
        output: Path,
        embedder: Embedder,
        identity: Mapping[str, Any],
        *,
        max_cells: int | None = None,
        max_rows: int = ROWS_PER_PART,
    ):
        """Opens the parts of an interrupted run, or begins new ones.

        Args:
          output: the file that will be written at last.
          embedder: of the cells.
          identity: everything that the embeddings depend on, see `embedding_identity`.
          max_cells: of a new run's parts; None chooses for the devices.
          max_rows: of a part of several cells.

        Raises:
          InputError: the folder holds parts of other cells, of another model or of other options.
        """
        self._embedder = embedder
        self._parts = PartsFolder(parts_folder(output))
        # The parts stay as they were begun, whatever devices go on with them.
        default = cells_per_part(embedder.pass_.mesh, CELLS_PER_PART, CELLS_PER_ACCELERATOR_PART)
        size = {_PART_SIZE: max_cells or default}
        kept = self._parts.begin(identity, size, self._make_rows)
        self.ranges = part_ranges(embedder.offsets, kept[_PART_SIZE], max_rows)

    def embed(self) -> Embedded:
        """Embeds what is missing; returns all rows, those of modes other than "gene" on disk."""
        embedder = self._embedder
        if embedder.pass_.mode == "gene":
            return embedder.gene_table(self._gene_totals())
        rows = self._rows()
        with embedder.progress() as progress:
            for part, (start, stop) in enumerate(self.ranges):
                own = slice(*embedder.offsets[[start, stop]])
                kept = self._parts.checksums(part)
                if kept == {ROWS: sha256(rows[own])}:
                    progress.advance(stop - start)
                    continue
                if kept is not None:
                    log_damaged(self._parts.folder / ROWS)
                rows[own] = embedder.rows(start, stop, progress)
                rows.flush()
                self._parts.record(part, {ROWS: sha256(rows[own])})
        return Embedded(rows, embedder.table(), embedder.layers, embedder.facts())

    def remove(self) -> None:
        """Removes them, once the output is written."""
        self._parts.remove()

    def _make_rows(self, folder: Path) -> None:
        if self._embedder.pass_.mode != "gene":
            shape = self._shape()
            np.lib.format.open_memmap(folder / ROWS, "w+", np.float32, shape).flush()

    def _rows(self) -> np.ndarray:
        try:
            rows = np.load(self._parts.folder / ROWS, mmap_mode="r+")
        except (OSError, ValueError, EOFError):
            raise self._parts.damaged(ROWS) from None
        if rows.shape != self._shape() or rows.dtype != np.float32:
            raise self._parts.damaged(ROWS)
        return rows

    def _shape(self) -> tuple[int, int, int]:
        embedder = self._embedder
        return int(embedder.offsets[-1]), len(embedder.layers), embedder.model.config.width

    def _gene_totals(self) -> GeneTotals:
        """Gathers the genes part by part, keeping the totals so far."""
        embedder, config = self._embedder, self._embedder.model.config
        kept, done = self._parts.load_totals()
        totals = (
            GeneTotals(**kept)
            if done
            else GeneTotals.empty(len(embedder.layers), config.vocabulary_size, config.width)
        )
        with embedder.progress() as progress:
            progress.advance(self.ranges[done - 1][1] if done else 0)
            for part, (start, stop) in enumerate(self.ranges[done:], done):
                totals = totals.merged(embedder.genes(start, stop, progress))
                self._parts.save_totals(totals._asdict(), part + 1)
        return totals
