"""From a source of raw counts to rank value encodings, a batch of cells at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack

import numpy as np
import pandas as pd
import pyarrow as pa

from geneformer_jax.cells.counts.options import CountArguments, CountOptions
from geneformer_jax.cells.counts.source import CountBatch, CountSource
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.tokenization.gene_choice import (
    GeneChoice,
    choose_known_ids,
    leave_out_other_species,
)
from geneformer_jax.cells.tokenization.gene_ids import (
    hold_ensembl_ids,
    species_of,
    strip_version,
)
from geneformer_jax.cells.tokenization.indices import require_indices
from geneformer_jax.cells.tokenization.quality_control import QualityRules, Verdict, judge, measure
from geneformer_jax.cells.tokenization.rank_encoding import (
    RankEncodings,
    describe_lengths,
    encode_counts,
    gene_columns,
    join_encodings,
)
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.arguments import require_type, require_whole
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.threads import prefetch

if TYPE_CHECKING:
    import anndata

V1_MAX_LENGTH, V2_MAX_LENGTH = 2048, 4096
NO_RULES = QualityRules(total_sd=None, mitochondrial_sd=None, min_genes=None)
NO_GENE = "no gene of the vocabulary"
CELLS_PER_BATCH = 4096
_EXAMPLES = 3
_GENES_FOR_SPECIES = 100


@dataclass(frozen=True)
class TokenizerOptions:
    """How cells of a source are chosen and encoded.

    Attributes:
      max_length: maximal number of tokens of a cell, special tokens included.
      orthologs: source gene id -> gene id of the vocabulary's species, "" for a gene that has
        several and is left out; None if not needed.
      quality: rules that decide which cells are kept; by default all are.
    """

    max_length: int
    orthologs: Mapping[str, str] | None = None
    quality: QualityRules = NO_RULES


def default_max_length(vocabulary: GeneVocabulary) -> int:
    """The original's context: 2,048 tokens for a V1 vocabulary, 4,096 for V2."""
    return V1_MAX_LENGTH if vocabulary.cls_id is None else V2_MAX_LENGTH


def check_max_length(max_length: int, vocabulary: GeneVocabulary) -> None:
    """Raises InputError if no gene would fit into a cell of `max_length` tokens."""
    if max_length <= vocabulary.special_per_cell:
        raise InputError(
            f"a maximum length of {max_length} leaves no room for a gene beside "
            f"{vocabulary.special_per_cell} special tokens; give a larger one"
        )


class GeneMatch(NamedTuple):
    """Which columns of a source are genes of a vocabulary.

    Attributes:
      tokens: int32 [columns], -1 where the vocabulary has no such gene.
      matched: number of columns with a gene.
      named: number of columns with an id at all.
      genes: number of distinct genes; fewer than `matched` where counts are summed.
      ambiguous: number of columns left out because their gene has several orthologs.
      choice: where counts and gene ids are from.
    """

    tokens: np.ndarray
    matched: int
    named: int
    genes: int
    ambiguous: int
    choice: GeneChoice

    def describe(self) -> str:
        """How many genes are known, and what was chosen, for a line of the log."""
        return (
            f"{self.matched:,} of {self.named:,} gene ids are in the vocabulary"
            + (f" ({self.genes:,} genes)" if self.genes < self.matched else "")
            + (f"; {self.ambiguous:,} have several orthologs" if self.ambiguous else "")
            + f"; {self.choice.describe()}"
        )

    def facts(self) -> dict[str, object]:
        """The same for a provenance."""
        return {
            **self.choice.facts(),
            "gene_ids": self.named,
            "matched_gene_ids": self.matched,
            "distinct_genes": self.genes,
            "gene_ids_with_several_orthologs": self.ambiguous,
        }


def match_genes(
    source: CountSource, vocabulary: GeneVocabulary, options: TokenizerOptions
) -> GeneMatch:
    """Chooses the source's column of gene ids, and finds the token of each column of its matrix.

    Raises:
      InputError: no gene id is known, or the source's genes are of another species.
    """

    def find_tokens(ids: pa.StringArray) -> np.ndarray:
        own = ids if options.orthologs is None else _orthologs_of(ids, options.orthologs)
        return vocabulary.tokens_of(own, symbols=source.options.symbols)

    ids, tokens = choose_known_ids(source, find_tokens)
    choice = GeneChoice.of(source)
    if options.orthologs is None:
        ours = species_of(pa.array(vocabulary.gene_ids[:_GENES_FOR_SPECIES]))
        remedy = (
            f"the vocabulary is of {vocabulary.species} ({vocabulary.gene_ids[0]}, ...); tokenize "
            "with a table of `orthologs`, or use a vocabulary of that species"
        )
        choice = leave_out_other_species(source, ids, ours or vocabulary.species, remedy)
    if choice.kept is not None:
        tokens = tokens[choice.kept]
    known = tokens >= 0
    match = GeneMatch(
        tokens=tokens,
        matched=int(known.sum()),
        named=int(np.count_nonzero(source.gene_ids != "")),
        genes=int(np.count_nonzero(np.bincount(tokens[known]))),
        ambiguous=_count_ambiguous(ids, options.orthologs or {}),
        choice=choice,
    )
    if match.matched == 0:
        raise _no_known_gene(source, vocabulary, ids)
    return match


