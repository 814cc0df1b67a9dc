"""The plan of work: which edits are made in which cells, and in which pieces.

All edits of all cells are numbered through, cell after cell. A part is a range of these numbers,
fixed by the cells and the edits alone, so that work can be interrupted, or shared by processes on
unlike machines, and comes to the same tables.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.batches import encoding_flops
from geneformer_jax.inference.listed_genes import name_missing
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.perturbation.engine.edits import (
    DELETE,
    OVEREXPRESS,
    EditBatch,
    EditRule,
    SpecialTokens,
    edited_lengths,
    edits_of,
    leaves_genes,
)
from geneformer_jax.perturbation.engine.gene_sets import GeneSets

NO_GENE_LEFT = "edits that leave no other gene"
# Minutes of work on a CPU, a second on an accelerator.
TOKENS_PER_PART = 4_194_304
# A small run has so many parts that it can be shared, of so many tokens at least as hide what a
# part costs: cells that it cuts are encoded twice. A tiny one has some parts all the same.
_PARTS_TO_SHARE, _TOKENS_TO_SHARE, _FEWEST_PARTS = 32, 262_144, 4
_CELLS_AT_ONCE = 1_024
# Bytes in the tables for one value, for one value of a gene, for one mean of these, and for the
# metadata of a file; found by measuring.
_BYTES_PER_VALUE, _BYTES_PER_GENE_VALUE, _BYTES_PER_MEAN, _BYTES_PER_FILE = 8, 5, 22, 4_500


@dataclass(frozen=True, eq=False)
class EditPlan:
    """Which edits are made in which cells: all that an engine needs beside the model.

    Attributes:
      cells: to perturb.
      rule: how genes are perturbed.
      special: what surrounds the genes of a cell.
      sets: which genes are perturbed together.
      counts: int64 [cells] number of edits of each cell.
      longest: int32 [cells] tokens of the longest edited cell of each.
      compared: int64 [cells] genes in sight.
      left_out: reason -> number of edits, or cells, that are left out.
      unexpressed: named genes that no cell expresses, where only those are perturbed.
      tokens_per_part: tokens to encode in each part, at most and about.
      encodings: float64 [cells], of each cell, where these do not go with its edits; parts are then
        of whole cells.
      chosen: int64 ascending numbers of the edits to make, where these are not all.
    """

    cells: EncodedCells
    rule: EditRule
    special: SpecialTokens
    sets: GeneSets
    counts: np.ndarray
    longest: np.ndarray
    compared: np.ndarray
    left_out: dict[str, int]
    unexpressed: tuple[int, ...] = ()
    tokens_per_part: int = TOKENS_PER_PART
    encodings: np.ndarray | None = None
    chosen: np.ndarray | None = None

    def choose(self, numbers: np.ndarray) -> "EditPlan":
        """Returns the plan with these edits alone (ascending numbers); they keep their numbers."""
        return replace(self, chosen=numbers)

    def in_whole_cells(self, encodings: np.ndarray) -> "EditPlan":
        """Returns the plan with parts of whole cells, which take so many encodings each."""
        return replace(self, encodings=encodings)

    @functools.cached_property
    def made(self) -> np.ndarray:
        """Edits to make in each cell; int64 [cells]."""
        if self.chosen is None:
            return self.counts
        return np.bincount(self.cell_of(self.chosen), minlength=len(self.counts))

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Number of each cell's first edit; int64 [cells + 1]."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def missing_genes(self) -> list[dict[str, str]]:
        """The named genes that are left out; see `name_missing`."""
        return name_missing(self.cells.vocabulary, self.sets.unknown, self.unexpressed)

    @property
    def edits(self) -> int:
        """Number of all edits."""
        return int(self.offsets[-1])

    @property
    def edited_cells(self) -> int:
        """Number of cells that have an edit."""
        return int((self.counts > 0).sum())

    @property
    def tokens(self) -> int:
        """Tokens that have to be encoded."""
        return int((self.passes * self.longest).sum())

    @property
    def passes(self) -> np.ndarray:
        """Encodings of each cell, [cells]."""
        return self.made if self.encodings is None else self.encodings * (self.counts > 0)

    @property
    def consecutive(self) -> str:
        """Kind of the edits where those of a cell are of one gene after the other, else ""."""
        in_turn = self.sets == GeneSets() and self.chosen is None
        in_turn = in_turn and not (self.rule.refill or self.rule.keep_positions)
        return self.rule.kind if in_turn and self.rule.kind in (DELETE, OVEREXPRESS) else ""

    @property
    def _part_tokens(self) -> int:
        """Tokens of a part, which follow from the plan alone."""
        shareable = min(_TOKENS_TO_SHARE, self.tokens // _FEWEST_PARTS + 1)
        return min(self.tokens_per_part, max(shareable, self.tokens // _PARTS_TO_SHARE))

    def part_costs(self, config: EncoderConfig) -> np.ndarray:
        """Returns about what each part takes, in floating point operations; float64 [parts]."""
        of_cell = encoding_flops(config, self.longest) * self.passes / np.maximum(self.made, 1)
        before = np.concatenate([[0.0], np.cumsum(of_cell * self.counts)])
        bounds = np.array(self.parts)
        cells = self.cell_of(np.minimum(bounds, self.edits - 1))
        return np.diff(before[cells] + (bounds - self.offsets[cells]) * of_cell[cells])[:, 0]

    @functools.cached_property
    def parts(self) -> list[tuple[int, int]]:
        """First edit, and the one after the last, of each part."""
        if self.encodings is not None:
            return self._parts_of_whole_cells()
        size = self._part_tokens
        parts, begin, tokens = [], 0, 0
        for cell in np.flatnonzero(self.counts):
            here, stop = int(self.offsets[cell]), int(self.offsets[cell + 1])
            length = int(self.longest[cell])
            while here < stop:
                fitting = max((size - tokens) // length, int(tokens == 0))
                taken = min(fitting, stop - here)
                here, tokens = here + taken, tokens + taken * length
                if here < stop or tokens >= size:
                    parts.append((begin, here))
                    begin, tokens = here, 0
        if begin < self.edits:
            parts.append((begin, self.edits))
        return parts

    def _parts_of_whole_cells(self) -> list[tuple[int, int]]:
        tokens = self.passes * self.longest
        part_of_cell = (np.cumsum(tokens) - tokens) // self._part_tokens
        first = np.flatnonzero(np.diff(part_of_cell)) + 1
        bounds = self.offsets[[0, *first, len(self.counts)]]
        return [(int(a), int(b)) for a, b in itertools.pairwise(bounds) if a < b]

    def cell_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the cell of each edit; int64, shaped as `numbers`."""
        return np.searchsorted(self.offsets, numbers, "right") - 1

    def between(
        self, start: int, stop: int, lengths: np.ndarray
    ) -> Iterator[tuple[int, EditBatch]]:
        """Reads the cells of a range of edits, each once, and computes their edits once.

        Args:
          start, stop: first edit, and the one after the last.
          lengths: ascending padded lengths; each cell takes the first that its edits fit into.

        Yields:
          Cell by cell: its padded length, and those of its edits that are in the range.
        """
        first = int(self.cell_of(start))
        last = int(np.searchsorted(self.offsets, stop, "left"))
        for begin in range(first, last, _CELLS_AT_ONCE):
            cells = np.arange(begin, min(begin + _CELLS_AT_ONCE, last))
            cells = cells[self.made[cells] > 0]
            for cell, tokens in zip(cells, self.cells.read(cells), strict=True):
                padded = int(lengths[np.searchsorted(lengths, self.longest[cell])])
                genes, offset = self.special.genes_of(tokens), int(self.offsets[cell])
                edits, _ = possible_edits(self.rule, self.special, self.sets, genes, padded)
                edits = edits._replace(numbers=offset + edits.numbers)
                own = edits.take(slice(max(start - offset, 0), stop - offset))
                if self.chosen is not None:
                    own = own.take(np.isin(own.numbers, self.chosen))
                if len(own.numbers):
                    yield padded, own

    def table_bytes(self, measures: int, gene_rows: int, means: bool) -> int:
        """Estimates the size of the tables.

        Args:
          measures: values of each edit.
          gene_rows: values of single genes of each edit, -1 for all.
          means: whether those are kept only as means over cells.
        """
        files = len(self.parts) * (1 + (gene_rows != 0 and not means))
        total = self.edits * measures * _BYTES_PER_VALUE + files * _BYTES_PER_FILE
        if not gene_rows:
            return total
        per_edit = self.compared if gene_rows < 0 else np.minimum(self.compared, gene_rows)
        values = int((self.counts * per_edit).sum())
        if means:
            pairs = min(values, self.cells.vocabulary.size**2)
            return total + pairs * _BYTES_PER_MEAN
        return total + values * _BYTES_PER_GENE_VALUE


