"""What an edit does to a cell's ranking, defined by where each perturbed gene goes.

Every gene of a cell has a key, its rank; an edit gives the perturbed genes other keys, and the
edited cell is all genes in the order of their keys:

  delete       no key: the gene is gone, the genes below it move up by one.
  overexpress  before all genes (in V2 right after `<cls>`), a set in the order it is given in;
               genes that the cell does not express are added.
  inhibit      just below the gene that stands r ranks lower, at most below the last one.
  activate     just above the gene that stands r ranks higher, at most above the first one.

r is a number of ranks, or a quantile of the cell: quantile x its number of genes, rounded, at least
1. Genes of a set move at the same time, each counted from its own old rank; those that would meet
keep their order.

Truncation. The original edits what the model sees of a cell: nothing slides in when genes leave,
and where added genes push the cell over the limit its tail is cut, and as many genes are cut off
the cell it is compared with. With `refill` the whole ranking is edited and then cut: genes from
beyond the cut slide in and out, and the original cell stays as the model sees it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean

DELETE, OVEREXPRESS, INHIBIT, ACTIVATE = "delete", "overexpress", "inhibit", "activate"
EDITS = (DELETE, OVEREXPRESS, INHIBIT, ACTIVATE)
NOTHING = -1
GONE = np.float32(np.inf)


@dataclass(frozen=True)
class EditRule:
    """How genes are perturbed.

    Attributes:
      kind: one of EDITS.
      ranks: r of inhibit and activate, or
      quantile: the share of the cell's genes that r is, in (0, 1].
      refill: whether genes beyond the cut slide in.
    """

    kind: str = DELETE
    ranks: int | None = None
    quantile: float | None = None
    refill: bool = False

    def __post_init__(self):
        if self.kind not in EDITS:
            known = ", ".join(EDITS)
            raise InputError(
                f'there is no edit "{self.kind}"{did_you_mean(self.kind, EDITS)}; use one of '
                f"{known}"
            )
        given = (self.ranks is not None) + (self.quantile is not None)
        if self.kind in (INHIBIT, ACTIVATE):
            if given != 1:
                raise InputError(
                    f'edit "{self.kind}" needs either ranks (how far genes move) or quantile (the '
                    "same as a share of the cell's genes); give one of them"
                )
        elif given:
            raise InputError(
                f'edit "{self.kind}" moves genes by no number of ranks; leave ranks and quantile '
                'out, or use edit "inhibit" or "activate"'
            )
        if self.ranks is not None and self.ranks < 1:
            raise InputError(f"ranks is {self.ranks}; genes must move by at least 1 rank")
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise InputError(f"quantile is {self.quantile}; it must be above 0 and at most 1")

    @property
    def adds_genes(self) -> bool:
        """Whether genes that a cell does not express can be perturbed."""
        return self.kind == OVEREXPRESS

    @property
    def raises_genes(self) -> bool:
        """Whether genes move up, so that genes beyond the cut can come into sight."""
        return self.kind in (OVEREXPRESS, ACTIVATE)

    def distance(self, genes: int) -> int:
        """r, in a cell of so many genes."""
        if self.ranks is not None:
            return self.ranks
        return max(1, round(self.quantile * genes))


class CellRanks(NamedTuple):
    """A cell's ranking, and how much of it the model sees.

    Attributes:
      genes: int32 [G] tokens of its genes by rank, without `<cls>` and `<eos>`.
      seen: the first so many of them fit into the model.
    """

    genes: np.ndarray
    seen: int

    def ranks_of(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the rank of each gene, -1 where the cell has it not; shaped as `tokens`."""
        if not len(self.genes):
            return np.full(tokens.shape, NOTHING, np.int32)
        order = np.argsort(self.genes, kind="stable")
        found = np.searchsorted(self.genes[order], tokens)
        ranks = order[np.minimum(found, len(order) - 1)].astype(np.int32)
        return np.where((tokens >= 0) & (self.genes[ranks] == tokens), ranks, NOTHING)

    def within_reach(self, rule: EditRule) -> np.ndarray:
        """Genes that can be perturbed: those in sight; with refill also those that rise into it."""
        return self.genes if rule.refill and rule.raises_genes else self.genes[: self.seen]


