"""A vocabulary from a corpus: which genes its cells express, and their non-zero medians."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

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
    DEFAULT_BYTES_FOR_EXACT,
    RELATIVE_ERROR,
    MedianAccumulator,
)
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.cells.tokenization.tokenizer import CELLS_PER_BATCH, apply_quality_rules
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.tables import read_table
from geneformer_jax.common.threads import prefetch

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
      gene_ids: [genes] str, ascending.
      symbols: gene id -> symbol, from the sources.
      medians: collector of the genes' medians.
      cells: number of cells of each file.
      choices: what was chosen for each file.
      counts: what was read and left out.
    """

    gene_ids: np.ndarray
    symbols: dict[str, str]
    medians: MedianAccumulator
    cells: dict[Path, int]
    choices: dict[Path, GeneChoice]
    counts: dict[str, object] = field(default_factory=dict)

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
) -> CorpusGenes:
    """Collects the medians of all genes (or of the `wanted` ids) over the chosen cells of files.

    Args: as of `survey_corpus` and `measure_files`.

    Raises:
      InputError: no gene is left, or a file's counts cannot be used.
    """
    corpus = survey_corpus(paths, open_source, wanted, bytes_for_exact, species)
    corpus.add_dropped(measure_files(corpus, paths, open_source, rules))
    return corpus


def survey_corpus(
    paths: Sequence[Path],
    open_source: Callable[[Path], CountSource],
    wanted: set[str] | None,
    bytes_for_exact: int = DEFAULT_BYTES_FOR_EXACT,
    species: str = "human",
) -> CorpusGenes:
    """Finds the genes of all files, so that each process numbers them alike; reads no counts.

    Gene ids are taken from the column that is made of Ensembl ids, if a file has one.

    Args:
      paths: of the files.
      open_source: opens one.
      wanted: gene ids to keep; None for all.
      bytes_for_exact: see `MedianAccumulator`.
      species: whose genes are kept where a file holds those of several.

    Raises:
      InputError: no gene is left, a file cannot be used, or only some files have Ensembl ids.
    """
    genes, symbols, cells, choices, nameless = set(), {}, {}, {}, 0
    first_of_kind: dict[bool, Path] = {}
    for path in paths:
        source = open_source(path)
        has_ensembl_ids, choices[path] = _choose_genes(source, species)
        first_of_kind.setdefault(has_ensembl_ids, path)
        if len(first_of_kind) > 1:
            raise InputError(
                f"{first_of_kind[True]} has Ensembl ids, but {first_of_kind[False]} has none: a "
                "vocabulary of both would hold genes twice; choose columns of one kind by "
                "`gene_column`, or leave files out"
            )
        ids = _gene_ids(source)
        genes.update(ids.tolist())
        cells[path] = source.n_cells
        nameless += int((ids == "").sum())
        _add_symbols(symbols, source, ids)
    everything = np.array(sorted(genes - {""}))
    keep = everything if wanted is None else everything[np.isin(everything, list(wanted))]
    if not len(keep):
        raise InputError(
            f"none of {len(everything):,} gene ids ({', '.join(everything[:3])}, ...) is in the "
            "gene table; both must have the same kind of ids"
        )
    counts = {
        "cells_in_files": sum(cells.values()),
        "columns_without_gene_id": nameless,
        "genes_in_files": len(everything),
        "genes_not_in_table": len(everything) - len(keep),
    }
    medians = MedianAccumulator(len(keep), bytes_for_exact)
    return CorpusGenes(keep, symbols, medians, cells, choices, counts)


def measure_files(
    corpus: CorpusGenes,
    paths: Sequence[Path],
    open_source: Callable[[Path], CountSource],
    rules: QualityRules,
) -> Counter[str]:
    """Adds the chosen cells of some of the surveyed files to the corpus's medians.

    Args:
      corpus: from `survey_corpus`.
      paths: of these files.
      open_source: opens one.
      rules: which cells to leave out.

    Returns:
      Reason -> number of cells left out.

    Raises:
      InputError: a file's counts cannot be used.
    """
    dropped: Counter[str] = Counter()
    cells = sum(corpus.cells[path] for path in paths)
    with Progress(cells, "measuring", "cells") as progress:
        for path in paths:
            source = open_source(path)
            corpus.choices[path].apply(source)
            dropped.update(_measure(source, corpus, rules, progress))
    return dropped


def _choose_genes(source: CountSource, species: str) -> tuple[bool, GeneChoice]:
    """Returns whether the source has Ensembl ids, and what was chosen; logs it."""
    has_ensembl_ids = choose_ensembl_ids(source)
    remedy = f"`species` is {species}; give the species of these genes"
    choice = leave_out_other_species(source, pa.array(_gene_ids(source)), species, remedy)
    kind = "Ensembl ids" if has_ensembl_ids else "symbols or other names: no Ensembl ids"
    logger.info("  %s: %s (%s)", source.path, choice.describe(), kind)
    return has_ensembl_ids, choice


def _gene_ids(source: CountSource) -> np.ndarray:
    return np.array([strip_version(str(each)) for each in source.gene_ids])


def _measure(
    source: CountSource,
    corpus: CorpusGenes,
    rules: QualityRules,
    progress: Progress,
) -> dict[str, int]:
    ids, genes = _gene_ids(source), corpus.gene_ids
    place = np.searchsorted(genes, ids).clip(max=len(genes) - 1)
    numbers = np.where(genes[place] == ids, place, -1)
    verdict = apply_quality_rules(source, rules, numbers)
    for batch in prefetch(source.batches(CELLS_PER_BATCH)):
        keep = verdict.keep[batch.start : batch.start + batch.counts.shape[0]]
        counts = batch.counts if keep.all() else batch.counts[keep]
        corpus.medians.add(counts, batch.totals[keep], numbers)
        progress.advance(len(keep), file=source.path.name)
    return verdict.dropped


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
