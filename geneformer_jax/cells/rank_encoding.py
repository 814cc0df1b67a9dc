"""Rank value encoding: each cell's genes in descending order of their normalised expression.

Pure functions on arrays. The value of a gene in a cell is counts / total x 10,000 / median (Nature
2023, "Rank value encoding of transcriptomes"), in float64 and in the original's order of
operations, so that ranks are equal to its ranks bit for bit. Equal values keep the order of the
source's columns; the original leaves that order undefined.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
from scipy import sparse

from geneformer_jax.cells.vocabulary import LARGEST_TOKEN, GeneVocabulary

TARGET_SUM = 10_000.0
_DIGIT_BITS = 11
_DIGITS = 6
# Three digits hold a value's sign, exponent and 19 bits of its mantissa, which order nearly all
# pairs; an insertion pass then puts the rest right, unless there turn out to be too many of them.
_FIRST_DIGIT_OF_SHORT_SORT = 3
_MOVES_PER_GENE = 4
_BLOCKS_PER_THREAD = 4
_SMALLEST_BLOCK = 16


class RankEncodings(NamedTuple):
    """Ragged rows of tokens.

    Attributes:
      tokens: uint16 [sum of lengths], cell after cell.
      offsets: int64 [cells + 1]; cell i has tokens[offsets[i]:offsets[i + 1]].
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell, special tokens included; int32 [cells]."""
        return np.diff(self.offsets).astype(np.int32)

    def without_empty(self) -> "RankEncodings":
        """Returns the same without the cells that have no token."""
        lengths = np.diff(self.offsets)
        return RankEncodings(self.tokens, _offsets(lengths[lengths > 0]))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def join_encodings(parts: list[RankEncodings]) -> RankEncodings:
    """Puts the cells of one or more encodings one after another."""
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return RankEncodings(np.concatenate([part.tokens for part in parts]), _offsets(lengths))


class GeneColumns(NamedTuple):
    """What the encoder needs to know of each column of a source.

    Attributes:
      tokens: int32 [columns], -1 where the vocabulary has no such gene.
      inverse_medians: float64 [columns], 1 / median; 0 where there is no gene.
      repeated: whether some gene has several columns, whose counts are then summed.
      max_length: most tokens of a cell, special tokens included.
      cls_id: token put in front, or -1.
      eos_id: token put behind, or -1.
    """

    tokens: np.ndarray
    inverse_medians: np.ndarray
    repeated: bool
    max_length: int
    cls_id: int
    eos_id: int


def gene_columns(tokens: np.ndarray, vocabulary: GeneVocabulary, max_length: int) -> GeneColumns:
    """Prepares the encoding of a source whose columns have these tokens (-1: not a gene)."""
    known = tokens >= 0
    inverse = np.zeros(len(tokens))
    inverse[known] = 1.0 / vocabulary.medians[tokens[known] - vocabulary.first_gene_token]
    return GeneColumns(
        tokens=tokens.astype(np.int32),
        inverse_medians=inverse,
        repeated=len(np.unique(tokens[known])) < int(known.sum()),
        max_length=max_length,
        cls_id=-1 if vocabulary.cls_id is None else vocabulary.cls_id,
        eos_id=-1 if vocabulary.eos_id is None else vocabulary.eos_id,
    )


def encode_counts(
    counts: sparse.csr_matrix,
    totals: np.ndarray,
    columns: GeneColumns,
    threads: int | None = None,
) -> RankEncodings:
    """Encodes cells.

    Args:
      counts: [cells, columns] raw counts; explicit zeros are no expression.
      totals: [cells] all counts of each cell over all genes of its source, > 0 where a gene is
        expressed.
      columns: see `gene_columns`.
      threads: how many to use; all cores if None. The result is the same.

    Returns:
      The cells' tokens: the `max_length` highest genes (V2: `<cls>`, `max_length` - 2, `<eos>`). A
      cell without any gene of the vocabulary has length 0, in V2 too.
    """
    if not counts.has_canonical_format:
        counts = counts.copy()
        counts.sum_duplicates()
    cells = counts.shape[0]
    # One kernel for all sources: what is not int32 already becomes float64.
    data = counts.data if counts.data.dtype == np.int32 else counts.data.astype(np.float64)
    indices, indptr = counts.indices.astype(np.int32, copy=False), counts.indptr.astype(np.int64)
    genes = np.diff(indptr)
    special = (columns.cls_id >= 0) + (columns.eos_id >= 0)
    starts = _offsets(np.minimum(genes + special, columns.max_length))
    wide = np.empty(starts[-1], dtype=np.uint16)
    lengths = np.zeros(cells, dtype=np.int64)

    def encode_block(first: int, last: int) -> None:
        _encode_cells(
            data, indices, indptr, np.asarray(totals, np.float64), columns.tokens,
            columns.inverse_medians, columns.repeated, columns.max_length, columns.cls_id,
            columns.eos_id, first, last, wide, starts, lengths,
            _Scratch.of(int(genes[first:last].max(initial=0))),
        )  # fmt: skip

    _in_blocks(encode_block, cells, threads or len(os.sched_getaffinity(0)))
    offsets = _offsets(lengths)
    tokens = np.empty(offsets[-1], dtype=np.uint16)
    _pack(wide, starts, offsets, tokens)
    return RankEncodings(tokens, offsets)


def _in_blocks(work: Callable[[int, int], None], cells: int, threads: int) -> None:
    # Threads of our own over a kernel that holds no lock: numba's parallel loops are not safe to
    # call from several threads at once, nor in a process forked after their first use.
    size = max(_SMALLEST_BLOCK, -(-cells // (threads * _BLOCKS_PER_THREAD)))
    starts = range(0, cells, size)
    if threads == 1 or len(starts) == 1:
        work(0, cells)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda start: work(start, min(start + size, cells)), starts))


def compiled(function: Callable) -> Callable:
    """Compiles a kernel that holds no lock; kept on disk where a place for that is writable."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable folder for the compiled code
        return numba.njit(nogil=True)(function)


