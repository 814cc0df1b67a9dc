"""Writing the pieces of sources into a store."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.cells.counts.source import CountBatch, CountSource
from geneformer_jax.cells.formats.open import CountFiles
from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store import writer as store_writer
from geneformer_jax.cells.store.building.summary import DROPPED_LABELS
from geneformer_jax.cells.store.building.survey import CellsOfSources
from geneformer_jax.cells.store.label_counts import count_dropped
from geneformer_jax.cells.tokenization.piece_index import IndexedSource, Piece
from geneformer_jax.cells.tokenization.piece_quality import PieceQuality
from geneformer_jax.cells.tokenization.quality_control import Verdict
from geneformer_jax.cells.tokenization.tokenizer import (
    GeneMatch,
    TokenizerOptions,
    encode_source,
    match_genes,
    read_ahead,
)
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.progress import Progress

# Of files with some 60,000 genes these take 15 MB.
_MATCHES_KEPT = 64


@dataclass(frozen=True)
class SourceRun:
    """Some pieces of one source.

    Attributes:
      source: which.
      keys: of all of its pieces, in order.
      pieces: those that are meant, by key, in order.
    """

    source: IndexedSource
    keys: Sequence[str]
    pieces: Mapping[str, Piece]

    @property
    def cells(self) -> int:
        """Number of cells of the pieces that are meant."""
        return sum(piece.cells for piece in self.pieces.values())

    def without(self, is_done: Callable[[str], bool]) -> "SourceRun":
        """The same without the pieces of some keys."""
        left = {key: piece for key, piece in self.pieces.items() if not is_done(key)}
        return SourceRun(self.source, self.keys, left)


PieceWork = Callable[[SourceRun, str, Progress], None]


class PieceWriter:
    """Opens sources, and measures and writes pieces of them.

    Attributes:
      files: opens sources.
      quality: of pieces whose cells are compared with all of their source.
    """

    def __init__(
        self,
        folder: Path,
        vocabulary: GeneVocabulary,
        options: TokenizerOptions,
        files: CountFiles,
        cells: CellsOfSources,
    ):
        """Takes the store, how cells are encoded, and what is stored of them."""
        self._folder, self._vocabulary, self._options = folder, vocabulary, options
        self._cells, self.files = cells, files
        self._matches: dict[Path, GeneMatch] = {}
        # The piece whose counts are being read, and its batches.
        self._ahead: tuple[str, Iterator[CountBatch]] | None = None
        self.quality = PieceQuality(folder / layout.SHARES / "measured", options.quality)

    def match(self, source: CountSource) -> GeneMatch:
        """Finds the genes of a source, and makes it take their ids.

        Raises:
          InputError: see `match_genes`.
        """
        known = self._matches.get(source.path)
        if known is None:
            known = match_genes(source, self._vocabulary, self._options)
            if len(self._matches) == _MATCHES_KEPT:
                self._matches.clear()
            self._matches[source.path] = known
        known.choice.apply(source)
        return known

    def measure(self, run: SourceRun, key: str, progress: Progress) -> None:
        """Measures a piece for the rules of quality control, and keeps what was measured.

        Args: as of `write`.

        Raises:
          InputError: its counts cannot be used.
        """
        source, piece = self.files.open(run.source.path), run.pieces[key]
        tokens = self.match(source).tokens
        self.quality.measure(key, source.part(piece.first, piece.stop), tokens)
        progress.advance(piece.cells, file=source.path.name)

    def write(self, run: SourceRun, key: str, progress: Progress) -> None:
        """Encodes the cells of a piece into the store.

        Args:
          run: of pieces of one source.
          key: of the piece.
          progress: of cells.

        Raises:
          InputError: its counts cannot be used.
        """
        source, piece = self.files.open(run.source.path), run.pieces[key]
        match = self.match(source)
        part = source.part(piece.first, piece.stop)
        verdict = self.quality.judge(key, run.keys, part, match.tokens)
        kinds = layout.obs_kinds(self._folder)
        columns = self._cells.of(part, list(kinds))
        with store_writer.write_source(self._folder, key, kinds) as writer:
            dropped = np.ones(part.n_cells, bool)
            batches = self._batches(key, part)
            for batch in encode_source(batches, self._vocabulary, self._options, match, verdict):
                writer.write(batch.encodings, *columns.of(batch.rows))
                dropped[batch.rows] = False
                progress.advance(batch.read, file=source.path.name)
            self._read_next(run, key)
            # Else a piece might hold cells of the file before and of the one behind a change.
            run.source.require_unchanged()
            labels = count_dropped(columns, kinds, dropped)
            about = {DROPPED_LABELS: labels, "obs_absent": list(columns.absent)}
            writer.finish({**_facts(run.source, piece, verdict), **about, **match.facts()})
        self.quality.forget(key)

    def _batches(self, key: str, part: CountSource) -> Iterator[CountBatch]:
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead and ahead[0] == key else read_ahead(part)

    def _read_next(self, run: SourceRun, key: str) -> None:
        """Begins to read the next piece while this one is closed; rules read counts before it."""
        keys = list(run.pieces)
        behind = keys[keys.index(key) + 1 :]
        if behind and not self._options.quality.need_counts:
            piece = run.pieces[behind[0]]
            part = self.files.open(run.source.path).part(piece.first, piece.stop)
            self._ahead = behind[0], read_ahead(part)


def _facts(indexed: IndexedSource, piece: Piece, verdict: Verdict) -> dict[str, Any]:
    """What is written down of a piece; its rows if it is not all of its source."""
    return {
        "path": str(indexed.path),
        "fingerprint": indexed.facts["fingerprint"],
        **({} if piece.cells == indexed.cells else {"rows": [piece.first, piece.stop]}),
        "cells_in_file": piece.cells,
        "dropped": verdict.dropped,
        "rules_not_applied": list(verdict.skipped),
    }