def plan_edits(
    cells: EncodedCells,
    rule: EditRule,
    special: SpecialTokens,
    sets: GeneSets,
    tokens_per_part: int = TOKENS_PER_PART,
) -> EditPlan:
    """Finds the edits of all cells.

    Raises:
      InputError: no cell has any, or expresses one of the named genes where that is needed.
    """
    total = len(cells.lengths)
    counts, longest = np.zeros(total, np.int64), np.zeros(total, np.int32)
    compared = np.zeros(total, np.int64)
    left_out: Counter[str] = Counter()
    missing = set() if rule.adds_genes else set(sets.named)
    for begin in range(0, total, _CELLS_AT_ONCE):
        numbers = np.arange(begin, min(begin + _CELLS_AT_ONCE, total))
        for cell, tokens in zip(numbers, cells.read(numbers), strict=True):
            genes = special.genes_of(tokens)
            missing.difference_update(special.within_reach(rule, genes).tolist() if missing else ())
            edits, dropped = possible_edits(rule, special, sets, genes, special.limit)
            left_out[NO_GENE_LEFT] += dropped
            counts[cell], compared[cell] = len(edits.numbers), len(special.in_sight(genes))
            longest[cell] = edited_lengths(special, edits).max(initial=0)
    _require_some(cells, sets, missing)
    left_out["cells without an edit"] = int((counts == 0).sum())
    if not counts.any():
        lacks = (
            "keeps another gene when one is perturbed"
            if left_out[NO_GENE_LEFT]
            else "expresses the genes that are to be perturbed together"
        )
        raise InputError(
            f"none of the {total:,} chosen cells {lacks}; name other genes or choose other cells"
        )
    unexpressed = tuple(token for token in sets.named if token in missing)
    left_out = {reason: number for reason, number in left_out.items() if number}
    return EditPlan(
        cells,
        rule,
        special,
        sets,
        counts,
        longest,
        compared,
        left_out,
        unexpressed,
        tokens_per_part,
    )


