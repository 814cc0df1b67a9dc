"""A vocabulary in the making: what each of several processes has measured of a corpus."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.row_pieces import PIECE_VALUES
from geneformer_jax.cells.formats.open import CountFiles
from geneformer_jax.cells.tokenization.medians import DEFAULT_BYTES_FOR_EXACT
from geneformer_jax.cells.tokenization.piece_index import PieceIndex, keep_index
from geneformer_jax.cells.tokenization.piece_quality import PieceQuality
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.cells.tokenization.vocabulary_building import (
    CorpusGenes,
    CorpusPieces,
    GeneTable,
    build_vocabulary,
    survey_corpus,
)
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import (
    atomic_write,
    count_files,
    fingerprint,
    remove,
    require_new_folder,
)
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import FILE_NAME, describe_run, read_provenance
from geneformer_jax.common.shares import WHOLE
from geneformer_jax.common.workdir import as_json, lock_folder

_KEY, _DROPPED, _LOCK = "key", "dropped", "lock"


@dataclass(frozen=True)
class VocabularyRecipe:
    """What determines a vocabulary beside its files.

    Attributes:
      reading: which matrix and gene ids of the files.
      rules: which cells to leave out.
      species: of the gene ids.
      special_tokens: in front of the genes.
      min_cells: that must express a gene.
      table: path of a table of genes; None for none.
      biotypes: of the genes of the table to keep; none for all.
      piece_values: of a file's matrix, about as many as are in a piece.
      bytes_for_exact: see `MedianAccumulator`.
    """

    reading: CountOptions
    rules: QualityRules
    species: str
    special_tokens: tuple[str, ...]
    min_cells: int = 1
    table: str | None = None
    biotypes: Sequence[str] = ()
    piece_values: int = PIECE_VALUES
    bytes_for_exact: int = DEFAULT_BYTES_FOR_EXACT


class VocabularyRun:
    """A `SharedRun` that measures a corpus and writes its vocabulary.

    Until that is complete, what processes have measured lies beside it, in OUTPUT.shards.
    """

    def __init__(
        self,
        output: Path,
        paths: Sequence[Path],
        recipe: VocabularyRecipe,
        configuration: Mapping[str, Any],
        write_report: Callable[[Path], Path],
    ):
        """Takes what to make.

        Args:
          output: folder of the new vocabulary.
          paths: files of counts.
          recipe: what else decides it.
          configuration: the command, for the provenance.
          write_report: called with the folder once it is whole; returns the path of the report.

        Raises:
          InputError: the table of genes cannot be read, or lacks a biotype.
        """
        self._output, self._paths, self._recipe = output, list(paths), recipe
        self._configuration, self._write_report = configuration, write_report
        self._shards = output.with_name(f"{output.name}.shards")
        self._table = GeneTable(recipe.table) if recipe.table else None
        self._wanted = self._table.genes(recipe.biotypes) if self._table else None
        self._files = CountFiles(recipe.reading)
        self._index = PieceIndex([], {})
        self._key = ""
        # Of a process that measures all by itself.
        self._measured: CorpusGenes | None = None

    def is_complete(self) -> bool:
        """Whether the vocabulary is there, made of the same files with the same options.

        Raises:
          InputError: something else is there.
        """
        if (self._output / FILE_NAME).is_file():
            written = read_provenance(self._output)
            made = {name: written.get(name) for name in ("configuration", "inputs")}
            inputs = [fingerprint(path) for path in self._inputs]
            if made == as_json({"configuration": self._configuration, "inputs": inputs}):
                self._tidy()
                return True
        require_new_folder(self._output)
        return False

    def _tidy(self) -> None:
        """Does what a process left undone that was killed as soon as the vocabulary was whole."""
        # Who is at work there does it.
        with contextlib.suppress(InputError):
            if self._shards.is_dir():
                with self._at_work(WHOLE):
                    self._write_report(self._output)
                    remove(self._shards)

    @property
    def _inputs(self) -> list[Path | str]:
        return [*self._paths, *([self._recipe.table] if self._recipe.table else [])]

    def prepare(self) -> None:
        """Finds the genes of all files, or takes what another process found.

        Raises:
          InputError: see `survey_corpus`.
        """
        recipe, output = self._recipe, self._output
        logger.info("medians of genes over the cells of %s -> %s", count_files(self._paths), output)
        decides = {**dataclasses.asdict(recipe), "wanted": sorted(self._wanted or ())}
        lock = self._shards.with_name(f"{self._shards.name}.survey.lock")
        kept = keep_index(self._shards, lock, self._paths, decides, self._survey)
        self._index = kept.index
        if not kept.is_new:
            self._files = CountFiles(recipe.reading.of_sound_files())
        self._key = _work_key(kept.index, recipe)
        quality = PieceQuality(self._shards / f"measured-{self._key}", recipe.rules)
        self._pieces = CorpusPieces(kept.index, self._files.open, recipe.species, quality)
        for source in kept.index.sources:
            logger.info(source.facts["description"])

    def _survey(self) -> PieceIndex:
        recipe = self._recipe
        open_source, values = self._files.open, recipe.piece_values
        return survey_corpus(self._paths, open_source, self._wanted, recipe.species, values)

    def make(self, shard: tuple[int, int]) -> bool:
        """Measures a share of the pieces.

        Returns:
          False if some wait for pieces of other shares, as rules compare their cells with all.

        Raises:
          InputError: counts cannot be used; another process is at work on this share; there are
            more shares than cells.
        """
        pieces = self._index.share(shard)
        if shard != WHOLE:
            logger.info(self._index.describe_share(shard))
        if (shard == WHOLE and self._measured) or self._is_saved(shard):
            return True
        with self._at_work(shard):
            try:
                if not self._pieces.measure_quality(pieces):
                    return False
                corpus = CorpusGenes.of(self._index, self._recipe.bytes_for_exact)
                dropped = self._pieces.add_to(corpus.medians, pieces)
            except InputError:
                # Other processes may be at work; alone, a failure leaves no trace.
                if shard == WHOLE:
                    remove(self._shards)
                raise
            if shard == WHOLE:
                corpus.add_dropped(dropped)
                self._measured = corpus
            else:
                self._save(shard, corpus, dropped)
        return True

    def finish(self) -> None:
        """Joins what was measured, and writes the vocabulary.

        Raises:
          InputError: a share is missing, or was measured on other files or with other options; no
            gene is left.
        """
        recipe = self._recipe
        with self._at_work(WHOLE):
            corpus = self._measured or self._joined()
            vocabulary = build_vocabulary(
                corpus,
                symbols=self._table.symbols() if self._table else {},
                special_tokens=recipe.special_tokens,
                species=recipe.species,
                min_cells=recipe.min_cells,
            )
            vocabulary.save(self._output, self._provenance(corpus))
            report = self._write_report(self._output)
            remove(self._shards)
        for line in corpus.describe():
            logger.info(line)
        logger.info("%s: vocabulary %s; report: %s", self._output, vocabulary.hash[:12], report)

    def _provenance(self, corpus: CorpusGenes) -> dict[str, Any]:
        sources = self._index.sources
        chosen = [{"path": str(each.path), **each.facts["choice"]} for each in sources]
        counts = {**corpus.counts, "sources": chosen}
        return describe_run("build_vocabulary", self._configuration, self._inputs, counts)

    @contextlib.contextmanager
    def _at_work(self, shard: tuple[int, int]) -> Iterator[None]:
        lock = lock_folder(self._shards / _LOCK, shard)
        try:
            yield
        finally:
            os.close(lock)

    # The files of shares

    def _path(self, index: int, count: int) -> Path:
        return self._shards / f"{index}-of-{count}.npz"

    def _is_saved(self, shard: tuple[int, int]) -> bool:
        """Whether a share is measured, on these files and with these options."""
        path = self._path(*shard)
        if not path.is_file():
            return False
        with np.load(path, allow_pickle=False) as arrays:
            return json.loads(str(arrays["summary"]))[_KEY] == self._key

    def _save(
        self, shard: tuple[int, int], corpus: CorpusGenes, dropped: Mapping[str, int]
    ) -> None:
        content = io.BytesIO()
        summary = np.array(json.dumps({_KEY: self._key, _DROPPED: dropped}))
        np.savez(content, summary=summary, **corpus.medians.to_arrays())
        with atomic_write(self._path(*shard)) as aside:
            # numpy does not report a full disk when it writes the file itself.
            aside.write_bytes(content.getbuffer())

    def _joined(self) -> CorpusGenes:
        """The corpus with what all shares have measured."""
        corpus, count = (
            CorpusGenes.of(self._index, self._recipe.bytes_for_exact),
            self._count_shares(),
        )
        for index in range(count):
            path = self._path(index, count)
            with np.load(path, allow_pickle=False) as arrays:
                summary = json.loads(str(arrays["summary"]))
                if summary[_KEY] != self._key:
                    raise InputError(
                        f"{path} was measured on other files or with other options; run "
                        f"`shard`={index}/{count} again"
                    )
                corpus.medians.merge_arrays(arrays)
            corpus.add_dropped(summary[_DROPPED])
        return corpus

    def _count_shares(self) -> int:
        """Returns the number of shares, which is part of each one's file name; all are there."""
        folder = self._shards
        counts = {int(path.stem.rpartition("-")[2]) for path in folder.glob("*-of-*.npz")}
        if not counts:
            raise InputError(f"{folder} holds no shard; run the same command with `shard` first")
        if len(counts) > 1:
            listed = " and of ".join(map(str, sorted(counts)))
            raise InputError(f"{folder} holds shards of {listed}; remove those that are not wanted")
        (count,) = counts
        missing = [index for index in range(count) if not self._path(index, count).is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {count} shards are not measured yet; run "
                f"`shard`={missing[0]}/{count}, then `finish` again"
            )
        return count


def _work_key(index: PieceIndex, recipe: VocabularyRecipe) -> str:
    """A hash of all that the shares of one corpus must have in common."""
    files = [
        [source.facts["fingerprint"], source.pieces.bounds.tolist()] for source in index.sources
    ]
    rules, reading = dataclasses.asdict(recipe.rules), recipe.reading.identity()
    parts = [index.facts["gene_ids"], files, rules, reading]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
