"""Which genes are perturbed, and which of them together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.inference.listed_genes import find_genes, read_genes
from geneformer_jax.perturbation.engine.edits import INHIBIT, NOTHING, EditRule, SpecialTokens

ALL = "all"
EACH, TOGETHER, PAIRS = "each", "together", "pairs"
COMBINE = (EACH, TOGETHER, PAIRS)


@dataclass(frozen=True)
class GeneSets:
    """The sets of genes that are perturbed together, cell by cell.

    Attributes:
      listed: tokens of named genes; None stands for every gene of the cell.
      combine: "each" gene in turn, all "together", or all "pairs".
      anchor: token of a gene that is perturbed with each of the others; None without.
      combinations: tokens of given sets; the other fields are then unused.
      unknown: named genes without a token; they, and sets with them, are left out.

    With pairs, an anchor or combinations each gene is perturbed alone too, for without that a
    combined effect cannot be distinguished from the sum of its parts.
    """

    listed: tuple[int, ...] | None = None
    combine: str = EACH
    anchor: int | None = None
    combinations: tuple[tuple[int, ...], ...] = ()
    unknown: tuple[str, ...] = ()

    def __post_init__(self):
        if self.combine not in COMBINE:
            near = did_you_mean(self.combine, COMBINE)
            raise InputError(
                f'there is no combine "{self.combine}"{near}; use one of {", ".join(COMBINE)}'
            )
        if self.combine == TOGETHER and self.listed is None:
            raise InputError(
                "all genes of a cell cannot be perturbed together; name some with genes"
            )
        if self.anchor is not None and self.combine != EACH:
            raise InputError(
                f'an anchor is perturbed with each gene, but combine is "{self.combine}"; leave '
                "one of them out"
            )
        if self.combine == PAIRS and self.listed is not None and len(self.listed) < 2:
            raise InputError("pairs need at least 2 genes; name more with genes")
        if self.combinations and (self.listed or self.anchor is not None or self.combine != EACH):
            raise InputError(
                "combinations name the genes that are perturbed; leave genes, anchor and "
                "combine out"
            )

    @property
    def size(self) -> int:
        """K, the genes of the largest set."""
        if self.combinations:
            return max(map(len, self.combinations))
        if self.combine == TOGETHER:
            return len(self.listed)
        return 1 if self.combine == EACH and self.anchor is None else 2

    @property
    def named(self) -> tuple[int, ...]:
        """All genes that are named, each once."""
        flat = [token for genes in self.combinations for token in genes]
        anchor = () if self.anchor is None else (self.anchor,)
        return tuple(dict.fromkeys((*anchor, *(self.listed or ()), *flat)))

    def in_cell(self, rule: EditRule, special: SpecialTokens, cell: np.ndarray) -> np.ndarray:
        """Returns the sets that are perturbed in a cell, int32 [E, K], filled up with -1.

        Genes that an edit needs and the cell does not express leave the set out. Every gene in turn
        leaves out the gene that the edit does not move: the first (overexpress, activate), or the
        last (inhibit), as the original does.

        Args:
          rule: how genes are perturbed.
          special: what surrounds the genes.
          cell: int32 [G] its genes by rank; one that has none has no sets.
        """
        if not len(special.in_sight(cell)):
            return np.empty((0, self.size), np.int32)
        reach = special.within_reach(rule, cell)
        if self.combinations:
            # Each gene alone, and then the sets.
            alone = [(token,) for token in self.named]
            sets = [*alone, *(genes for genes in self.combinations if len(genes) > 1)]
            return self._present(rule, reach, _filled(sets, self.size))
        if self.combine == TOGETHER:
            return self._present(rule, reach, _filled([self.listed], self.size))
        genes = reach if self.listed is None else np.array(self.listed, np.int32)
        genes = self._present(rule, reach, genes[:, None])[:, 0]
        if self.combine == PAIRS:
            return _pairs(np.sort(genes))
        if self.anchor is not None:
            return self._with_anchor(rule, reach, genes)
        if self.listed is None:
            genes = genes[genes != _unmoved(rule, special, cell)]
        return genes[:, None]

    def _present(self, rule: EditRule, reach: np.ndarray, sets_EK: np.ndarray) -> np.ndarray:
        if rule.adds_genes:
            return sets_EK
        return sets_EK[((sets_EK == NOTHING) | np.isin(sets_EK, reach)).all(axis=1)]

    def _with_anchor(self, rule: EditRule, reach: np.ndarray, genes: np.ndarray) -> np.ndarray:
        anchor = np.int32(self.anchor)
        if not rule.adds_genes and anchor not in reach:
            return np.empty((0, 2), np.int32)
        others = genes[genes != anchor]
        alone = np.append(anchor, others)
        alone = np.stack([alone, np.full_like(alone, NOTHING)], axis=1)
        return np.concatenate([alone, np.stack([np.full_like(others, anchor), others], axis=1)])


def _filled(sets: Sequence[Sequence[int]], size: int) -> np.ndarray:
    filled = np.full((len(sets), size), NOTHING, np.int32)
    for row, genes in enumerate(sets):
        filled[row, : len(genes)] = genes
    return filled


def _pairs(genes: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(len(genes), 1)
    alone = np.stack([genes, np.full_like(genes, NOTHING)], axis=1)
    return np.concatenate([alone, np.stack([genes[first], genes[second]], axis=1)])


def _unmoved(rule: EditRule, special: SpecialTokens, cell: np.ndarray) -> int:
    """Returns the gene that stands already where the edit would put it, -1 if there is none."""
    if rule.raises_genes:
        return cell[0]
    if rule.kind == INHIBIT:
        return (cell if rule.refill else special.in_sight(cell))[-1]
    return NOTHING


def read_gene_sets(
    vocabulary: GeneVocabulary,
    genes: str | Sequence[str] = ALL,
    combine: str = EACH,
    anchor: str | None = None,
    combinations: Sequence[Sequence[str]] | None = None,
) -> GeneSets:
    """Finds the tokens of named genes.

    Args:
      vocabulary: of the model.
      genes: "all", or gene ids or symbols, or a file of them.
      combine: one of COMBINE.
      anchor: gene id or symbol.
      combinations: gene ids or symbols of each set.

    Raises:
      InputError: none of the genes is known, or one that others need, or the arguments contradict
        each other.
    """
    listed, unknown = None, ()
    if not (isinstance(genes, str) and genes == ALL):
        names = read_genes(genes) if isinstance(genes, str) else genes
        # All together are one edit, which without some of them would be another one.
        strict = combine == TOGETHER
        found = (gene_tokens(vocabulary, names), ()) if strict else find_genes(vocabulary, names)
        listed, unknown = found
    if combinations is not None and listed is not None:
        raise InputError(
            "`genes` and `combinations` were both given; combinations name the genes that are "
            "perturbed, leave `genes` out"
        )
    sets, left_out = _combinations(vocabulary, combinations)
    return GeneSets(
        listed,
        combine,
        None if anchor is None else gene_tokens(vocabulary, [anchor])[0],
        sets,
        (*unknown, *left_out),
    )


def _combinations(
    vocabulary: GeneVocabulary, combinations: Sequence[Sequence[str]] | None
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Returns (the sets of known genes, the unknown genes, whose sets are left out)."""
    if combinations is None:
        return (), ()
    if not combinations:
        raise InputError("`combinations` name no gene; give at least one set of genes")
    _, unknown = find_genes(vocabulary, [name for genes in combinations for name in genes])
    whole = [genes for genes in combinations if not set(unknown).intersection(map(str, genes))]
    if not whole:
        raise InputError(
            f'each of the {len(combinations):,} combinations has a gene, such as "{unknown[0]}", '
            "that is not in the vocabulary; name others"
        )
    sets = [gene_tokens(vocabulary, genes) for genes in whole]
    return tuple(dict.fromkeys(sets)), unknown


