"""The rule for raw counts: whole numbers of at least 0, and what else a matrix may look like."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.numba_jit import compiled

# No cell has that many molecules, and above it float32 holds no longer every whole number: larger
# values are bytes read as another type (a float32 of 1, read as int32, is 1,065,353,216).
_MAX_COUNT = 1 << 24
# log1p of a count scaled to any usual total stays far below this.
_LARGEST_LOG = 30.0
_NEAR = 1e-2


class MatrixLocation(NamedTuple):
    """Where rows of a matrix come from, to name it in an error.

    Attributes:
      matrix: file and matrix.
      first_row: number of the first of the rows.
      cell_ids: of all cells of the matrix, of which one can be asked for.
      gene_ids: [columns] str.
      remedy: what the user can do about values that are not raw counts.
    """

    matrix: str
    first_row: int
    cell_ids: Sequence[str]
    gene_ids: np.ndarray
    remedy: str


class RawCounts(NamedTuple):
    """Checked rows of a matrix.

    Attributes:
      counts: [cells, genes] int32, indices sorted and distinct within a cell, no stored zero.
      sums: float64 [cells], exact sums of the counts.
    """

    counts: sparse.csr_matrix
    sums: np.ndarray


def as_raw_counts(rows: sparse.csr_matrix, location: MatrixLocation) -> RawCounts:
    """Checks rows of a matrix and brings them into one form.

    Entries that a file holds twice for one cell and gene are added, as in every sparse matrix.

    Args:
      rows: [cells, genes] of any numeric type; its index arrays must be within bounds.
      location: names for errors.

    Raises:
      InputError: a value is negative, not a whole number, not finite or above 2**24.
    """
    if rows.data.dtype.kind not in "iufb":
        raise InputError(f"{location.matrix}: holds {rows.data.dtype}, but raw counts are numbers")
    data = _in_a_common_type(rows.data)
    indices, indptr = (each.astype(np.int32, copy=False) for each in (rows.indices, rows.indptr))
    is_whole = data.dtype == np.int32
    whole, sums = np.empty(0 if is_whole else len(data), np.int32), np.zeros(rows.shape[0])
    sound, in_order, zeros = _check(data, indices, indptr, whole, sums)
    if not sound:
        raise _not_raw(rows, location)
    data = data if is_whole else whole
    counts = sparse.csr_matrix((data, indices, indptr), shape=rows.shape)
    counts.has_canonical_format = in_order
    if not in_order:
        counts = _add_duplicates(counts, location)
    if zeros:
        # A copy, because the index arrays may be those of an AnnData in memory.
        counts = counts.copy()
        counts.eliminate_zeros()
    return RawCounts(counts, sums)


def are_raw_counts(values: np.ndarray) -> bool:
    """Whether all of some values could be raw counts."""
    return values.dtype.kind in "iufb" and not np.any(_no_count(values))


def _no_count(values: np.ndarray) -> np.ndarray:
    """Which values are no raw counts."""
    within = np.isfinite(values) & (values >= 0) & (values <= _MAX_COUNT)
    return ~within | (values != np.floor(values))


def _in_a_common_type(data: np.ndarray) -> np.ndarray:
    """Values as one of the few types that `_check` is compiled for, none of them changed."""
    if data.dtype.isnative and data.dtype.type in (np.int32, np.int64, np.float32, np.float64):
        return data
    if np.can_cast(data.dtype, np.int32):
        return data.astype(np.int32)
    # uint64 beyond what int64 holds is rounded, and too large to be a count either way.
    return data.astype(np.int64 if np.can_cast(data.dtype, np.int64) else np.float64)


@compiled
def _check(data, indices, indptr, whole, sums):
    """Fills `whole` and `sums`; returns (all are sound, canonical, number of zeros).

    `whole` is empty where the data are int32 already.
    """
    steps_back, zeros, copied = 0, 0, len(whole) > 0
    for row in range(len(sums)):
        first, end = indptr[row], indptr[row + 1]
        total, wrong = np.int64(0), 0
        values, columns, counts = data[first:end], indices[first:end], whole[first:end]
        # No way out, and positions from 0 on: so the compiler can take many entries at a time.
        for i in range(end - first):
            value = values[i]
            count = np.int32(value if value >= 0 and value <= _MAX_COUNT else 0)
            wrong += count != value
            zeros += count == 0
            total += count
            if copied:
                counts[i] = count
        for i in range(end - first - 1):
            steps_back += columns[i + 1] <= columns[i]
        if wrong:
            return False, False, zeros
        sums[row] = total
    return True, steps_back == 0, zeros


def _add_duplicates(counts: sparse.csr_matrix, location: MatrixLocation) -> sparse.csr_matrix:
    wide = sparse.csr_matrix(
        (counts.data.astype(np.int64), counts.indices.copy(), counts.indptr), shape=counts.shape
    )
    wide.sum_duplicates()
    if wide.nnz and wide.data.max() > _MAX_COUNT:
        raise _not_raw(wide, location)
    return wide.astype(np.int32)


def _not_raw(rows: sparse.csr_matrix, location: MatrixLocation) -> InputError:
    """The error for the first value that is not a raw count."""
    data = rows.data
    entry = int(np.flatnonzero(_no_count(data))[0])
    row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
    value = data[entry]
    where = (
        f'{location.matrix}: cell "{location.cell_ids[location.first_row + row]}", '
        f'gene "{location.gene_ids[rows.indices[entry]]}": value {value:g}'
    )
    if not np.isfinite(value):
        return InputError(
            f"{where} is not a number; raw counts are needed: {location.remedy} (ad.concat with "
            'join="outer" leaves NaN where a file lacks a gene: give it fill_value=0)'
        )
    if value < 0:
        looks = " (scaled or corrected values?)"
        return InputError(f"{where} is negative{looks}; raw counts are needed: {location.remedy}")
    if value > _MAX_COUNT:
        return InputError(
            f"{where} is too large to be a raw count (at most {_MAX_COUNT:,}): {location.remedy}"
        )
    cell = data[rows.indptr[row] : rows.indptr[row + 1]]
    return InputError(
        f"{where} is not a whole number; raw counts are needed, and {_looks_like(cell)}: "
        f"{location.remedy}"
    )


def _looks_like(values: np.ndarray) -> str:
    """What was probably done to the counts of one cell, from its values."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if values.max() < _LARGEST_LOG and _are_multiples(np.expm1(values)):
        return "this looks log-transformed"
    if _are_multiples(values):
        return "this looks normalised (counts divided by a total)"
    if values.max() < _LARGEST_LOG:
        return "this looks log-transformed or scaled"
    return "this looks corrected or estimated"


def _are_multiples(values: np.ndarray) -> bool:
    """Whether all values are near whole multiples of the smallest one."""
    multiples = values / values.min()
    return bool(np.all(np.abs(multiples - np.rint(multiples)) <= _NEAR * multiples))
