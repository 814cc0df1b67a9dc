"""The table of genes of a source: which columns it has, and which of them holds the gene ids."""

import abc
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.genomes import strip_genomes
from geneformer_jax.cells.counts.options import DEFAULT_OPTIONS, CountOptions
from geneformer_jax.cells.counts.texts import as_fixed_text
from geneformer_jax.common.errors import InputError, did_you_mean

_INDEX = "index"
# Names under which Ensembl ids are usual, the original's own first; compared in lower case.
_ID_COLUMNS = (
    "ensembl_id",
    "ensembl_ids",
    "gene_ids",
    "gene_id",
    "feature_id",
    "feature_ids",
    "ensembl",
    "ensembl_gene_id",
    "accession",
)
_SYMBOL_COLUMNS = (
    "gene_symbol",
    "gene_symbols",
    "symbol",
    "symbols",
    "feature_name",
    "gene_name",
    "gene_names",
    "hgnc_symbol",
    "Gene",
)
_LISTED = 20


def no_column(path: Path, table: str, column: str, known: list[str]) -> InputError:
    """The error for a column that a table has not; near matches are named."""
    listed = ", ".join(known[:_LISTED]) + (", ..." if len(known) > _LISTED else "")
    return InputError(
        f'{path}: {table} has no column "{column}"{did_you_mean(column, known)}; '
        f"its columns: {listed or 'none'}"
    )


class GeneTable(abc.ABC):
    """Names of the genes (columns of the matrix) of a source.

    A name of a genome in front of ids and symbols ("GRCh38_") is taken off.

    Attributes:
      path, kind: of the source, for messages.
      options: how it is read.
      gene_ids: [genes] str, from `gene_column`; '' where it has none.
      gene_column: name of the column of the ids; "index" for the index of the table.
      gene_genomes: [genes] str, species of the genome that was taken off an id, '' where none was;
        None if nowhere.
    """

    path: Path
    kind: str
    options: CountOptions = DEFAULT_OPTIONS
    gene_ids: np.ndarray
    gene_column: str
    gene_genomes: np.ndarray | None
    _gene_columns: list[str]
    _gene_table_name: str = "var"
    _has_gene_index: bool = True
    # What is no gene is left out whichever column is used, and then what is of another species.
    _features: np.ndarray | None = None
    _kept_columns: np.ndarray | None = None

    @abc.abstractmethod
    def _read_genes(self, column: str | None) -> object:
        """Reads a column of the table of genes, or (None) its index."""

    def _is_text(self, column: str) -> bool:
        """Whether a column of the table of genes holds texts."""
        return True

    def _set_genes(self, columns: list[str]) -> None:
        """Takes the columns of the table of genes, and the ids of the asked or likeliest one.

        Raises:
          InputError: the asked column is not there.
        """
        asked, self._gene_columns = self.options.gene_column, columns
        known = [*columns, _INDEX] if self._has_gene_index else columns
        if asked not in (None, *known):
            raise no_column(self.path, self._gene_table_name, asked, known)
        likeliest = next(self.candidate_gene_columns(), None)
        if likeliest is None:
            raise no_column(self.path, self._gene_table_name, _ID_COLUMNS[0], columns)
        self.use_gene_column(likeliest)

    def candidate_gene_columns(self) -> Iterator[str]:
        """Yields the columns that may hold gene ids, the likeliest first; the asked one alone."""
        if self.options.gene_column is not None:
            yield self.options.gene_column
            return
        usual = [c for name in _ID_COLUMNS for c in self._gene_columns if c.lower() == name]
        yield from (column for column in usual if self._is_text(column))
        if self._names_index(_INDEX):
            yield _INDEX
        rest = (column for column in self._gene_columns if column not in usual)
        yield from (column for column in rest if self._is_text(column))

    def use_gene_column(self, column: str, kept: np.ndarray | None = None) -> None:
        """Takes gene ids from a column.

        Args:
          column: of the table of genes, or "index".
          kept: bool [genes] the genes to keep, None for all; the counts of others are left out of
            the matrix and of computed totals.

        Raises:
          InputError: the column cannot be read.
        """
        with explain_damage(self.path, self.kind):
            ids, genomes = self._names(column)
        self.gene_column, self._kept_columns = column, self._features
        self.__dict__.pop("symbols", None)
        if kept is not None:
            every = np.arange(len(kept)) if self._features is None else self._features
            self._kept_columns = every[kept]
        if self._kept_columns is not None:
            ids = ids[self._kept_columns]
            genomes = genomes if genomes is None else genomes[self._kept_columns]
        self.gene_ids, self.gene_genomes = ids, genomes

    def _keep_features(self, features: np.ndarray) -> None:
        """Leaves out all other columns of the matrix, from totals too."""
        if not features.size:
            raise InputError(f"{self.path}: none of its features is a gene; give a file with genes")
        self._features = features
        self.use_gene_column(self.gene_column)

    def _names(self, column: str) -> tuple[np.ndarray, np.ndarray | None]:
        column = None if self._names_index(column) else column
        return strip_genomes(as_fixed_text(self._read_genes(column)))

    def _names_index(self, column: str) -> bool:
        """Whether a name means the index; a column of that name hides it."""
        return column == _INDEX and _INDEX not in self._gene_columns and self._has_gene_index

    @functools.cached_property
    def symbols(self) -> np.ndarray | None:
        """[genes] str, or None where the source has none."""
        usual = [name for name in _SYMBOL_COLUMNS if name in self._gene_columns]
        places = [*usual, *([_INDEX] if self._names_index(_INDEX) else [])]
        column = next((place for place in places if place != self.gene_column), None)
        if column is None:
            return None
        with explain_damage(self.path, self.kind):
            symbols, _ = self._names(column)
        if column == _INDEX and all(name.isdigit() for name in symbols):
            return None
        if self._kept_columns is not None:
            symbols = symbols[self._kept_columns]
        if len(symbols) != len(self.gene_ids):
            raise InputError(
                f"{self.path}: {len(self.gene_ids)} genes have {len(symbols)} symbols; the file is "
                "damaged: copy or write it again"
            )
        return symbols