def gene_tokens(vocabulary: GeneVocabulary, genes: str | Sequence[str]) -> tuple[int, ...]:
    """Returns the tokens of genes in their order.

    Raises:
      InputError: no gene is named, one is unknown (near matches are named), or named twice.
    """
    names = [genes] if isinstance(genes, str) else [str(each) for each in genes]
    if not names:
        raise InputError('genes names no gene; name some, or "all"')
    tokens = vocabulary.tokens_of(names, symbols="names")
    for name, token in zip(names, tokens, strict=True):
        if token < vocabulary.first_gene_token:
            known = [*vocabulary.gene_ids.tolist(), *vocabulary.symbols.tolist()]
            raise InputError(
                f'gene "{name}" is not in the vocabulary of {len(vocabulary.gene_ids):,} genes'
                f"{did_you_mean(name, known)}; give gene ids or symbols that are"
            )
    if len(set(tokens.tolist())) < len(tokens):
        twice = next(t for t in tokens.tolist() if tokens.tolist().count(t) > 1)
        same = " and ".join(
            f'"{n}"' for n, t in zip(names, tokens.tolist(), strict=True) if t == twice
        )
        raise InputError(
            f"{same} are the same gene {vocabulary.gene_id_of(twice)}; name each gene once"
        )
    return tuple(tokens.tolist())
