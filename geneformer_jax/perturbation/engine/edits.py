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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean

DELETE, OVEREXPRESS, INHIBIT, ACTIVATE = "delete", "overexpress", "inhibit", "activate"
EDITS = (DELETE, OVEREXPRESS, INHIBIT, ACTIVATE)
# In place of a gene, and of the number of an edit.
NOTHING = FILLER = -1
GONE = np.float32(np.inf)


@dataclass(frozen=True)
class EditRule:
    """How genes are perturbed.

    Attributes:
      kind: one of EDITS.
      ranks: r of inhibit and activate, or
      quantile: the fraction of the cell's genes that r is, in (0, 1].
      refill: whether genes beyond the cut slide in.
      keep_positions: whether what stands behind a deleted gene keeps its position number, as if the
        place stayed empty.
    """

    kind: str = DELETE
    ranks: int | None = None
    quantile: float | None = None
    refill: bool = False
    keep_positions: bool = False

    def __post_init__(self):
        if self.kind not in EDITS:
            known = ", ".join(EDITS)
            raise InputError(
                f'there is no edit "{self.kind}"{did_you_mean(self.kind, EDITS)}; use one of '
                f"{known}"
            )
        if self.keep_positions and (self.kind != DELETE or self.refill):
            what = 'truncation "refill"' if self.refill else f'edit "{self.kind}"'
            raise InputError(
                f'`positions` is "keep", which {what} does not go with: only what follows a '
                'deleted gene can keep its position; use edit "delete", truncation "original"'
            )
        given = (self.ranks is not None) + (self.quantile is not None)
        if self.kind in (INHIBIT, ACTIVATE):
            if given != 1:
                raise InputError(
                    f'edit "{self.kind}" needs either ranks (how far genes move) or quantile (the '
                    "same as a fraction of the cell's genes); give one of them"
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
        """Returns r in a cell of `genes` genes."""
        if self.ranks is not None:
            return self.ranks
        return max(1, round(self.quantile * genes))


class SpecialTokens(NamedTuple):
    """What surrounds the genes of a cell, and how many genes that leaves room for.

    A cell is int32 [G], the tokens of its genes by rank, without special tokens.

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
        """Of a model with `positions` positions."""
        framed = vocabulary.cls_id is not None
        return cls(positions, framed, vocabulary.first_gene_token)

    @property
    def first(self) -> int:
        """Position of the first gene."""
        return int(self.framed)

    def genes_of(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the genes of a cell by rank, int32 [G], from its tokens."""
        tokens = np.asarray(tokens, np.int32)
        return tokens[tokens >= self.first_gene_token]

    def in_sight(self, genes: np.ndarray) -> np.ndarray:
        """Returns the genes that fit into the model."""
        return genes[: self.limit - 2 * self.framed]

    def within_reach(self, rule: EditRule, genes: np.ndarray) -> np.ndarray:
        """Returns the genes that can be perturbed.

        Those in sight, and with refill also those that rise into it.
        """
        return genes if rule.refill and rule.raises_genes else self.in_sight(genes)

    def tokens_in_sight(self, genes: np.ndarray) -> np.ndarray:
        """Returns what the model sees of a cell, with `<cls>` and `<eos>` where there are such."""
        genes = self.in_sight(genes)
        if not self.framed:
            return genes
        return np.concatenate([[self.first_gene_token - 2], genes, [self.first_gene_token - 1]])


class EditBatch(NamedTuple):
    """Edits, each of one of the cells at hand.

    A position is that of a token in the row [tokens in sight, padded to T | genes beyond the cut |
    added genes], of which the last two parts are K long (the middle one only with refill).

    Attributes:
      slots: int32 [R] which of the cells at hand is edited.
      positions: int32 [R, K] which tokens get another key; beyond the row for none.
      keys: float32 [R, K] their keys; infinite to leave them out.
      added: int32 [R, K] tokens of the added genes, 0 for none.
      cut: int32 [R] genes cut off the tail of the original cell.
      sets: int32 [R, K] the perturbed genes in the given order, filled up with -1.
      numbers: int64 [R] number among all edits of the plan, FILLER where a row edits nothing.
      cells: the cells at hand, each int32 [G].
    """

    slots: np.ndarray
    positions: np.ndarray
    keys: np.ndarray
    added: np.ndarray
    cut: np.ndarray | None = None
    sets: np.ndarray | None = None
    numbers: np.ndarray | None = None
    cells: tuple[np.ndarray, ...] = ()

    @classmethod
    def filler(cls, rows: int, genes: int, nowhere: int) -> "EditBatch":
        """Returns rows that edit nothing, with K = `genes`; `nowhere` is beyond the row."""
        zeros_R, zeros_RK = np.zeros(rows, np.int32), np.zeros((rows, genes), np.int32)
        return cls(
            slots=zeros_R,
            positions=np.full_like(zeros_RK, nowhere),
            keys=zeros_RK.astype(np.float32),
            added=zeros_RK,
            cut=zeros_R,
            sets=np.full_like(zeros_RK, NOTHING),
            numbers=np.full(rows, FILLER, np.int64),
        )

    @classmethod
    def stack(cls, batches: Sequence["EditBatch"]) -> "EditBatch":
        """Puts batches one after the other, and their cells as well."""
        before = np.cumsum([0, *(len(batch.cells) for batch in batches)], dtype=np.int32)
        shifted = [
            batch._replace(slots=batch.slots + first)
            for batch, first in zip(batches, before, strict=False)
        ]
        joined = cls.concatenate(shifted)
        return joined._replace(cells=tuple(cell for batch in batches for cell in batch.cells))

    @classmethod
    def concatenate(cls, batches: Sequence["EditBatch"]) -> "EditBatch":
        """Puts the rows of batches one after the other, slots as they are and without cells."""
        return cls(*map(np.concatenate, zip(*(batch[:-1] for batch in batches), strict=True)))

    def take(self, rows: np.ndarray | slice) -> "EditBatch":
        """Returns some of the edits, with all cells."""
        return EditBatch(*(field[rows] for field in self[:-1]), self.cells)

    def pad(self, rows: int, nowhere: int) -> "EditBatch":
        """Returns the edits filled up to `rows`, without cells."""
        missing = rows - len(self.slots)
        return self.concatenate([self, self.filler(missing, self.sets.shape[1], nowhere)])

    def for_device(self) -> "EditBatch":
        """Returns what the device needs."""
        return EditBatch(self.slots, self.positions, self.keys, self.added)


def ranks_of(genes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Returns the rank of each token in a cell, -1 for those it has not; shaped as `tokens`."""
    if not len(genes):
        return np.full(tokens.shape, NOTHING, np.int32)
    order = np.argsort(genes, kind="stable")
    found = np.searchsorted(genes[order], tokens)
    ranks = order[np.minimum(found, len(order) - 1)].astype(np.int32)
    return np.where((tokens >= 0) & (genes[ranks] == tokens), ranks, NOTHING)


def ranks_at(special: SpecialTokens, positions_E: np.ndarray, padded: int) -> np.ndarray:
    """Returns the rank of the token at each position, int32 from 1; 0 beyond what is in sight."""
    ranks_E = positions_E - special.first + 1
    return np.where(positions_E < padded, ranks_E, 0).astype(np.int32)


def nowhere(rule: EditRule, padded: int, size: int) -> int:
    """Returns the first position beyond the row of a cell, see `EditBatch`."""
    return padded + (size if rule.refill else 0) + size


def edits_of(
    rule: EditRule, special: SpecialTokens, genes: np.ndarray, sets_EK: np.ndarray, padded: int
) -> EditBatch:
    """Computes the edits of one cell, numbered from 0.

    Args:
      rule: how genes are perturbed.
      special: what surrounds the genes.
      genes: int32 [G] the cell.
      sets_EK: int32, the genes of each edit in the given order, filled up with -1.
      padded: T, the length to which the cell will be padded.
    """
    size, seen = sets_EK.shape[1], len(special.in_sight(genes))
    ranks_EK = ranks_of(genes, sets_EK)
    beyond_EK = ranks_EK - seen
    in_sight_EK = (ranks_EK >= 0) & (beyond_EK < 0)
    slots = size if rule.refill else 0
    near_EK = (beyond_EK >= 0) & (beyond_EK < slots)
    added_EK = (sets_EK >= 0) & ~in_sight_EK & ~near_EK
    places_EK = np.arange(size, dtype=np.int32)[None]
    positions_EK = np.select(
        [in_sight_EK, near_EK, added_EK],
        [special.first + ranks_EK, padded + beyond_EK, padded + slots + places_EK],
        nowhere(rule, padded, size),
    )
    longer = seen + 2 * special.framed + added_EK.sum(axis=1) - special.limit
    cut = np.zeros_like(longer) if rule.refill else np.maximum(longer, 0)
    return EditBatch(
        slots=np.zeros(len(sets_EK), np.int32),
        positions=positions_EK.astype(np.int32),
        keys=_keys(rule, special, genes, ranks_EK, places_EK),
        added=np.where(added_EK, sets_EK, 0).astype(np.int32),
        cut=cut.astype(np.int32),
        sets=sets_EK,
        numbers=np.arange(len(sets_EK)),
        cells=(genes,),
    )


def _keys(
    rule: EditRule,
    special: SpecialTokens,
    genes: np.ndarray,
    ranks_EK: np.ndarray,
    places_EK: np.ndarray,
) -> np.ndarray:
    if rule.kind == DELETE:
        return np.full(ranks_EK.shape, GONE)
    if rule.kind == OVEREXPRESS:
        # Between the position before the first gene and the first gene itself.
        between = (places_EK + 1) / (ranks_EK.shape[1] + 1)
        return np.broadcast_to(special.first - 1 + between, ranks_EK.shape).astype(np.float32)
    total = len(genes if rule.refill else special.in_sight(genes))
    distance = rule.distance(total)
    if rule.kind == INHIBIT:
        return (special.first + np.minimum(ranks_EK + distance, total - 1) + 0.5).astype(np.float32)
    return (special.first + np.maximum(ranks_EK - distance, 0) - 0.5).astype(np.float32)


def leaves_genes(special: SpecialTokens, edits: EditBatch, padded: int) -> np.ndarray:
    """Returns which edits of one cell leave a gene to compare; bool [R]."""
    seen = len(special.in_sight(edits.cells[0]))
    perturbed = (edits.positions < padded).sum(axis=1)
    return seen - edits.cut - perturbed > 0


def edited_lengths(special: SpecialTokens, edits: EditBatch) -> np.ndarray:
    """Returns the number of tokens of each edited cell, of one cell; int [R]."""
    seen = len(special.in_sight(edits.cells[0]))
    added = (edits.added > 0).sum(axis=1)
    return np.minimum(seen + 2 * special.framed + added, special.limit)
