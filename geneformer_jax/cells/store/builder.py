"""Building a cell store from many sources, piece by piece, so that a kill loses one at most."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.row_pieces import PIECE_VALUES
from geneformer_jax.cells.formats.open import CountFiles
from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store import writer as store_writer
from geneformer_jax.cells.store.building.pieces import PieceWork, PieceWriter, SourceRun
from geneformer_jax.cells.store.building.shares import key_of, keys_of, note_shares, require_all
from geneformer_jax.cells.store.building.summary import (
    describe_bad_files,
    describe_store,
    summarise,
)
from geneformer_jax.cells.store.building.survey import (
    CellsOfSources,
    StoredPieces,
    bad_file,
    common_kinds,
    describe_sources,
    indexed,
    source_key,
)
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.repeated_ids import RepeatedIds
from geneformer_jax.cells.tokenization.piece_index import (
    IndexedSource,
    PieceIndex,
    keep_index,
)
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions, check_max_length
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.shares import WHOLE
from geneformer_jax.common.workdir import lock_folder

_HASH = 12


class StoreBuild:
    """One run over a store: survey the files, write their pieces, join them.

    The steps are called in this order; `write` may be split among processes.

    Attributes:
      folder: of the store.
      index: of the pieces, after the survey.
      bad_files: path -> reason of the files that were skipped.
    """

    def __init__(
        self,
        folder: Path,
        vocabulary: GeneVocabulary,
        options: TokenizerOptions,
        counts: CountOptions,
        obs: Sequence[str],
        *,
        prefix_cell_ids: bool = False,
        piece_values: int = PIECE_VALUES,
    ):
        """Takes all that determines the store's content.

        Args:
          folder: of the store, new or growing or complete.
          vocabulary: genes and medians.
          options: how cells are chosen and encoded.
          counts: which matrix and gene ids of the files.
          obs: obs columns to store.
          prefix_cell_ids: put "<file name>|" in front of each cell id.
          piece_values: of a source's matrix, about as many as are in a piece.

        Raises:
          InputError: no gene would fit into a cell of `options.max_length` tokens.
        """
        check_max_length(options.max_length, vocabulary)
        self.folder, self._vocabulary, self._counts = folder, vocabulary, counts
        self._piece_values = piece_values
        self._identity = _identity(vocabulary, options, counts, prefix_cell_ids, obs)
        self._cells = CellsOfSources(obs, prefix_cell_ids)
        files = CountFiles(counts)
        self._pieces = PieceWriter(folder, vocabulary, options, files, self._cells)
        self.index = PieceIndex([], {})
        self.bad_files: dict[str, str] = {}

    def is_complete(self, paths: Sequence[Path]) -> bool:
        """Whether the store is complete and holds all of these files.

        Raises:
          InputError: the folder holds something else or a store made otherwise; or it is complete,
            but a shard is missing, cut or damaged.
        """
        store_writer.check_folder(self.folder, self._identity)
        if not (self.folder / layout.DATASET_INFO).is_file():
            return False
        joined = {layout.source_of(key) for key in store_writer.joined_sources(self.folder)}
        if not all(path.exists() and source_key(path) in joined for path in paths):
            return False
        CellStore.open(self.folder)
        store_writer.tidy(self.folder)
        return True

    def survey(self, paths: Sequence[Path], skip_bad_files: bool = False) -> None:
        """Checks all that can be known before long work, and begins the store.

        The first process opens every file; others take what it wrote down.

        Raises:
          InputError: a file cannot be used (unless `skip_bad_files`), or no file can; a cell id
            occurs twice; the folder holds something else or a store made otherwise.
        """
        store_writer.check_folder(self.folder, self._identity)
        kept = keep_index(
            self.folder / layout.SHARES,
            self.folder.with_name(f"{self.folder.name}.survey.lock"),
            paths,
            {"values": self._piece_values, "skip": skip_bad_files},
            lambda: self._survey(paths, skip_bad_files),
        )
        self.index, self.bad_files = kept.index, dict(kept.index.facts["bad_files"])
        if not kept.is_new:
            self._pieces.files = CountFiles(self._counts.of_sound_files())
        for line in self.describe():
            logger.info(line)

    def describe(self) -> Iterator[str]:
        """Yields a line about each surveyed file."""
        yield from describe_sources(self.index)
        yield from describe_bad_files(self.bad_files)

    def _survey(self, paths: Sequence[Path], skip_bad_files: bool) -> PieceIndex:
        ids, stored = RepeatedIds(), StoredPieces(self.folder)
        sources: list[IndexedSource] = []
        bad: dict[str, str] = {}
        for path in paths:
            with bad_file(str(path), skip_bad_files, bad):
                sources.append(self._survey_source(path, stored, ids))
        if not sources:
            reason = next(iter(bad.values()))
            raise InputError(f"none of {len(paths)} files can be used; the first: {reason}")
        stored.add_ids(ids, {source.facts["key"] for source in sources})
        ids.check()
        kinds = common_kinds(self._cells.names, sources)
        store_writer.begin_store(self.folder, self._identity, kinds)
        return PieceIndex(sources, {"bad_files": bad})

    def _survey_source(self, path: Path, stored: StoredPieces, ids: RepeatedIds) -> IndexedSource:
        source = self._pieces.files.open(path)
        columns = self._cells.of(source, self._cells.names)
        match = self._pieces.match(source)
        pieces = stored.cut(source_key(path), source, self._piece_values)
        surveyed = indexed(path, source, pieces, columns, match.describe())
        ids.add(str(path), lambda: self._cells.of(self._pieces.files.open(path)).ids())
        return surveyed

    def write(self, shard: tuple[int, int] = WHOLE, skip_bad_files: bool = False) -> bool:
        """Encodes the pieces of this shard (i of n) that the store does not hold yet, one by one.

        Returns:
          Whether all are written; False if some wait for pieces of other shards to be measured,
          since a rule of quality control compares their cells with all of their source.

        Raises:
          InputError: counts cannot be used (unless `skip_bad_files`); another process is at work
            on this shard; there are more shards than cells.
        """
        if shard != WHOLE:
            logger.info(self.index.describe_share(shard))
        if not self._missing_runs(shard):
            return True
        note_shares(self.folder, shard[1])
        with self._at_work(shard):
            # Another process may have written some of them a moment ago.
            runs = self._missing_runs(shard)
            try:
                return self._write_runs(runs, skip_bad_files)
            except InputError:
                # Others may be at work on their shards; alone, a failure leaves no trace.
                if shard == WHOLE:
                    store_writer.drop_if_nothing_in_it(self.folder)
                raise

    @contextlib.contextmanager
    def _at_work(self, shard: tuple[int, int]) -> Iterator[None]:
        lock = lock_folder(self.folder / layout.LOCK, shard)
        try:
            yield
        finally:
            os.close(lock)

    def _missing_runs(self, shard: tuple[int, int]) -> list[SourceRun]:
        """The pieces of a share that the store does not hold, source by source."""
        runs = []
        for number, own in itertools.groupby(self.index.share(shard), lambda piece: piece.source):
            keys = keys_of(self.index, number)
            pieces = {key_of(self.index, piece): piece for piece in own}
            done = {key for key in pieces if store_writer.is_finished(self.folder, key)}
            if left := {key: piece for key, piece in pieces.items() if key not in done}:
                runs.append(SourceRun(self.index.sources[number], keys, left))
        return runs

    def _write_runs(self, runs: Sequence[SourceRun], skip_bad_files: bool) -> bool:
        quality = self._pieces.quality
        todo = [run.without(quality.is_measured) for run in runs if quality.needs(run.keys)]
        bad = self._each_piece("measuring", todo, self._pieces.measure, skip_bad_files)
        runs = [run for run in runs if run.source.path not in bad]
        ready = [run for run in runs if quality.are_known(run.keys)]
        self._each_piece("tokenizing", ready, self._pieces.write, skip_bad_files)
        # A source that another process found bad is left out.
        noted = store_writer.bad_sources(self.folder) if skip_bad_files else {}
        return all(run in ready or not noted.keys().isdisjoint(run.keys) for run in runs)

    def _each_piece(
        self, what: str, runs: Sequence[SourceRun], work: PieceWork, skip_bad_files: bool
    ) -> set[Path]:
        """Works on one piece after the other; returns sources that turned out to be bad."""
        bad: set[Path] = set()
        with Progress(sum(run.cells for run in runs), what, "cells") as progress:
            for run in runs:
                run.source.require_unchanged()
                for key in run.pieces:
                    try:
                        work(run, key, progress)
                    except InputError as error:
                        if not skip_bad_files:
                            raise
                        store_writer.note_bad_source(self.folder, key, str(error))
                        bad.add(run.source.path)
                        break
        return bad

    def finish(
        self, configuration: Mapping[str, Any], skip_bad_files: bool = False
    ) -> dict[str, Any]:
        """Joins the pieces to a complete store and logs its contents.

        Args:
          configuration: of the run, for the provenance.
          skip_bad_files: whether to leave out files that could not be read.

        Returns:
          The numbers of cells stored and dropped, as in the provenance; see `summarise`.

        Raises:
          InputError: a piece is not encoded yet, or no cell is left; another process is at work.
        """
        with self._at_work(WHOLE):
            sources = list(range(len(self.index.sources)))
            bad = self._bad_pieces(sources) if skip_bad_files else {}
            sources = [source for source in sources if source not in bad]
            require_all(self.folder, self.index, sources)
            self._leave_out(bad)
            counts = self._join(sources, configuration)
        for line in describe_store(self.folder, counts, len(sources)):
            logger.info(line)
        return counts

    def _bad_pieces(self, sources: Sequence[int]) -> dict[int, str]:
        """Source -> its first piece that was bad, of the sources that have such a piece."""
        noted = store_writer.bad_sources(self.folder)
        found = {}
        for source in sources:
            if bad := [key for key in keys_of(self.index, source) if key in noted]:
                found[source] = bad[0]
                self.bad_files[str(self.index.sources[source].path)] = noted[bad[0]]
        return found

    def _leave_out(self, bad: Mapping[int, str]) -> None:
        """Keeps of bad sources what one process would note, and none of their other pieces."""
        for source, first in bad.items():
            for key in keys_of(self.index, source):
                if key != first:
                    store_writer.drop_source(self.folder, key)

    def _join(self, sources: Sequence[int], configuration: Mapping[str, Any]) -> dict[str, Any]:
        keys = [key for source in sources for key in keys_of(self.index, source)]
        keys = store_writer.store_order(self.folder, keys)
        counts = summarise(self.folder, keys, self.bad_files)
        paths = [self.index.sources[source].path for source in sources]
        provenance = describe_run("tokenize", configuration, paths, counts)
        store_writer.join_sources(self.folder, keys, self._vocabulary, provenance)
        return counts


def _identity(
    vocabulary: GeneVocabulary,
    options: TokenizerOptions,
    counts: CountOptions,
    prefix_cell_ids: bool,
    obs: Sequence[str],
) -> dict[str, Any]:
    """Everything that two runs over one store must have in common."""
    chosen = dataclasses.asdict(options)
    if chosen["orthologs"] is not None:
        pairs = json.dumps(sorted(chosen["orthologs"].items()))
        chosen["orthologs"] = hashlib.sha256(pairs.encode()).hexdigest()[:_HASH]
    return {
        "vocabulary": vocabulary.hash,
        **chosen,
        **counts.identity(),
        "prefix_cell_ids": prefix_cell_ids,
        "obs": list(obs),
    }