def possible_edits(
    rule: EditRule, special: SpecialTokens, sets: GeneSets, genes: np.ndarray, padded: int
) -> tuple[EditBatch, int]:
    """Computes the edits of one cell that leave a gene to compare, numbered from 0.

    Args:
      rule: how genes are perturbed.
      special: what surrounds the genes.
      sets: which genes are perturbed together.
      genes: int32 [G] the cell.
      padded: T, the length to which the cell will be padded.

    Returns:
      (the edits, the number of those that leave none).
    """
    edits = edits_of(rule, special, genes, sets.in_cell(rule, special, genes), padded)
    leaves = leaves_genes(special, edits, padded)
    kept = edits.take(leaves)
    return kept._replace(numbers=np.arange(len(kept.numbers))), int((~leaves).sum())


def choose_lengths(
    longest: np.ndarray, weights: np.ndarray, multiple: int, worth: float
) -> np.ndarray:
    """Chooses the padded lengths of perturbed cells.

    From the longest cell down, shorter ones join its bucket while the padding that this adds costs
    less than compiling another program.

    Args:
      longest: int [cells] tokens of each cell.
      weights: [cells] edits of each cell.
      multiple: padded lengths are multiples of this.
      worth: tokens that could be encoded in the time that compiling one program takes.

    Returns:
      int [buckets] ascending padded lengths.
    """
    lengths = -(-longest // multiple) * multiple
    buckets, padding = [], 0.0
    for length in np.unique(lengths)[::-1]:
        if buckets:
            padding += float(weights[lengths == length].sum()) * (buckets[-1] - length)
        if not buckets or padding > worth:
            buckets.append(int(length))
            padding = 0.0
    return np.array(buckets[::-1])


def _require_some(cells: EncodedCells, sets: GeneSets, missing: set[int]) -> None:
    if not missing or len(missing) < len(sets.named):
        return
    token = sets.named[0]
    gene, symbol = cells.vocabulary.gene_id_of(token), cells.vocabulary.names_of([token])[0]
    name = gene if gene == symbol else f"{gene} {symbol}"
    more = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
    raise InputError(
        f"gene {name}{more} is expressed in none of the {len(cells.lengths):,} chosen "
        "cells; leave it out, choose other cells, or use edit overexpress"
    )
