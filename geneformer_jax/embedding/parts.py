"""Embeddings that are computed part by part, and go on where an earlier run stopped.

Rows lie in one array on disk that the parts fill, each recorded with the checksum of its rows. A
run that is given again computes what is missing in the same batches as if it had never been
stopped, or had never been shared, so the result is the same.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.common.files import writing
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.shares import WHOLE
from geneformer_jax.embedding.embedder import Embedded, Embedder
from geneformer_jax.embedding.gene_means import GeneTotals
from geneformer_jax.inference.batches import encoding_flops
from geneformer_jax.inference.resume.cell_parts import CellParts, cells_per_part, shareable_size
from geneformer_jax.inference.resume.folder import PartsFolder, log_damaged, parts_folder
from geneformer_jax.inference.resume.identity import identity_of, sha256
from geneformer_jax.inference.resume.totals import PartTotals

# A part ends with batches that are not full, so it holds many more cells than a batch: some minutes
# of work on a CPU, half a minute on an accelerator.
CELLS_PER_PART = {"cpu": 8_192}
CELLS_PER_ACCELERATOR_PART = 131_072
# Every occurrence of a gene is a row: some hundred megabytes in a part.
ROWS_PER_PART = 262_144
ROWS = "rows.npy"


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
    """The unfinished embeddings of one output."""

    def __init__(
        self,
        output: Path,
        embedder: Embedder,
        identity: Mapping[str, Any],
        *,
        max_cells: int | None = None,
        max_rows: int = ROWS_PER_PART,
    ):
        """Describes the parts; nothing is written yet.

        Args:
          output: the file that will be written at last.
          embedder: of the cells.
          identity: everything that the embeddings depend on, see `embedding_identity`.
          max_cells: of a new run's parts; None chooses for the devices.
          max_rows: of a part of several cells.
        """
        self._embedder = embedder
        costs = encoding_flops(embedder.model.config, embedder.cells.lengths)
        usual = cells_per_part(embedder.pass_.mesh, CELLS_PER_PART, CELLS_PER_ACCELERATOR_PART)
        folder = PartsFolder(parts_folder(output))
        kind = _GenesOfParts if embedder.pass_.mode == "gene" else _RowsOfParts
        self._keeper = kind(folder, embedder)
        self._parts = CellParts(
            folder,
            identity,
            costs,
            max_cells or shareable_size(usual, len(costs), embedder.layout.shape),
            offsets=embedder.offsets,
            max_rows=max_rows,
            prepare=self._keeper.prepare,
        )

    def make(self, shard: tuple[int, int] = WHOLE) -> None:
        """Embeds what is missing of a share.

        Raises:
          InputError: see `CellParts.make`; what is kept of all parts is damaged.
        """
        progress = functools.partial(self._embedder.progress, "embed")
        self._parts.make(self._keeper, shard, progress)

    @contextlib.contextmanager
    def joined(self) -> Iterator[Embedded]:
        """Yields all embeddings, with rows on disk; no other process works on them meanwhile.

        Raises:
          InputError: parts are missing, which it names.
        """
        with self._parts.whole(self._keeper):
            yield self._keeper.embedded()


class _RowsOfParts:
    """Rows of cells, or of occurrences of genes, in one array on disk."""

    def __init__(self, folder: PartsFolder, embedder: Embedder):
        self._folder, self._embedder = folder, embedder
        self._whole: set[int] = set()

    def prepare(self, folder: Path) -> None:
        """Makes the array, of zeros, in a new folder."""
        np.lib.format.open_memmap(folder / ROWS, "w+", np.float32, self._shape()).flush()

    def open(self, _parts: int) -> None:
        """Opens the array that is there."""
        try:
            self._rows = np.load(self._folder.folder / ROWS, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            raise self._folder.damaged(ROWS) from None
        if self._rows.shape != self._shape() or self._rows.dtype != np.float32:
            raise self._folder.damaged(ROWS)

    def has(self, part: int, start: int, stop: int) -> bool:
        """Whether a part is there and as it was written."""
        if part in self._whole:
            return True
        kept = self._folder.checksums(part)
        if kept is None:
            return False
        own = slice(*self._embedder.offsets[[start, stop]])
        if kept == {ROWS: sha256(self._rows[own])}:
            self._whole.add(part)
            return True
        log_damaged(self._folder.folder / ROWS)
        return False

    def make(self, part: int, start: int, stop: int, progress: Progress, _own: range) -> None:
        """Embeds a part, writes its rows and then records them."""
        rows = self._embedder.rows(start, stop, progress)
        first = int(self._embedder.offsets[start]) * self._rows[:1].nbytes
        # Not through the map: several machines would write whole pages of it over each other.
        path = self._folder.folder / ROWS
        with writing(path), path.open("r+b") as file:
            file.seek(self._rows.offset + first)
            file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        self._folder.record(part, {ROWS: sha256(rows)})
        self._whole.add(part)

    def embedded(self) -> Embedded:
        """Returns all rows, on disk."""
        embedder = self._embedder
        return Embedded(self._rows, embedder.table(), embedder.layers, embedder.facts())

    def _shape(self) -> tuple[int, int, int]:
        embedder = self._embedder
        return int(embedder.offsets[-1]), len(embedder.layers), embedder.model.config.width


class _GenesOfParts:
    """Means of genes, as totals of parts."""

    prepare = None

    def __init__(self, folder: PartsFolder, embedder: Embedder):
        self._folder, self._embedder = folder, embedder

    def open(self, parts: int) -> None:
        """Takes the number of parts."""
        self._totals = PartTotals(self._folder, parts, GeneTotals, GeneTotals.merged)

    def has(self, part: int, _start: int, _stop: int) -> bool:
        """Whether a part is in totals that are there."""
        return self._totals.has(part)

    def make(self, part: int, start: int, stop: int, progress: Progress, own: range) -> None:
        """Gathers the genes of a part."""
        self._totals.put(part, self._embedder.genes(start, stop, progress), own)

    def embedded(self) -> Embedded:
        """Returns the means over all parts."""
        return self._embedder.gene_table(self._totals.joined())
