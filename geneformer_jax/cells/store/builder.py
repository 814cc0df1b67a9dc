"""Building a cell store from many sources, file by file, so that a killed run loses one at most."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.formats.open import CountFiles
from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store import writer as store_writer
from geneformer_jax.cells.store.cell_columns import CellColumns
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.label_counts import count_by_label, count_dropped, describe_labels
from geneformer_jax.cells.store.obs_columns import common_kind
from geneformer_jax.cells.store.repeated_ids import RepeatedIds
from geneformer_jax.cells.tokenization.quality_control import describe_left_out
from geneformer_jax.cells.tokenization.tokenizer import (
    GeneMatch,
    TokenizerOptions,
    apply_quality_rules,
    check_max_length,
    encode_source,
    match_genes,
)
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.command_line import shard_of
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import fingerprint
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import describe_run

DROPPED_LABELS = "dropped_by_label"
_KEY_HASH = 12


@dataclass(frozen=True)
class SurveyedSource:
    """What is known of a file before its counts are read.

    Attributes:
      path: where it is.
      key: name of its folder in the store, from its name and content.
      n_cells: its number of cells.
      obs_kinds: obs column -> kind.
      match: which of its columns are genes.
      absent: obs columns that it lacks and may lack.
    """

    path: Path
    key: str
    n_cells: int
    obs_kinds: Mapping[str, str]
    match: GeneMatch
    absent: tuple[str, ...] = ()


def source_key(path: Path) -> str:
    """A name for a file's part of a store; changes with its name or content."""
    content = json.dumps(fingerprint(path), sort_keys=True)
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem)[:80]
    return f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:_KEY_HASH]}"


