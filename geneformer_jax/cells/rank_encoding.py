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
# An entry of the sort: the key above, the index of the value below.
_KEY_SHIFT = np.uint64(32)
_INDEX_MASK = np.uint64((1 << 32) - 1)
_DIGIT_BITS = 11
_DIGIT_BITS_OF_FEW = 8
_FEW_GENES = 1000
_BLOCKS_PER_THREAD = 4
_SMALLEST_BLOCK = 16


class RankEncodings(NamedTuple):
    """Ragged rows of tokens.

    Attributes:
      tokens: uint16 [sum of lengths], cell after cell.
      offsets: int64 [cells + 1]; cell i has tokens[offsets[i]:offsets[i + 1]].
      genes: int32 [cells], how many genes of the vocabulary each cell expresses, those beyond the
        longest length included; None where that is not known.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    genes: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell, special tokens included; int32 [cells]."""
        return np.diff(self.offsets).astype(np.int32)

    def without_empty(self) -> "RankEncodings":
        """Returns the same without the cells that have no token."""
        lengths = np.diff(self.offsets)
        filled = lengths > 0
        genes = None if self.genes is None else self.genes[filled]
        return RankEncodings(self.tokens, _offsets(lengths[filled]), genes)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def join_encodings(parts: list[RankEncodings]) -> RankEncodings:
    """Puts the cells of one or more encodings one after another."""
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    known = all(part.genes is not None for part in parts)
    return RankEncodings(
        np.concatenate([part.tokens for part in parts]),
        _offsets(lengths),
        np.concatenate([part.genes for part in parts]) if known else None,
    )


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
    entries = np.diff(indptr)
    special = (columns.cls_id >= 0) + (columns.eos_id >= 0)
    starts = _offsets(np.minimum(entries + special, columns.max_length))
    wide = np.empty(starts[-1], dtype=np.uint16)
    lengths = np.zeros(cells, dtype=np.int64)
    genes = np.zeros(cells, dtype=np.int32)

    def encode_block(first: int, last: int) -> None:
        _encode_cells(
            data, indices, indptr, np.asarray(totals, np.float64), columns.tokens,
            columns.inverse_medians, columns.repeated, columns.max_length, columns.cls_id,
            columns.eos_id, first, last, wide, starts, lengths, genes,
            _Scratch.of(int(entries[first:last].max(initial=0))),
        )  # fmt: skip

    _in_blocks(encode_block, cells, threads or len(os.sched_getaffinity(0)))
    offsets = _offsets(lengths)
    tokens = np.empty(offsets[-1], dtype=np.uint16)
    _pack(wide, starts, offsets, tokens)
    return RankEncodings(tokens, offsets, genes)


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
    entries: np.ndarray
    spare_entries: np.ndarray
    high_counts: np.ndarray
    low_counts: np.ndarray
    place_of_token: np.ndarray

    @classmethod
    def of(cls, genes: int) -> "_Scratch":
        return cls(
            np.empty(genes),
            np.empty(genes),
            np.empty(genes, np.uint16),
            np.empty(genes, np.uint64),
            np.empty(genes, np.uint64),
            np.empty(1 << _DIGIT_BITS, np.int64),
            np.empty(1 << _DIGIT_BITS, np.int64),
            np.full(LARGEST_TOKEN + 1, -1, np.int32),
        )


@compiled
def _shift_to(values, n, key_bits):
    """Returns the bits of the highest value, and how far to shift for keys of `key_bits` bits."""
    # The bits of a positive float64, read as a whole number, order as the value does.
    bits = values.view(np.uint64)
    highest = bits[0]
    lowest = bits[0]
    for i in range(1, n):
        highest = max(highest, bits[i])
        lowest = min(lowest, bits[i])
    shift = np.uint64(0)
    while (highest - lowest) >> shift >= np.uint64(1 << key_bits):
        shift += np.uint64(1)
    return highest, shift


@compiled
def _running_sums(counts, size):
    """Turns the counts of buckets into the positions where the buckets start."""
    position = 0
    for bucket in range(size):
        count = counts[bucket]
        counts[bucket] = position
        position += count


@compiled
def _scatter(entries, into, starts, n, shift, mask):
    """Moves entries to the buckets of one digit of their keys, stably."""
    for i in range(n):
        bucket = (entries[i] >> shift) & mask
        into[starts[bucket]] = entries[i]
        starts[bucket] += 1


@compiled
def _sort_runs(entries, values, n):
    """Puts entries of the same key in order of their values, stably."""
    for i in range(1, n):
        entry = entries[i]
        j = i
        while (
            j > 0
            and entries[j - 1] >> _KEY_SHIFT == entry >> _KEY_SHIFT
            and values[entries[j - 1] & _INDEX_MASK] < values[entry & _INDEX_MASK]
        ):
            entries[j] = entries[j - 1]
            j -= 1
        entries[j] = entry


@compiled
def _rank(scratch, n, wanted):
    """Returns entries whose lower half is the index of a value, the `wanted` highest first.

    Equal values stay in order. Two digits of a key that spans just the range of the values order
    nearly all of them (a radix sort, low digit first); those that share a key are sorted by value.
    """
    digit_bits = _DIGIT_BITS if n > _FEW_GENES else _DIGIT_BITS_OF_FEW
    size = 1 << digit_bits
    mask = np.uint64(size - 1)
    low, high = _KEY_SHIFT, _KEY_SHIFT + np.uint64(digit_bits)
    highest, shift = _shift_to(scratch.values, n, 2 * digit_bits)
    bits = scratch.values.view(np.uint64)
    entries, spare = scratch.entries, scratch.spare_entries
    for bucket in range(size):
        scratch.high_counts[bucket] = 0
        scratch.low_counts[bucket] = 0
    for i in range(n):
        # Distance from the highest value, so that it comes first.
        entries[i] = ((highest - bits[i]) >> shift) << _KEY_SHIFT | np.uint64(i)
        scratch.high_counts[entries[i] >> high] += 1
    # What lies in higher buckets than the last wanted gene need not be sorted at all.
    last, covered = 0, scratch.high_counts[0]
    while covered < wanted:
        last += 1
        covered += scratch.high_counts[last]
    kept = 0
    for i in range(n):
        if entries[i] >> high <= last:
            entries[kept] = entries[i]
            scratch.low_counts[(entries[i] >> low) & mask] += 1
            kept += 1
    _running_sums(scratch.low_counts, size)
    _running_sums(scratch.high_counts, last + 1)
    _scatter(entries, spare, scratch.low_counts, kept, low, mask)
    _scatter(spare, entries, scratch.high_counts, kept, high, mask)
    _sort_runs(entries, scratch.values, kept)
    return entries


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
    eos_id, first, last, out, starts, lengths, genes, scratch,
):  # fmt: skip
    """Writes the tokens of cells first..last-1 into `out` from `starts` on, and their numbers."""
    special = (cls_id >= 0) + (eos_id >= 0)
    for cell in range(first, last):
        n = _gather(
            data, indices, indptr[cell], indptr[cell + 1], column_tokens, inverse_medians,
            repeated, scratch,
        )  # fmt: skip
        genes[cell] = n
        if n == 0:
            continue
        inverse_total = 1.0 / totals[cell]
        for i in range(n):
            value = scratch.values[i] * inverse_total * TARGET_SUM
            scratch.values[i] = value * scratch.factors[i]
        kept = min(n, max_length - special)
        entries = _rank(scratch, n, kept)
        at = starts[cell]
        if cls_id >= 0:
            out[at] = cls_id
            at += 1
        for i in range(kept):
            out[at + i] = scratch.tokens[entries[i] & _INDEX_MASK]
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
