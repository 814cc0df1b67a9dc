"""What tokenising would make of sources: read and ranked as a store is built, and nothing kept."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.source import CountBatch
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.store.building.survey import CellsOfSources, bad_file
from geneformer_jax.cells.store.repeated_ids import RepeatedIds
from geneformer_jax.cells.tokenization.quality_control import describe_left_out
from geneformer_jax.cells.tokenization.tokenizer import (
    GeneMatch,
    TokenizerOptions,
    apply_quality_rules,
    encode_source,
    match_genes,
    read_ahead,
)
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import count_files, shown
from geneformer_jax.common.progress import Progress


@dataclass(frozen=True, eq=False)
class Outlook:
    """What would come of one source.

    Attributes:
      path: of the source.
      match: its genes in the vocabulary, and which matrix and column were chosen.
      counts: what its counts are, in words.
      cells: of the source.
      dropped: reason -> number of cells that would be left out.
      skipped: rules of quality control that could not be applied, and why.
      lengths: int32 [stored], tokens of the cells that would be stored.
      cut: number of these that have more genes than a cell takes.
      cells_with: int64 [V], in how many of them each token is.
    """

    path: Path
    match: GeneMatch
    counts: str
    cells: int
    dropped: Mapping[str, int]
    skipped: Sequence[str]
    lengths: np.ndarray
    cut: int
    cells_with: np.ndarray

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        stored = self.lengths
        return {
            "path": str(self.path),
            "cells_in_file": self.cells,
            "cells": len(stored),
            "dropped": {reason: n for reason, n in self.dropped.items() if n},
            "rules_not_applied": list(self.skipped),
            "counts": self.counts,
            "median_tokens": float(np.median(stored)) if len(stored) else None,
            "cells_cut": self.cut,
            **self.match.facts(),
        }

    def describe(self) -> Iterator[str]:
        """Yields lines on the source, its counts, and the cells that would be stored."""
        yield f"{shown(self.path)}: {self.cells:,} cells; {self.match.describe()}"
        yield f"  {self.counts}"
        if not len(self.lengths):
            yield "  no cell would be stored"
        else:
            low, middle, high = np.quantile(self.lengths, (0, 0.5, 1))
            cut = f"; {self.cut:,} are cut to the longest length" if self.cut else ""
            yield (
                f"  {len(self.lengths):,} cells would be stored, of {low:,.0f} to {high:,.0f} "
                f"tokens, median {middle:,.0f}{cut}"
            )
        yield from describe_left_out({reason: n for reason, n in self.dropped.items() if n})
        for rule in self.skipped:
            yield f"  not applied: {rule}"


class DryRun:
    """Looks at sources as `StoreBuild` would.

    Attributes:
      outlooks: of the sources, in order.
      bad_files: path -> reason of those that cannot be used.
    """

    def __init__(
        self,
        vocabulary: GeneVocabulary,
        options: TokenizerOptions,
        counts: CountOptions,
        obs: Sequence[str],
        *,
        prefix_cell_ids: bool = False,
    ):
        """Takes what a build takes, but for its folder."""
        self._vocabulary, self._options, self._counts = vocabulary, options, counts
        self._cells = CellsOfSources(obs, prefix_cell_ids)
        self.outlooks: list[Outlook] = []
        self.bad_files: dict[str, str] = {}

    def look(self, paths: Sequence[Path]) -> Iterator[str]:
        """Reads the sources one by one, and yields lines on each, and on all of them.

        Raises:
          InputError: a source cannot be used, after all others have been looked at.
        """
        ids = RepeatedIds()
        for path in paths:
            with bad_file(str(path), True, self.bad_files):
                self.outlooks.append(outlook := self._look_at(path))
                ids.add(str(path), functools.partial(self._ids, path))
                yield from outlook.describe()
        for path, reason in self.bad_files.items():
            yield f"{path}: CANNOT BE USED: {reason}"
        stored = sum(len(each.lengths) for each in self.outlooks)
        cells = sum(each.cells for each in self.outlooks)
        yield (
            f"{stored:,} of {cells:,} cells of {count_files(paths)} would be stored; nothing was "
            "written"
        )
        ids.check()
        if self.bad_files:
            raise InputError(
                f"{len(self.bad_files):,} of {count_files(paths)} cannot be used, as told above; "
                "mend them, or leave them out by `skip_bad_files`"
            )

    def _ids(self, path: Path) -> Iterator[np.ndarray]:
        return self._cells.of(open_counts(path, self._counts)).ids()

    def _look_at(self, path: Path) -> Outlook:
        source = open_counts(path, self._counts)
        self._cells.of(source, self._cells.names).kinds()
        match = match_genes(source, self._vocabulary, self._options)
        verdict = apply_quality_rules(source, self._options.quality, match.tokens)
        seen, lengths, cut = _Seen(), [], 0
        cells_with = np.zeros(self._vocabulary.size, np.int64)
        most = self._options.max_length - self._vocabulary.special_per_cell
        batches = seen.passing(read_ahead(source))
        with Progress(source.n_cells, "reading", "cells") as progress:
            for batch in encode_source(batches, self._vocabulary, self._options, match, verdict):
                lengths.append(batch.encodings.lengths)
                cut += int((batch.encodings.genes > most).sum())
                cells_with += np.bincount(batch.encodings.tokens, minlength=len(cells_with))
                progress.advance(batch.read, file=source.path.name)
        return Outlook(
            path, match, seen.describe(self._counts.fractional), source.n_cells, verdict.dropped,
            verdict.skipped, np.concatenate(lengths), cut, cells_with,
        )  # fmt: skip

    def coverage(self, tokens: Sequence[int]) -> dict[str, float]:
        """Gene -> fraction of the cells that would be stored in which it is in sight.

        Args:
          tokens: of the genes.
        """
        stored = sum(len(each.lengths) for each in self.outlooks)
        cells_with = sum((each.cells_with for each in self.outlooks), 0)
        names = self._vocabulary.names_of(np.asarray(tokens))
        return {
            str(name): float(cells_with[token]) / stored if stored else 0.0
            for name, token in zip(names, tokens, strict=True)
        }


class _Seen:
    """What counts are: their largest, and the range of the cells' totals."""

    def __init__(self) -> None:
        self._largest = 0.0
        self._totals: list[tuple[float, float]] = []

    def passing(self, batches: Iterator[CountBatch]) -> Iterator[CountBatch]:
        """Yields batches as they come, and looks at them."""
        for batch in batches:
            self._largest = max(self._largest, batch.counts.data.max(initial=0))
            if len(batch.totals):
                self._totals.append((batch.totals.min(), batch.totals.max()))
            yield batch

    def describe(self, fractional: str | None) -> str:
        """In words, given what is done with fractions."""
        kind = {None: "whole counts", "round": "estimated counts, rounded,"}
        low = min((each[0] for each in self._totals), default=0)
        high = max((each[1] for each in self._totals), default=0)
        return (
            f"{kind.get(fractional, 'estimated counts')} up to {self._largest:,.10g}; "
            f"{low:,.10g} to {high:,.10g} in a cell"
        )