class StoreBuild:
    """One run over a store: survey the files, write each, join them.

    The steps are called in this order; `write` may be split among processes.
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
    ):
        """Takes all that determines the store's content.

        Args:
          folder: of the store, new or growing or complete.
          vocabulary: genes and medians.
          options: how cells are chosen and encoded.
          counts: which matrix and gene ids of the files.
          obs: obs columns to store.
          prefix_cell_ids: put "<file name>|" in front of each cell id.

        Raises:
          InputError: no gene would fit into a cell of `options.max_length` tokens.
        """
        check_max_length(options.max_length, vocabulary)
        self.folder, self.vocabulary = folder, vocabulary
        self.options, self.counts, self.obs = options, counts, list(obs)
        self._optional = {name.removesuffix("?") for name in obs if name.endswith("?")}
        self._names = [name.removesuffix("?") for name in obs]
        self.prefix_cell_ids = prefix_cell_ids
        self.sources: list[SurveyedSource] = []
        self._files = CountFiles(counts)
        self.bad_files: dict[str, str] = {}

    def survey(self, paths: Sequence[Path], skip_bad_files: bool = False) -> None:
        """Opens every file, checks all that can be known before long work, and begins the store.

        Raises:
          InputError: a file cannot be used (unless `skip_bad_files`), or no file can; a cell id
            occurs twice; the folder holds something else or a store made otherwise.
        """
        store_writer.check_folder(self.folder, self._identity())
        ids = RepeatedIds()
        for path in paths:
            with self._bad_file(path, skip_bad_files):
                self.sources.append(self._survey(path, ids))
        if not self.sources:
            reason = next(iter(self.bad_files.values()))
            raise InputError(f"none of {len(paths)} files can be used; the first: {reason}")
        self._add_stored_ids(ids)
        ids.check()
        kinds = {
            name: common_kind(source.obs_kinds[name] for source in self.sources)
            for name in self._names
        }
        store_writer.begin_store(self.folder, self._identity(), kinds)
        for line in self.describe():
            logger.info(line)

    def describe(self) -> Iterator[str]:
        """Yields a line about each surveyed file."""
        for source in self.sources:
            absent = f"; without obs column {', '.join(source.absent)}" if source.absent else ""
            yield f"  {source.path}: {source.n_cells:,} cells, {source.match.describe()}{absent}"
        yield from self._describe_bad_files()

    def is_complete(self) -> bool:
        """Whether the store is complete and holds all surveyed files.

        Raises:
          InputError: it is complete, but a shard is missing, cut or damaged.
        """
        joined = set(store_writer.joined_sources(self.folder))
        if not (self.folder / layout.DATASET_INFO).is_file():
            return False
        if not all(source.key in joined for source in self.sources):
            return False
        CellStore.open(self.folder)
        return True

    def write(self, shard: tuple[int, int] = (0, 1), skip_bad_files: bool = False) -> None:
        """Encodes the files of this shard (i of n) that the store does not hold yet, one by one.

        Raises:
          InputError: a file's counts cannot be used (unless `skip_bad_files`).
        """
        done = store_writer.finished_sources(self.folder)
        mine = [source for source in shard_of(self.sources, shard) if source.key not in done]
        if not mine:
            return
        try:
            self._write_each(mine, skip_bad_files)
        except InputError:
            # Other processes may be at work on their shards; alone, a failure leaves no trace.
            if shard == (0, 1):
                store_writer.drop_if_nothing_in_it(self.folder)
            raise

    def _write_each(self, sources: Sequence[SurveyedSource], skip_bad_files: bool) -> None:
        total = sum(source.n_cells for source in sources)
        with Progress(total, "tokenizing", "cells") as progress:
            for source in sources:
                with self._bad_file(source.path, skip_bad_files):
                    self._write_source(source, progress)
                if str(source.path) in self.bad_files:
                    reason = self.bad_files[str(source.path)]
                    store_writer.note_bad_source(self.folder, source.key, reason)

    def finish(
        self, configuration: Mapping[str, Any], skip_bad_files: bool = False
    ) -> dict[str, Any]:
        """Joins the files to a complete store and logs its contents.

        Args:
          configuration: of the run, for the provenance.
          skip_bad_files: whether to leave out files that could not be read.

        Returns:
          The numbers of cells stored and dropped, as in the provenance; see `summarise`.

        Raises:
          InputError: a file is not encoded yet, or no cell is left.
        """
        done = store_writer.finished_sources(self.folder)
        if skip_bad_files:
            bad = store_writer.bad_sources(self.folder)
            late = {str(each.path): bad[each.key] for each in self.sources if each.key in bad}
            self.bad_files.update(late)
        sources = [source for source in self.sources if str(source.path) not in self.bad_files]
        missing = [source.path for source in sources if source.key not in done]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(sources)} files are not tokenised yet, the first is "
                f"{missing[0]}; run the `shard` that holds it, then `finish` again"
            )
        keys = store_writer.store_order(self.folder, [source.key for source in sources])
        counts = summarise(self.folder, keys, self.bad_files)
        paths = [source.path for source in sources]
        provenance = describe_run("tokenize", configuration, paths, counts)
        store_writer.join_sources(self.folder, keys, self.vocabulary, provenance)
        for line in self._describe_store(counts, len(paths)):
            logger.info(line)
        return counts

    def _describe_store(self, counts: Mapping[str, Any], files: int) -> Iterator[str]:
        yield f"{self.folder}: {counts['cells']:,} of {counts['cells_in_files']:,} cells"
        if self.bad_files:
            yield f"  {len(self.bad_files)} of {files + len(self.bad_files)} files SKIPPED"
        yield from describe_left_out(counts["dropped"])
        yield from describe_labels(counts["by_label"])
        for name, cells in counts["cells_without_obs"].items():
            yield f"  without obs column {name}: {cells:,}"
        for source in counts["sources"]:
            for rule in source["rules_not_applied"]:
                yield f"  not applied to {source['path']}: {rule}"
        yield from self._describe_bad_files()

    def _describe_bad_files(self) -> Iterator[str]:
        return (
            f"  SKIPPED {path}: {reason.removeprefix(f'{path}: ')}"
            for path, reason in self.bad_files.items()
        )

    @contextlib.contextmanager
    def _bad_file(self, path: Path, skip: bool) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if not skip:
                raise
            self.bad_files[str(path)] = str(error)

    def _identity(self) -> dict[str, Any]:
        """Everything that two runs over one store must have in common."""
        options = dataclasses.asdict(self.options)
        if options["orthologs"] is not None:
            pairs = json.dumps(sorted(options["orthologs"].items()))
            options["orthologs"] = hashlib.sha256(pairs.encode()).hexdigest()[:_KEY_HASH]
        return {
            "vocabulary": self.vocabulary.hash,
            **options,
            **self.counts.identity(),
            "prefix_cell_ids": self.prefix_cell_ids,
            "obs": self.obs,
        }

    def _columns(self, source: CountSource, obs: Sequence[str] = ()) -> CellColumns:
        """The cell ids of a source as they are stored, and its obs columns."""
        prefix = f"{source.path.stem}|" if self.prefix_cell_ids else ""
        return CellColumns(source, obs, prefix, optional=self._optional)

    def _add_stored_ids(self, ids: RepeatedIds) -> None:
        """Adds those of the files that the store holds already and that were not surveyed."""
        surveyed = {source.key for source in self.sources}
        for key in store_writer.joined_sources(self.folder):
            if key not in surveyed:
                read = functools.partial(store_writer.stored_cell_ids, self.folder, key)
                ids.add(f"{self.folder} ({key})", read)

    def _survey(self, path: Path, ids: RepeatedIds) -> SurveyedSource:
        source = self._files.open(path)
        columns = self._columns(source, self._names)
        surveyed = SurveyedSource(
            path=path,
            key=source_key(path),
            n_cells=source.n_cells,
            obs_kinds=columns.kinds(),
            absent=columns.absent,
            match=match_genes(source, self.vocabulary, self.options),
        )
        ids.add(str(path), lambda: self._columns(self._files.open(path)).ids())
        return surveyed

    def _write_source(self, surveyed: SurveyedSource, progress: Progress) -> None:
        source = self._files.open(surveyed.path)
        surveyed.match.choice.apply(source)
        verdict = apply_quality_rules(source, self.options.quality, surveyed.match.tokens)
        kinds = store_writer.obs_kinds(self.folder)
        columns = self._columns(source, list(kinds))
        with store_writer.write_source(self.folder, surveyed.key, kinds) as writer:
            encoded = encode_source(source, self.vocabulary, self.options, surveyed.match, verdict)
            dropped = np.ones(source.n_cells, bool)
            for batch in encoded:
                writer.write(batch.encodings, *columns.of(batch.rows))
                dropped[batch.rows] = False
                progress.advance(batch.read, file=surveyed.path.name)
            writer.finish(
                {
                    "path": str(surveyed.path),
                    "fingerprint": fingerprint(surveyed.path),
                    "cells_in_file": source.n_cells,
                    "dropped": verdict.dropped,
                    DROPPED_LABELS: count_dropped(columns, kinds, dropped),
                    "obs_absent": list(columns.absent),
                    "rules_not_applied": list(verdict.skipped),
                    **surveyed.match.facts(),
                }
            )


def summarise(store: Path, keys: Sequence[str], bad_files: Mapping[str, str]) -> dict[str, Any]:
    """Counts a store's cells: in its files, kept, dropped by reason and label; per source too."""
    summaries = [store_writer.source_summary(store, key) for key in keys]
    dropped: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for each in summaries:
        dropped.update(each["dropped"])
        without.update(dict.fromkeys(each.get("obs_absent", ()), each["cells"]))
    dropped_labels = [each.get(DROPPED_LABELS, {}) for each in summaries]
    return {
        "cells_in_files": sum(each["cells_in_file"] for each in summaries),
        "cells": sum(each["cells"] for each in summaries),
        "dropped": dict(dropped),
        "by_label": count_by_label(store, keys, dropped_labels),
        "cells_without_obs": dict(without),
        "skipped_files": dict(bad_files),
        "sources": [
            {name: each[name] for name in each if name not in ("shards", DROPPED_LABELS)}
            for each in summaries
        ],
    }