def _orthologs_of(ids: pa.StringArray, orthologs: Mapping[str, str]) -> pa.StringArray:
    """[ids] str, "" for a gene that has several orthologs, or none."""
    return pa.array([orthologs.get(key, "") for key in _ortholog_keys(ids)], pa.string())


def _count_ambiguous(ids: pa.StringArray, orthologs: Mapping[str, str]) -> int:
    return sum(orthologs.get(key) == "" for key in _ortholog_keys(ids)) if orthologs else 0


def _ortholog_keys(ids: pa.StringArray) -> list[str]:
    return [strip_version(each).upper() for each in ids.to_pylist()]


def _no_known_gene(
    source: CountSource, vocabulary: GeneVocabulary, ids: pa.StringArray
) -> InputError:
    theirs = ", ".join(str(each) for each in source.gene_ids[:_EXAMPLES])
    ours = ", ".join(vocabulary.gene_ids[:_EXAMPLES])
    columns = ", ".join(source.candidate_gene_columns())
    return InputError(
        f"{source.path}: 0 of {np.count_nonzero(source.gene_ids != ''):,} gene ids are in the "
        f"vocabulary of {len(vocabulary.gene_ids):,} genes (looked for in {columns}); the file has "
        f"ids such as {theirs}, the vocabulary such as {ours}; {_remedy_of_ids(vocabulary, ids)}"
    )


def _remedy_of_ids(vocabulary: GeneVocabulary, ids: pa.StringArray) -> str:
    """What helps where no gene id is known."""
    by_name = int((vocabulary.tokens_of(ids, symbols="names") >= 0).sum())
    if by_name:
        return f"{by_name:,} are gene names: use `symbols`=names, or name a column of gene ids"
    if hold_ensembl_ids(ids):
        return (
            "each has an Ensembl id with more around it: keep that alone, as by "
            'adata.var_names = adata.var_names.str.extract("(ENS[A-Z]*G[0-9]+)", expand=False)'
        )
    return "name the column of gene ids by `gene_column`, or use a vocabulary with such ids"


def apply_quality_rules(source: CountSource, rules: QualityRules, tokens: np.ndarray) -> Verdict:
    """Applies the rules of quality control, reading the counts once if a rule needs them.

    Args:
      source: of raw counts.
      rules: to apply.
      tokens: int [columns], each column's gene, -1 where it is none.

    Raises:
      InputError: the source has not the columns that the rules name, or no raw counts.
    """
    measures = measure(source, tokens) if rules.need_counts else None
    return judge(rules, source.table(rules.obs_columns), measures)


class EncodedBatch(NamedTuple):
    """Some encoded cells.

    Attributes:
      encodings: their tokens; no cell is empty.
      rows: int64 [cells], their rows in the source, ascending.
      read: number of cells of the source in this batch, the dropped ones included.
    """

    encodings: RankEncodings
    rows: np.ndarray
    read: int


def read_ahead(source: CountSource) -> Iterator[CountBatch]:
    """Begins to read the counts of a source, and returns its batches for `encode_source`."""
    return prefetch(source.batches(CELLS_PER_BATCH))


def encode_source(
    batches: Iterator[CountBatch],
    vocabulary: GeneVocabulary,
    options: TokenizerOptions,
    match: GeneMatch,
    verdict: Verdict,
) -> Iterator[EncodedBatch]:
    """Yields a source's chosen cells in order; counts in `verdict.dropped` what has no gene."""
    columns = gene_columns(match.tokens, vocabulary, options.max_length)
    verdict.dropped.setdefault(NO_GENE, 0)
    for batch in batches:
        cells = batch.counts.shape[0]
        keep = verdict.keep[batch.start : batch.start + cells]
        rows = batch.start + np.flatnonzero(keep)
        counts = batch.counts if keep.all() else batch.counts[keep]
        encodings = encode_counts(counts, batch.totals[keep], columns)
        filled = encodings.lengths > 0
        verdict.dropped[NO_GENE] += int((~filled).sum())
        yield EncodedBatch(encodings.without_empty(), rows[filled], cells)


