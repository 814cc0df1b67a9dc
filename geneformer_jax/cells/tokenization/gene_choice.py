"""Which column of a source holds the gene ids, and which of its genes are of another species."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.tokenization.gene_ids import (
    are_ensembl_ids,
    is_named_species,
    species_of_each,
)
from geneformer_jax.common.errors import InputError

# Ids are preferred over symbols unless symbols name clearly more genes.
_PREFERENCE_FOR_IDS = 1.25
# A column of which nearly all are Ensembl ids, this fraction of them known, need not be compared
# with others: of the 60,000 genes of an annotation a vocabulary has a third.
_NEARLY_ALL, _ENOUGH = 0.95, 0.2
_MOST = 0.5
# Some pipelines add the genes of a virus or a transgene. They stay in a cell's total, as in the
# original; more genes than these are another species.
_MAX_STRAY_FRACTION, _MAX_STRAYS = 0.05, 200


@dataclass(frozen=True, eq=False)
class GeneChoice:
    """What was chosen for a source, so that it can be opened again without looking for it.

    Attributes:
      matrix: name of the matrix with the raw counts.
      column: of the gene ids; "index" for the index of the table of genes.
      kept: bool [genes], those that are not of another species; None for all.
      origin: what else a provenance says of the source.
      remark: the same for a line of the log.
    """

    matrix: str
    column: str
    kept: np.ndarray | None = None
    origin: Mapping[str, object] = field(default_factory=dict)
    remark: str = ""

    @classmethod
    def of(cls, source: CountSource, kept: np.ndarray | None = None) -> "GeneChoice":
        """What a source takes now, and which of its genes are kept."""
        return cls(source.matrix_name, source.gene_column, kept, source.origin, source.remark)

    @property
    def foreign(self) -> int:
        """Number of genes left out, as they are of another species."""
        return 0 if self.kept is None else int(np.count_nonzero(~self.kept))

    def apply(self, source: CountSource) -> None:
        """Makes the source, opened again, take what was chosen."""
        if self.kept is not None or source.gene_column != self.column:
            source.use_gene_column(self.column, self.kept)

    def describe(self) -> str:
        """What was chosen, for a line of the log."""
        others = f"; {self.foreign:,} genes of other species are left out" if self.foreign else ""
        remark = f"; {self.remark}" if self.remark else ""
        return f"counts in {self.matrix}, gene ids in {self.column}{others}{remark}"

    def facts(self) -> dict[str, object]:
        """What was chosen, for a provenance."""
        return {
            "counts_matrix": self.matrix,
            "gene_column": self.column,
            "genes_of_other_species": self.foreign,
            **self.origin,
            **({"remark": self.remark} if self.remark else {}),
        }


def choose_known_ids(
    source: CountSource, find_tokens: Callable[[pa.StringArray], np.ndarray]
) -> tuple[pa.StringArray, np.ndarray]:
    """Makes a source take gene ids from the column of which most are known.

    Ensembl ids are preferred over symbols at about equal fractions, since a symbol may stand for
    several genes, or for another one in other years. Of equal columns the likelier name wins.

    Args:
      source: changed.
      find_tokens: ids ([genes] str) -> int [genes] tokens, -1 where unknown.

    Returns:
      ([genes] str the ids that were chosen, without outer blanks; int [genes] their tokens).
    """
    best, best_score = None, -1.0
    for column in source.candidate_gene_columns():
        if column != source.gene_column:
            source.use_gene_column(column)
        ids = _stripped(source.gene_ids)
        tokens, ensembl = find_tokens(ids), are_ensembl_ids(ids).mean()
        known = (tokens >= 0).mean()
        if ensembl >= _NEARLY_ALL and known >= _ENOUGH:
            return ids, tokens
        score = known * (_PREFERENCE_FOR_IDS if ensembl >= _MOST else 1)
        if score > best_score:
            best, best_score = (column, ids, tokens), score
    column, ids, tokens = best
    source.use_gene_column(column)
    return ids, tokens


def choose_ensembl_ids(source: CountSource) -> bool:
    """Makes a source take gene ids from the column that has most Ensembl ids.

    Returns:
      Whether at least half of a column are such; where none is, its likeliest column stays.
    """
    best, best_fraction = source.gene_column, 0.0
    for column in source.candidate_gene_columns():
        if column != source.gene_column:
            source.use_gene_column(column)
        fraction = are_ensembl_ids(_stripped(source.gene_ids)).mean()
        if fraction >= _NEARLY_ALL:
            return True
        if fraction >= _MOST and fraction > best_fraction:
            best, best_fraction = column, fraction
    source.use_gene_column(best)
    return best_fraction > 0


def leave_out_other_species(
    source: CountSource, ids: pa.StringArray, species: str, remedy: str
) -> GeneChoice:
    """Leaves out the genes of other species, where a source holds those of several.

    A reference made of two genomes counts the genes of both. Totals that are computed are of the
    genes that are kept; totals that the file states are taken as they are, as in the original.

    Args:
      source: with its column of gene ids; changed.
      ids: [genes] str, those ids.
      species: whose genes are kept.
      remedy: against a source with hardly any of them.

    Raises:
      InputError: hardly any of its genes is of the species.
    """
    each = species_of_each(ids)
    if source.gene_genomes is not None:
        each = np.where(source.gene_genomes == "", each, source.gene_genomes)
    other = (each != "") & (each != species)
    if not _are_several(each, other, source.gene_genomes is not None):
        return GeneChoice.of(source)
    names, numbers = np.unique(each[each != ""], return_counts=True)
    if np.count_nonzero(each == species) <= _MAX_STRAY_FRACTION * numbers.sum():
        raise InputError(f"{source.path} has {names[numbers.argmax()]} gene ids, but {remedy}")
    choice = GeneChoice.of(source, ~other)
    choice.apply(source)
    return choice


def _are_several(each: np.ndarray, other: np.ndarray, have_genomes: bool) -> bool:
    """Whether other genes are more than the strays that pipelines add."""
    strays = np.count_nonzero(other)
    if have_genomes:
        return strays > 0
    if strays <= _MAX_STRAY_FRACTION * np.count_nonzero(each != ""):
        return False
    return strays > _MAX_STRAYS or any(map(is_named_species, np.unique(each[other])))


def _stripped(ids: np.ndarray) -> pa.StringArray:
    return pa.array([each.strip() for each in ids.tolist()], pa.string())
