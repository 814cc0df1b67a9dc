"""A vocabulary from a corpus: which genes its cells express, and their non-zero medians."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from geneformer_jax.cells.counts.row_pieces import PIECE_VALUES
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.tokenization.gene_choice import (
    GeneChoice,
    choose_ensembl_ids,
    leave_out_other_species,
)
from geneformer_jax.cells.tokenization.gene_ids import (
    species_of,
    strip_version,
)
from geneformer_jax.cells.tokenization.medians import (
    BYTES_PER_VALUE,
    DEFAULT_BYTES_FOR_EXACT,
    RELATIVE_ERROR,
    MedianAccumulator,
)
from geneformer_jax.cells.tokenization.piece_index import IndexedSource, Piece, PieceIndex
from geneformer_jax.cells.tokenization.piece_quality import PieceQuality
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.cells.tokenization.tokenizer import CELLS_PER_BATCH
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import fingerprint, shown, state_of
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.tables import read_table
from geneformer_jax.common.threads import prefetch

# A corpus of so many times the values that are kept is not left with few of them by any rule.
_FAR_TOO_MANY = 4
_ID_COLUMNS = ("gene_id", "ensembl_id", "ensembl", "id")
_SYMBOL_COLUMNS = ("symbol", "gene_symbol", "gene_name", "name")
_BIOTYPE_COLUMNS = ("biotype", "gene_type", "gene_biotype")


class GeneTable:
    """Names and biotypes of genes, from a table with the columns gene_id, symbol and biotype."""

    def __init__(self, path: Path | str):
        """Reads a table; usual other names of the columns are known too.

        Raises:
          InputError: there is no such table, or it has no column of gene ids.
        """
        self._path = path
        table = read_table(path)
        lower = table.set_axis(table.columns.str.strip().str.lower(), axis=1)
        ids = _column(lower, _ID_COLUMNS)
        if ids is None:
            raise InputError(
                f'{path} has no column "gene_id" (it has {", ".join(table.columns[:8])}); name '
                "the column of gene ids so"
            )
        self._genes = pd.DataFrame({"gene_id": ids.map(strip_version)})
        self._genes["symbol"] = _column(lower, _SYMBOL_COLUMNS)
        self._genes["biotype"] = _column(lower, _BIOTYPE_COLUMNS)
        self._genes = self._genes.drop_duplicates("gene_id").set_index("gene_id")

    def genes(self, biotypes: Sequence[str]) -> set[str]:
        """Ids of the genes of these biotypes; of all genes if none is named.

        Raises:
          InputError: the table has no biotypes, or not this one.
        """
        if not biotypes:
            return set(self._genes.index)
        known = set(self._genes["biotype"].dropna())
        for biotype in biotypes:
            if biotype not in known:
                raise InputError(
                    f'{self._path} has no gene of biotype "{biotype}"'
                    f"{did_you_mean(biotype, known)}; check `biotypes` and its column biotype"
                )
        return set(self._genes.index[self._genes["biotype"].isin(biotypes)])

    def symbols(self) -> dict[str, str]:
        """Gene id -> symbol, where there is one."""
        symbols = self._genes["symbol"].dropna()
        return symbols[symbols != ""].to_dict()


def _column(table: pd.DataFrame, names: Sequence[str]) -> pd.Series | None:
    return next((table[name] for name in names if name in table.columns), None)


@dataclass
class CorpusGenes:
    """The genes of a corpus.

    Attributes:
      index: of the pieces of its files; see `survey_corpus`.
      gene_ids: [genes] str, ascending.
      symbols: gene id -> symbol, from the sources.
      medians: collector of the genes' medians.
      counts: what was read and left out.
    """

    index: PieceIndex
    gene_ids: np.ndarray
    symbols: dict[str, str]
    medians: MedianAccumulator
    counts: dict[str, object]

    @classmethod
    def of(cls, index: PieceIndex, bytes_for_exact: int) -> "CorpusGenes":
        """The genes of a surveyed corpus, of which no cell is measured yet.

        Args:
          index: see `survey_corpus`.
          bytes_for_exact: see `MedianAccumulator`.
        """
        gene_ids = np.array(index.facts["gene_ids"])
        medians = MedianAccumulator(len(gene_ids), bytes_for_exact)
        if index.values * BYTES_PER_VALUE > _FAR_TOO_MANY * bytes_for_exact:
            # Known from the start, so that no share keeps what all together cannot.
            medians.count_in_bins()
        return cls(index, gene_ids, index.facts["symbols"], medians, dict(index.facts["counts"]))

    def add_dropped(self, dropped: Mapping[str, int]) -> None:
        """Adds numbers of cells that were left out, by reason."""
        for reason, number in dropped.items():
            name = f"cells: {reason}"
            self.counts[name] = self.counts.get(name, 0) + number

    def describe(self) -> Iterator[str]:
        """Yields a line for each entry of `counts`, and the error bound of inexact medians."""
        for name, count in self.counts.items():
            shown = f"{count:,}" if isinstance(count, int) else count
            yield f"  {name.replace('_', ' ')}: {shown}"
        if not self.medians.exact:
            yield f"  the medians are within {RELATIVE_ERROR:.2%} of the exact ones"


def measure_corpus(
    paths: Sequence[Path],
    open_source: Callable[[Path], CountSource],
    wanted: set[str] | None,
    rules: QualityRules,
    bytes_for_exact: int = DEFAULT_BYTES_FOR_EXACT,
    species: str = "human",
    piece_values: int = PIECE_VALUES,
) -> CorpusGenes:
    """Collects the medians of all genes (or of the `wanted` ids) over the chosen cells of files.

    Args:
      paths: see `survey_corpus`, also for the other arguments.
      open_source: opens one.
      wanted: gene ids to keep; None for all.
      rules: which cells to leave out.
      bytes_for_exact: see `MedianAccumulator`.
      species: whose genes are kept.
      piece_values: of a piece.

    Raises:
      InputError: no gene is left, or a file's counts cannot be used.
    """
    index = survey_corpus(paths, open_source, wanted, species, piece_values)
    corpus = CorpusGenes.of(index, bytes_for_exact)
    with tempfile.TemporaryDirectory() as folder:
        work = CorpusPieces(index, open_source, species, PieceQuality(Path(folder), rules))
        work.measure_quality(index.pieces)
        corpus.add_dropped(work.add_to(corpus.medians, index.pieces))
    return corpus


def survey_corpus(
    paths: Sequence[Path],
    open_source: Callable[[Path], CountSource],
    wanted: set[str] | None,
    species: str = "human",
    piece_values: int = PIECE_VALUES,
) -> PieceIndex:
    """Finds the genes of all files, so that each process numbers them alike; reads no counts.

    Gene ids are taken from the column that is made of Ensembl ids, if a file has one.

    Args:
      paths: of the files.
      open_source: opens one.
      wanted: gene ids to keep; None for all.
      species: whose genes are kept where a file holds those of several.
      piece_values: of a file's matrix, about as many as are in a piece.

    Returns:
      The index of pieces. Its facts are `gene_ids` (ascending), their `symbols` and `counts` of
      what was left out; those of a file its `fingerprint`, `choice` of genes, and `description`.

    Raises:
      InputError: no gene is left, a file cannot be used, or only some files have Ensembl ids.
    """
    genes, symbols, sources, nameless = set(), {}, [], 0
    first_of_kind: dict[bool, Path] = {}
    for path in paths:
        source = open_source(path)
        has_ensembl_ids, choice = _choose_genes(source, species)
        first_of_kind.setdefault(has_ensembl_ids, path)
        if len(first_of_kind) > 1:
            raise InputError(
                f"{first_of_kind[True]} has Ensembl ids, but {first_of_kind[False]} has none: a "
                "vocabulary of both would hold genes twice; choose columns of one kind by "
                "`gene_column`, or leave files out"
            )
        ids = _gene_ids(source)
        genes.update(ids.tolist())
        nameless += int((ids == "").sum())
        _add_symbols(symbols, source, ids)
        sources.append(_indexed(path, source, choice, has_ensembl_ids, piece_values))
    keep, counts = _wanted_genes(genes - {""}, wanted)
    cells = sum(source.cells for source in sources)
    counts = {"cells_in_files": cells, "columns_without_gene_id": nameless, **counts}
    return PieceIndex(sources, {"gene_ids": keep, "symbols": symbols, "counts": counts})


def _indexed(
    path: Path, source: CountSource, choice: GeneChoice, has_ensembl_ids: bool, piece_values: int
) -> IndexedSource:
    kind = "Ensembl ids" if has_ensembl_ids else "symbols or other names: no Ensembl ids"
    facts = {
        "fingerprint": fingerprint(path),
        "choice": choice.facts(),
        "description": f"  {shown(path)}: {choice.describe()} ({kind})",
    }
    return IndexedSource(path, state_of(path), source.n_cells, source.cut(piece_values), facts)


def _wanted_genes(genes: set[str], wanted: set[str] | None) -> tuple[list[str], dict[str, int]]:
    """Returns the genes to keep, ascending, and how many there were and are left out."""
    everything = sorted(genes)
    keep = everything if wanted is None else [gene for gene in everything if gene in wanted]
    if not keep:
        raise InputError(
            f"none of {len(everything):,} gene ids ({', '.join(everything[:3])}, ...) is in the "
            "gene table; both must have the same kind of ids"
        )
    left_out = len(everything) - len(keep)
    return keep, {"genes_in_files": len(everything), "genes_not_in_table": left_out}


class CorpusPieces:
    """Measures pieces of a surveyed corpus."""

    def __init__(
        self,
        index: PieceIndex,
        open_source: Callable[[Path], CountSource],
        species: str,
        quality: PieceQuality,
    ):
        """Takes the index of pieces, and what decides which genes and cells are measured."""
        self._index, self._open_source, self._species = index, open_source, species
        self._quality = quality
        self._gene_ids = np.array(index.facts["gene_ids"])
        self._opened: tuple[Path | None, CountSource | None] = None, None

    def measure_quality(self, pieces: Sequence[Piece]) -> bool:
        """Measures those of the pieces whose cells are compared with all of their source.

        Returns:
          Whether all pieces can be judged now; other processes may have to measure theirs.

        Raises:
          InputError: a file's counts cannot be used.
        """
        todo = [piece for piece in pieces if self._quality.needs(self._names(piece.source))]
        todo = [piece for piece in todo if not self._quality.is_measured(self._name(piece))]
        with Progress(sum(piece.cells for piece in todo), "comparing", "cells") as progress:
            for piece in todo:
                part, genes = self._part(piece)
                self._quality.measure(self._name(piece), part, genes)
                progress.advance(piece.cells, file=part.path.name)
        sources = {piece.source for piece in pieces}
        return all(self._quality.are_known(self._names(source)) for source in sources)

    def add_to(self, medians: MedianAccumulator, pieces: Sequence[Piece]) -> Counter[str]:
        """Adds the chosen cells of pieces; returns how many are left out, by reason.

        Raises:
          InputError: a file's counts cannot be used.
        """
        dropped: Counter[str] = Counter()
        with Progress(sum(piece.cells for piece in pieces), "measuring", "cells") as progress:
            for piece in pieces:
                part, genes = self._part(piece)
                names = self._names(piece.source)
                verdict = self._quality.judge(self._name(piece), names, part, genes)
                for batch in prefetch(part.batches(CELLS_PER_BATCH)):
                    keep = verdict.keep[batch.start : batch.start + batch.counts.shape[0]]
                    counts = batch.counts if keep.all() else batch.counts[keep]
                    medians.add(counts, batch.totals[keep], genes)
                    progress.advance(len(keep), file=part.path.name)
                self._index.sources[piece.source].require_unchanged()
                dropped.update(verdict.dropped)
        return dropped

    def _part(self, piece: Piece) -> tuple[CountSource, np.ndarray]:
        """Returns the cells of a piece, and the number of each column's gene, -1 for others."""
        source = self._source(self._index.sources[piece.source])
        ids, genes = _gene_ids(source), self._gene_ids
        place = np.searchsorted(genes, ids).clip(max=len(genes) - 1)
        return source.part(piece.first, piece.stop), np.where(genes[place] == ids, place, -1)

    def _source(self, indexed: IndexedSource) -> CountSource:
        if self._opened[0] != indexed.path:
            indexed.require_unchanged()
            source = self._open_source(indexed.path)
            _choose_genes(source, self._species)
            self._opened = indexed.path, source
        return self._opened[1]

    def _name(self, piece: Piece) -> str:
        return f"{piece.source}-{piece.first}-{piece.stop}"

    def _names(self, source: int) -> list[str]:
        return [self._name(piece) for piece in self._index.pieces_of(source)]


