"""Rank value encoding: each cell's genes in descending order of their normalised expression.

Pure functions on arrays. The value of a gene in a cell is counts / total x 10,000 / median (Nature
2023, "Rank value encoding of transcriptomes"), in float64 and in the original's order of
operations, so that ranks are equal to its ranks bit for bit. Equal values keep the order of the
source's columns; the original leaves that order undefined.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from geneformer_jax.cells.tokenization.vocabulary import LARGEST_TOKEN, GeneVocabulary
from geneformer_jax.common.threads import compiled, for_each, spans

TARGET_SUM = 10_000.0
# An entry of the sort: the key above, the index of the value below.
_KEY_SHIFT = np.uint64(32)
_INDEX_MASK = np.uint64((1 << 32) - 1)
_ALL_BITS = np.uint64((1 << 64) - 1)
_DIGIT_BITS = 11
_DIGIT_BITS_OF_FEW = 8
_FEW_GENES = 1000
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

    def __repr__(self) -> str:
        return f"RankEncodings({describe_lengths(self.lengths)})"

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

    def kept(self, keep: np.ndarray) -> "RankEncodings":
        """Returns the cells that are to be kept; bool [cells]."""
        if keep.all():
            return self
        lengths = np.diff(self.offsets)
        genes = None if self.genes is None else self.genes[keep]
        return RankEncodings(self.tokens[np.repeat(keep, lengths)], _offsets(lengths[keep]), genes)


def describe_lengths(lengths: np.ndarray) -> str:
    """Returns cells and their lengths in a few words, for the `repr` of what holds them."""
    if not len(lengths):
        return "no cells"
    return f"{len(lengths):,} cells of {lengths.min():,} to {lengths.max():,} tokens"


def describe_cut(is_cut: np.ndarray, limit: int) -> str:
    """Returns one line on the cells (bool [cells]) of which only `limit` tokens are taken."""
    return (
        f"{np.count_nonzero(is_cut):,} of {len(is_cut):,} cells have more than the {limit:,} "
        "tokens that the model takes: cut to their highest ranked genes"
    )


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
      max_length: maximal number of tokens of a cell, special tokens included.
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
        repeated=bool(np.bincount(tokens[known]).max(initial=0) > 1),
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
    totals = np.asarray(totals, np.float64)
    entries = np.diff(indptr)
    special = (columns.cls_id >= 0) + (columns.eos_id >= 0)
    room = _offsets(np.minimum(entries + special, columns.max_length))
    tokens = np.empty(room[-1], dtype=np.uint16)
    lengths = np.zeros(cells, dtype=np.int64)
    genes = np.zeros(cells, dtype=np.int32)

    def encode_block(first: int, last: int) -> None:
        _encode_cells(
            data, indices, indptr, totals, columns.tokens, columns.inverse_medians,
            columns.repeated, columns.max_length, columns.cls_id, columns.eos_id, first, last,
            tokens[room[first] :], lengths, genes,
            _Scratch.of(int(entries[first:last].max(initial=0))),
        )  # fmt: skip

    # Threads of our own over a kernel that holds no lock: numba's parallel loops are not safe to
    # call from several threads at once, nor in a process forked after their first use.
    blocks = spans(cells, threads, _SMALLEST_BLOCK) or [(0, 0)]
    for_each(encode_block, blocks, threads)
    offsets = _offsets(lengths)
    used = [tokens[room[a] : room[a] + offsets[b] - offsets[a]] for a, b in blocks]
    return RankEncodings(used[0] if len(used) == 1 else np.concatenate(used), offsets, genes)


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
def _key_shift(highest, lowest, key_bits):
    """Returns how far to shift the bits of values for keys of `key_bits` bits."""
    shift = np.uint64(0)
    while (highest - lowest) >> shift >= np.uint64(1 << key_bits):
        shift += np.uint64(1)
    return shift


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
def _cut(scratch, n, wanted, digit_bits):
    """Keeps the entries in whose high buckets the `wanted` highest lie; returns their number."""
    high = _KEY_SHIFT + np.uint64(digit_bits)
    last, covered = 0, scratch.high_counts[0]
    while covered < wanted:
        last += 1
        covered += scratch.high_counts[last]
    kept = 0
    for i in range(n):
        entry = scratch.entries[i]
        if entry >> high <= last:
            scratch.entries[kept] = entry
            kept += 1
    return kept


@compiled
def _rank(scratch, n, wanted, highest, lowest):
    """Returns entries whose lower half is the index of a value, the `wanted` highest first.

    Equal values stay in order. Two digits of a key that spans just the range of the values order
    nearly all of them (a radix sort, low digit first); those that share a key are sorted by value.
    `highest` and `lowest` are bits of the values: those of a positive float64, read as a whole
    number, order as the value does.
    """
    digit_bits = _DIGIT_BITS if n > _FEW_GENES else _DIGIT_BITS_OF_FEW
    size = 1 << digit_bits
    mask = np.uint64(size - 1)
    low, high = _KEY_SHIFT, _KEY_SHIFT + np.uint64(digit_bits)
    shift = _key_shift(highest, lowest, 2 * digit_bits)
    bits = scratch.values.view(np.uint64)
    entries, spare = scratch.entries, scratch.spare_entries
    scratch.high_counts[:size] = 0
    scratch.low_counts[:size] = 0
    for i in range(n):
        # Distance from the highest value, so that it comes first.
        key = (highest - bits[i]) >> shift
        entries[i] = key << _KEY_SHIFT | np.uint64(i)
        scratch.high_counts[key >> np.uint64(digit_bits)] += 1
    # What lies in higher buckets than the last wanted gene need not be sorted at all.
    kept = _cut(scratch, n, wanted, digit_bits) if wanted < n else n
    for i in range(kept):
        scratch.low_counts[(entries[i] >> low) & mask] += 1
    _running_sums(scratch.low_counts, size)
    _running_sums(scratch.high_counts, size)
    _scatter(entries, spare, scratch.low_counts, kept, low, mask)
    _scatter(spare, entries, scratch.high_counts, kept, high, mask)
    _sort_runs(entries, scratch.values, kept)
    return entries


@compiled
def _gather(counts, columns, inverse_total, column_tokens, inverse_medians, scratch):
    """Collects one cell's genes in column order; returns their number, highest and lowest bits."""
    bits = scratch.values.view(np.uint64)
    highest, lowest = np.uint64(0), _ALL_BITS
    n = 0
    for entry in range(len(counts)):
        column = np.uint32(columns[entry])
        token = column_tokens[column]
        if token < 0 or counts[entry] == 0:
            continue
        value = counts[entry] * inverse_total * TARGET_SUM
        scratch.values[n] = value * inverse_medians[column]
        scratch.tokens[n] = token
        highest, lowest = max(highest, bits[n]), min(lowest, bits[n])
        n += 1
    return n, highest, lowest


