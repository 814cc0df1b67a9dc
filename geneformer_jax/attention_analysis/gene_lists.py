"""Lists of genes to compare: transcription factors with all others, one class with another."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.arguments import require_type
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.tables import CLASS_COLUMNS, GENE_COLUMNS, named_column, read_id_table
from geneformer_jax.inference.listed_genes import (
    describe_missing,
    find_genes,
    is_list_file,
    name_missing,
)

OTHERS, LISTED = "other genes", "listed genes"
# A rank-sum test of fewer genes finds nothing.
MIN_GENES = 3
_EXAMPLES = 3


class GeneComparison(NamedTuple):
    """Genes to compare with others.

    Attributes:
      name: of the list.
      against: name of what it is compared with.
      first: int64 tokens of the listed genes.
      second: int64 tokens of the others.
      unknown: listed genes that are not in the vocabulary.
      not_found: tokens of listed genes that fewer than `min_cells` cells have.
      min_cells: that must have a gene.
    """

    name: str
    against: str
    first: np.ndarray
    second: np.ndarray
    unknown: tuple[str, ...]
    not_found: tuple[int, ...]
    min_cells: int

    def missing(self, vocabulary: GeneVocabulary) -> list[dict[str, str]]:
        """The listed genes that are left out; see `name_missing`."""
        too_few = f"expressed in fewer than {self.min_cells} of the cells"
        return name_missing(vocabulary, self.unknown, self.not_found, too_few)

    @property
    def title(self) -> str:
        """Both sides in words."""
        return f"{self.name} vs {self.against}"


GeneLists = str | Path | Sequence[str] | Mapping[str, Sequence[str]]


def read_gene_lists(genes: GeneLists) -> dict[str, list[str]]:
    """Returns list name -> genes (ids or symbols).

    Args:
      genes: lists by name; one list of genes; or files, separated by commas. A file with a column
        of classes holds one list per class; any other is one list under the file's name. What is no
        file is the name of a gene.

    Raises:
      InputError: a file cannot be read, holds no gene, or two lists have one name.
    """
    if isinstance(genes, Mapping):
        return {str(name): list(map(str, each)) for name, each in genes.items()}
    if not isinstance(genes, str | Path):
        require_type("genes", genes, Iterable, "give names of genes, lists by name, or files")
        return {LISTED: list(map(str, genes))}
    lists: dict[str, list[str]] = {}
    parts = [str(genes)] if Path(genes).is_file() else str(genes).split(",")
    for path in filter(None, map(str.strip, parts)):
        if not is_list_file(path):
            lists.setdefault(LISTED, []).append(path)
            continue
        table = read_id_table(path)
        known = [name for name in table.columns if str(name).lower() in CLASS_COLUMNS]
        column = named_column(table.drop(columns=known), GENE_COLUMNS, "genes", path)
        names = table[known[0]] if known else pd.Series(Path(path).stem, index=table.index)
        for name, rows in table.groupby(names, sort=False):
            if name in lists:
                raise InputError(
                    f'`genes`: two lists are called "{name}", the second in {path}; rename one'
                )
            lists[str(name)] = [gene for gene in rows[column] if gene]
    return lists


def compare_lists(
    lists: Mapping[str, Sequence[str]],
    vocabulary: GeneVocabulary,
    cells_of: np.ndarray,
    min_cells: int = 1,
) -> list[GeneComparison]:
    """Finds the listed genes among those that cells have.

    Each list is compared with all genes that are not on it; where there are exactly two lists, the
    first is compared with the second too (genes on both are left out of that).

    Args:
      lists: name -> ids or symbols.
      vocabulary: of the tokens.
      cells_of: [V] cells that have each token.
      min_cells: genes in fewer cells take no part: their means are noise.

    Raises:
      InputError: there is no list, or fewer than 3 of a list's genes (or of all others) are found.
    """
    cells_of = np.where(cells_of >= min_cells, cells_of, 0)
    found = {name: _find(name, genes, vocabulary, cells_of) for name, genes in lists.items()}
    if not found:
        raise InputError("`genes` lists no gene; name a file with a gene per line")
    everyone = np.flatnonzero(cells_of > 0)
    everyone = everyone[everyone >= vocabulary.first_gene_token]
    comparisons = []
    for name, (tokens, unknown, missing) in found.items():
        others = np.setdiff1d(everyone, tokens)
        _require(OTHERS, len(others), f"than those of {name}", cells_of, vocabulary)
        comparisons.append(
            GeneComparison(name, OTHERS, tokens, others, unknown, missing, min_cells)
        )
    if len(found) == 2:
        a, b = comparisons
        first, second = np.setdiff1d(a.first, b.first), np.setdiff1d(b.first, a.first)
        for each, tokens in ((a, first), (b, second)):
            _require(each.name, len(tokens), "not on both lists", cells_of, vocabulary)
        comparisons.append(a._replace(against=b.name, first=first, second=second))
    return comparisons


def known_genes(genes: Sequence[str], vocabulary: GeneVocabulary) -> np.ndarray:
    """Returns the tokens of genes given by id or symbol, each once; logs those that are unknown.

    Raises:
      InputError: none of them is in the vocabulary.
    """
    found = find_genes(vocabulary, genes)
    for line in describe_missing(name_missing(vocabulary, found.unknown, ())):
        logger.warning(line)
    return np.unique(found.tokens)


def _find(
    name: str, genes: Sequence[str], vocabulary: GeneVocabulary, cells_of: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    if not len(genes):
        raise InputError(f"`genes`: list {name} holds no gene; put one on each line")
    tokens = vocabulary.tokens_of(list(genes), symbols="names")
    unknown = tuple(gene for gene, token in zip(genes, tokens, strict=True) if token < 0)
    known = np.unique(tokens[tokens >= 0])
    if not len(known):
        shown = ", ".join(genes[:_EXAMPLES])
        raise InputError(
            f"`genes`: none of the {len(genes):,} genes of {name} is in the vocabulary: the list "
            f"has {shown}, the vocabulary {_examples(vocabulary)}; give ids or symbols of one "
            "species"
        )
    present = known[cells_of[known] > 0]
    _require(name, len(present), f"of {len(genes):,} listed", cells_of, vocabulary)
    return present, unknown, tuple(np.setdiff1d(known, present).tolist())


def _require(
    name: str, found: int, rest: str, cells_of: np.ndarray, vocabulary: GeneVocabulary
) -> None:
    if found < MIN_GENES:
        order = np.argsort(-cells_of, kind="stable")
        common = order[(order >= vocabulary.first_gene_token) & (cells_of[order] > 0)][:_EXAMPLES]
        shown = ", ".join(vocabulary.gene_id_of(int(token)) for token in common)
        others = f"genes such as {shown} are" if shown else "no gene is"
        raise InputError(
            f"`genes`: {found} genes of {name} {rest} are in enough cells, but a test needs "
            f"{MIN_GENES}; {others}: give another list, more cells, or a smaller "
            "`min_cells`"
        )


def _examples(vocabulary: GeneVocabulary) -> str:
    pairs = zip(vocabulary.gene_ids[:_EXAMPLES], vocabulary.symbols[:_EXAMPLES], strict=True)
    return ", ".join(f"{gene} ({symbol})" if symbol else str(gene) for gene, symbol in pairs)