def _choose_genes(source: CountSource, species: str) -> tuple[bool, GeneChoice]:
    """Returns whether the source has Ensembl ids, and what was chosen."""
    has_ensembl_ids = choose_ensembl_ids(source)
    remedy = f"`species` is {species}; give the species of these genes"
    ids = pa.array(_gene_ids(source))
    return has_ensembl_ids, leave_out_other_species(source, ids, species, remedy)


def _gene_ids(source: CountSource) -> np.ndarray:
    return np.array([strip_version(str(each)) for each in source.gene_ids])


def _add_symbols(symbols: dict[str, str], source: CountSource, ids: np.ndarray) -> None:
    if source.symbols is None:
        return
    for gene, symbol in zip(ids.tolist(), source.symbols.tolist(), strict=True):
        if symbol:
            symbols.setdefault(gene, str(symbol))


def build_vocabulary(
    corpus: CorpusGenes,
    *,
    symbols: dict[str, str],
    special_tokens: tuple[str, ...],
    species: str,
    min_cells: int = 1,
) -> GeneVocabulary:
    """Makes a vocabulary of the genes that at least `min_cells` cells express.

    Args:
      corpus: see `measure_corpus`; `counts` gets what was left out.
      symbols: gene id -> symbol; where a gene is missing, the corpus's own symbol is taken.
      special_tokens: `V1_SPECIAL_TOKENS` or `V2_SPECIAL_TOKENS`.
      species: of the gene ids.
      min_cells: minimal number of cells that express a gene, at least 1.

    Raises:
      InputError: no gene is left.
    """
    detected = corpus.medians.detected
    enough = detected >= max(1, min_cells)
    corpus.counts["genes_not_detected"] = int((detected == 0).sum())
    corpus.counts["genes_in_too_few_cells"] = int((~enough & (detected > 0)).sum())
    corpus.counts["genes"] = int(enough.sum())
    corpus.counts["medians"] = "exact" if corpus.medians.exact else "sketch"
    if not enough.any():
        raise InputError(
            f"none of {len(detected):,} genes is expressed in {max(1, min_cells):,} cells or more; "
            "lower `min_cells`"
        )
    names = {**corpus.symbols, **symbols}
    gene_ids = corpus.gene_ids[enough]
    found = species_of(pa.array(gene_ids))
    if found not in (None, species):
        raise InputError(
            f'the species is given as "{species}", but the gene ids ({gene_ids[0]}, ...) are of '
            f'{found}; give `species`="{found}"'
        )
    return GeneVocabulary(
        gene_ids=gene_ids,
        symbols=np.array([names.get(gene, "") for gene in gene_ids.tolist()]),
        medians=corpus.medians.medians()[enough],
        special_tokens=special_tokens,
        species=species,
    )