class SpecialTokens(NamedTuple):
    """What surrounds the genes of a cell.

    Attributes:
      limit: tokens that fit into the model.
      framed: whether `<cls>` and `<eos>` stand around the genes (V2).
      first_gene_token: tokens below it are special.
    """

    limit: int
    framed: bool
    first_gene_token: int

    @classmethod
    def of(cls, vocabulary: GeneVocabulary, positions: int) -> "SpecialTokens":
        """Of a model with so many positions."""
        framed = vocabulary.cls_id is not None
        return cls(positions, framed, vocabulary.first_gene_token)

    @property
    def first(self) -> int:
        """Position of the first gene."""
        return int(self.framed)

    @property
    def genes(self) -> int:
        """Genes that fit into the model."""
        return self.limit - 2 * self.framed

    def ranks(self, tokens: np.ndarray) -> CellRanks:
        """Reads the ranking off a cell's tokens."""
        genes = np.asarray(tokens, np.int32)
        genes = genes[genes >= self.first_gene_token]
        return CellRanks(genes, min(len(genes), self.genes))


class Edits(NamedTuple):
    """Edits of one cell, as the device makes them.

    A position is that of a token in the row [tokens in sight, padded to T | genes beyond the cut |
    added genes], of which the last two parts are K long (the middle one only with refill).

    Attributes:
      positions: int32 [E, K] which tokens get another key; beyond the row for none.
      keys: float32 [E, K] their keys; infinite to leave them out.
      added: int32 [E, K] tokens of the added genes, 0 for none.
      cut: int32 [E] genes cut off the tail of the original cell.
    """

    positions: np.ndarray
    keys: np.ndarray
    added: np.ndarray
    cut: np.ndarray


def edits_of(
    rule: EditRule, frame: SpecialTokens, cell: CellRanks, sets_EK: np.ndarray, padded: int
) -> Edits:
    """Works out the edits of one cell.

    Args:
      rule: how genes are perturbed.
      frame: what surrounds the genes.
      cell: to edit.
      sets_EK: int32, the genes of each edit in the given order, filled up with -1.
      padded: T, the length to which the cell will be padded.
    """
    size, is_gene_EK = sets_EK.shape[1], sets_EK >= 0
    ranks_EK = cell.ranks_of(sets_EK)
    beyond_EK = ranks_EK - cell.seen
    in_sight_EK = (ranks_EK >= 0) & (beyond_EK < 0)
    slots = size if rule.refill else 0
    near_EK = (beyond_EK >= 0) & (beyond_EK < slots)
    added_EK = is_gene_EK & ~in_sight_EK & ~near_EK
    places_EK = np.arange(size, dtype=np.int32)[None]
    positions_EK = np.select(
        [in_sight_EK, near_EK, added_EK],
        [frame.first + ranks_EK, padded + beyond_EK, padded + slots + places_EK],
        padded + slots + size,
    )
    longer = len(cell.genes[: cell.seen]) + 2 * frame.framed + added_EK.sum(axis=1) - frame.limit
    return Edits(
        positions=positions_EK.astype(np.int32),
        keys=_keys(rule, frame, cell, ranks_EK, places_EK),
        added=np.where(added_EK, sets_EK, 0).astype(np.int32),
        cut=np.zeros(len(sets_EK), np.int32)
        if rule.refill
        else np.maximum(longer, 0).astype(np.int32),
    )


def _keys(
    rule: EditRule,
    frame: SpecialTokens,
    cell: CellRanks,
    ranks_EK: np.ndarray,
    places_EK: np.ndarray,
) -> np.ndarray:
    if rule.kind == DELETE:
        return np.full(ranks_EK.shape, GONE)
    if rule.kind == OVEREXPRESS:
        # Between the position before the first gene and the first gene itself.
        between = (places_EK + 1) / (ranks_EK.shape[1] + 1)
        return np.broadcast_to(frame.first - 1 + between, ranks_EK.shape).astype(np.float32)
    genes = len(cell.genes) if rule.refill else cell.seen
    distance = rule.distance(genes)
    if rule.kind == INHIBIT:
        return (frame.first + np.minimum(ranks_EK + distance, genes - 1) + 0.5).astype(np.float32)
    return (frame.first + np.maximum(ranks_EK - distance, 0) - 0.5).astype(np.float32)


def edited_lengths(frame: SpecialTokens, cell: CellRanks, edits: Edits) -> np.ndarray:
    """Returns the number of tokens of each edited cell; int [E]."""
    added = (edits.added > 0).sum(axis=1)
    return np.minimum(cell.seen + 2 * frame.framed + added, frame.limit)