@dataclass(frozen=True, eq=False)
class TokenizedCells:
    """Encoded cells in memory; reads like a CellStore.

    Attributes:
      encodings: tokens of the kept cells, in input order.
      rows: int64 [kept], their rows in the input.
      obs: their per-cell columns, indexed by cell id.
      vocabulary: of the tokens.
      max_length: maximal number of tokens of a cell.
      dropped: reason -> number of cells left out.
      match: which columns are genes; None for cells that were tokenised elsewhere.
      all_obs: per-cell columns of all cells of the input; None where all are kept.
    """

    encodings: RankEncodings
    rows: np.ndarray
    obs: pd.DataFrame
    vocabulary: GeneVocabulary
    max_length: int
    dropped: Mapping[str, int]
    match: GeneMatch | None = None
    all_obs: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return f"TokenizedCells({describe_lengths(self.lengths)})"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell; int32 [cells]."""
        return self.encodings.lengths

    @property
    def cell_ids(self) -> np.ndarray:
        """Ids of the cells; [cells] str."""
        return self.obs.index.to_numpy()

    @property
    def is_cut(self) -> np.ndarray:
        """Whether each cell is known to have more genes than `max_length` takes; bool [cells]."""
        if self.encodings.genes is None:
            return np.zeros(len(self), bool)
        return self.encodings.genes > self.max_length - self.vocabulary.special_per_cell

    def read(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Returns the tokens (uint16 arrays) of cells, in the order of `indices`.

        Raises:
          InputError: there is no such cell.
        """
        indices = require_indices("indices", indices, len(self))
        tokens, offsets = self.encodings.tokens, self.encodings.offsets
        return [tokens[offsets[i] : offsets[i + 1]] for i in indices]


def tokenize_source(
    source: CountSource, vocabulary: GeneVocabulary, options: TokenizerOptions
) -> TokenizedCells:
    """Encodes all cells of a source in memory.

    Raises:
      InputError: the counts are not raw counts, no gene id is known, or no cell is left.
    """
    check_max_length(options.max_length, vocabulary)
    match = match_genes(source, vocabulary, options)
    logger.info("%s: %s", source.path, match.describe())
    verdict = apply_quality_rules(source, options.quality, match.tokens)
    encoded = encode_source(read_ahead(source), vocabulary, options, match, verdict)
    batches = list(encoded)
    rows = np.concatenate([batch.rows for batch in batches])
    if not len(rows):
        raise InputError(
            f"{source.path}: none of {source.n_cells:,} cells is left ({verdict.dropped}); check "
            "the filters and the gene ids"
        )
    obs = source.obs()
    return TokenizedCells(
        encodings=join_encodings([batch.encodings for batch in batches]),
        rows=rows,
        obs=obs.iloc[rows],
        vocabulary=vocabulary,
        max_length=options.max_length,
        dropped=dict(verdict.dropped),
        match=match,
        all_obs=None if len(rows) == len(obs) else obs,
    )


def tokenize_cells(
    adata: anndata.AnnData | Path | str,
    vocabulary: GeneVocabulary,
    *,
    max_length: int | None = None,
    **reading: Unpack[CountArguments],
) -> TokenizedCells:
    """Encodes the cells of an AnnData object, or of a file or folder of raw counts, in memory.

    Args:
      adata: raw counts in `X`, or in a layer or raw; totals from `obs["n_counts"]` where present.
        Or the path of any file or folder that `open_counts` reads.
      vocabulary: genes and medians.
      max_length: of a cell, in tokens; the original's 2,048 (V1) or 4,096 (V2) if None.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Returns:
      The encoded cells in input order, with their `rows` in the input; `dropped` counts the rest.

    Raises:
      InputError: the counts cannot be read or are not raw counts, or no gene id is known.
    """
    require_type(
        "vocabulary", vocabulary, GeneVocabulary, "give a GeneVocabulary, such as "
        "model.vocabulary, or GeneVocabulary.load(folder)",
    )  # fmt: skip
    if max_length is not None:
        require_whole("max_length", max_length)
    source = _source_of(adata, CountOptions.from_arguments(reading))
    if max_length is None:
        max_length = default_max_length(vocabulary)
    return tokenize_source(source, vocabulary, TokenizerOptions(max_length))


def _source_of(adata: anndata.AnnData | Path | str, options: CountOptions) -> CountSource:
    if isinstance(adata, str | Path):
        return open_counts(adata, options)
    # Files are read without it, and it takes half a second to import.
    import anndata

    require_type(
        "adata", adata, anndata.AnnData, "give an AnnData of raw counts (cells x genes), such as "
        "anndata.read_h5ad gives, or the path of a file of counts",
    )  # fmt: skip
    return AnnDataSource(adata, options)