class _Scratch(NamedTuple):
    """One thread's working memory, for cells of up to `genes` genes."""

    values: np.ndarray
    factors: np.ndarray
    tokens: np.ndarray
    keys: np.ndarray
    order: np.ndarray
    spare_keys: np.ndarray
    spare_order: np.ndarray
    histogram: np.ndarray
    place_of_token: np.ndarray

    @classmethod
    def of(cls, genes: int) -> "_Scratch":
        return cls(
            np.empty(genes),
            np.empty(genes),
            np.empty(genes, np.uint16),
            np.empty(genes, np.uint64),
            np.empty(genes, np.int32),
            np.empty(genes, np.uint64),
            np.empty(genes, np.int32),
            np.empty(1 << _DIGIT_BITS, np.int64),
            np.full(LARGEST_TOKEN + 1, -1, np.int32),
        )


@compiled
def _sort_by_digit(digit, keys, order, to_keys, to_order, histogram, n):
    """Moves keys and their order to `to_keys`, `to_order`, stably by one digit of the keys."""
    shift = np.uint64(digit * _DIGIT_BITS)
    mask = np.uint64((1 << _DIGIT_BITS) - 1)
    for bucket in range(1 << _DIGIT_BITS):
        histogram[bucket] = 0
    for i in range(n):
        histogram[(keys[i] >> shift) & mask] += 1
    position = 0
    for bucket in range(1 << _DIGIT_BITS):
        count = histogram[bucket]
        histogram[bucket] = position
        position += count
    for i in range(n):
        bucket = (keys[i] >> shift) & mask
        to_keys[histogram[bucket]] = keys[i]
        to_order[histogram[bucket]] = order[i]
        histogram[bucket] += 1


@compiled
def _insertion_sort(keys, order, n, most_moves):
    """Sorts nearly sorted keys stably; gives up and returns False after `most_moves`."""
    moves = 0
    for i in range(1, n):
        key = keys[i]
        tag = order[i]
        j = i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            order[j] = order[j - 1]
            j -= 1
        keys[j] = key
        order[j] = tag
        moves += i - j
        if moves > most_moves:
            return False
    return True


@compiled
def _rank(scratch, n):
    """Returns the indices of the first n values, highest value first, equal ones by index."""
    bits = scratch.values.view(np.uint64)
    first_digit = _FIRST_DIGIT_OF_SHORT_SORT
    while True:
        keys, order = scratch.keys, scratch.order
        spare_keys, spare_order = scratch.spare_keys, scratch.spare_order
        for i in range(n):
            # The bits of a positive float64 order as the value does; turned over, highest first.
            keys[i] = ~bits[i]
            order[i] = i
        for digit in range(first_digit, _DIGITS):
            _sort_by_digit(digit, keys, order, spare_keys, spare_order, scratch.histogram, n)
            keys, spare_keys = spare_keys, keys
            order, spare_order = spare_order, order
        if first_digit == 0 or _insertion_sort(keys, order, n, _MOVES_PER_GENE * n):
            return order
        first_digit = 0


@compiled
def _gather(data, indices, start, stop, column_tokens, inverse_medians, repeated, scratch):
    """Collects one cell's genes in column order, counts of one gene summed; returns how many."""
    n = 0
    place = scratch.place_of_token
    for entry in range(start, stop):
        column = indices[entry]
        token = column_tokens[column]
        if token < 0 or data[entry] == 0:
            continue
        if repeated:
            if place[token] >= 0:
                scratch.values[place[token]] += data[entry]
                continue
            place[token] = n
        scratch.values[n] = data[entry]
        scratch.factors[n] = inverse_medians[column]
        scratch.tokens[n] = token
        n += 1
    if repeated:
        for i in range(n):
            place[scratch.tokens[i]] = -1
    return n


@compiled
def _encode_cells(
    data, indices, indptr, totals, column_tokens, inverse_medians, repeated, max_length, cls_id,
    eos_id, first, last, out, starts, lengths, scratch,
):  # fmt: skip
    """Writes the tokens of cells first..last-1 into `out` from `starts` on, and their lengths."""
    special = (cls_id >= 0) + (eos_id >= 0)
    for cell in range(first, last):
        n = _gather(
            data, indices, indptr[cell], indptr[cell + 1], column_tokens, inverse_medians,
            repeated, scratch,
        )  # fmt: skip
        if n == 0:
            continue
        inverse_total = 1.0 / totals[cell]
        for i in range(n):
            value = scratch.values[i] * inverse_total * TARGET_SUM
            scratch.values[i] = value * scratch.factors[i]
        order = _rank(scratch, n)
        at = starts[cell]
        if cls_id >= 0:
            out[at] = cls_id
            at += 1
        kept = min(n, max_length - special)
        for i in range(kept):
            out[at + i] = scratch.tokens[order[i]]
        at += kept
        if eos_id >= 0:
            out[at] = eos_id
            at += 1
        lengths[cell] = at - starts[cell]


@compiled
def _pack(wide, starts, offsets, tokens):
    """Copies the used part of each cell's room to its place in `tokens`."""
    for cell in range(len(offsets) - 1):
        shift = starts[cell] - offsets[cell]
        for i in range(offsets[cell], offsets[cell + 1]):
            tokens[i] = wide[i + shift]