@compiled
def _gather_summed(counts, columns, inverse_total, column_tokens, inverse_medians, scratch):
    """As `_gather`; counts of columns of the same gene are summed at the first one's place."""
    place = scratch.place_of_token
    n = 0
    for entry in range(len(counts)):
        column = np.uint32(columns[entry])
        token = column_tokens[column]
        if token < 0 or counts[entry] == 0:
            continue
        if place[token] >= 0:
            scratch.values[place[token]] += counts[entry]
            continue
        place[token] = n
        scratch.values[n] = counts[entry]
        scratch.factors[n] = inverse_medians[column]
        scratch.tokens[n] = token
        n += 1
    bits = scratch.values.view(np.uint64)
    highest, lowest = np.uint64(0), _ALL_BITS
    for i in range(n):
        place[scratch.tokens[i]] = -1
        value = scratch.values[i] * inverse_total * TARGET_SUM
        scratch.values[i] = value * scratch.factors[i]
        highest, lowest = max(highest, bits[i]), min(lowest, bits[i])
    return n, highest, lowest


@compiled
def _encode_cells(
    data, indices, indptr, totals, column_tokens, inverse_medians, repeated, max_length, cls_id,
    eos_id, first, last, out, lengths, genes, scratch,
):  # fmt: skip
    """Writes the tokens of cells first..last-1 into `out`, cell after cell, and their numbers."""
    special = (cls_id >= 0) + (eos_id >= 0)
    at = 0
    for cell in range(first, last):
        begin = at
        # Positions from 0 on, and columns without a sign, spare a check of each.
        counts = data[indptr[cell] : indptr[cell + 1]]
        columns = indices[indptr[cell] : indptr[cell + 1]]
        inverse_total = 1.0 / totals[cell] if totals[cell] != 0 else 0.0
        if repeated:
            n, highest, lowest = _gather_summed(
                counts, columns, inverse_total, column_tokens, inverse_medians, scratch
            )
        else:
            n, highest, lowest = _gather(
                counts, columns, inverse_total, column_tokens, inverse_medians, scratch
            )
        genes[cell] = n
        if n == 0:
            continue
        kept = min(n, max_length - special)
        entries = _rank(scratch, n, kept, highest, lowest)
        if cls_id >= 0:
            out[at] = cls_id
            at += 1
        for i in range(kept):
            out[at + i] = scratch.tokens[entries[i] & _INDEX_MASK]
        at += kept
        if eos_id >= 0:
            out[at] = eos_id
            at += 1
        lengths[cell] = at - begin
