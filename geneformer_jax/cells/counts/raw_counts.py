"""The rule for raw counts: whole numbers of at least 0, and what else a matrix may look like.

On request estimated counts are taken, too, which need not be whole: of aligners that share a read
among genes (STARsolo's EM, alevin-fry, kb), or with the background taken off (SoupX, decontX).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from geneformer_jax.cells.counts.options import KEEP, ROUND
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.threads import compiled

# No cell has that many molecules, and above it float32 holds no longer every whole number: larger
# values are bytes read as another type (a float32 of 1, read as int32, is 1,065,353,216).
_MAX_COUNT = 1 << 24
# log1p of a count scaled to any usual total stays far below this.
_LARGEST_LOG = 30.0
_NEAR = 1e-2
# Larger multiples are near a whole number whatever they are.
_LARGEST_TELLING = 0.25 / _NEAR
_LOGARITHMS = "log-transformed"
# Of values that were divided or transformed, fewer are whole by chance.
_OFTEN = 0.2
_TAKE_FRACTIONAL = (
    f'estimated counts are taken by `fractional`: "{ROUND}", or "{KEEP}" (ranked as they are)'
)
# So many cells are looked at for logarithms, those of so many different values.
_CELLS_LOOKED_AT, _DIFFERENT_VALUES = 20, 4


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
      counts: [cells, genes] int32 (float64 if fractions are kept), indices sorted and distinct
        within a cell, no stored zero.
      sums: float64 [cells], exact sums of the counts.
    """

    counts: sparse.csr_matrix
    sums: np.ndarray


def as_raw_counts(
    rows: sparse.csr_matrix, location: MatrixLocation, fractional: str | None = None
) -> RawCounts:
    """Checks rows of a matrix and brings them into one form.

    Entries that a file holds twice for one cell and gene are added, as in every sparse matrix.

    Args:
      rows: [cells, genes] of any numeric type; its index arrays must be within bounds.
      location: names for errors.
      fractional: "round" takes estimated counts as the nearest whole number (of two as near the
        even one), after entries held twice are added; "keep" takes them as they are; None refuses
        them.

    Raises:
      InputError: a value is negative, not a whole number, not finite or above 2**24; or, where
        fractions are allowed, a logarithm.
    """
    if rows.data.dtype.kind not in "iufb":
        raise InputError(f"{location.matrix}: holds {rows.data.dtype}, but raw counts are numbers")
    if fractional is not None:
        return _as_estimated_counts(rows, location, fractional)
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


def are_raw_counts(sample: sparse.csr_matrix | np.ndarray, fractional: str | None = None) -> bool:
    """Whether cells (or some values) could be raw counts, or estimated ones where allowed."""
    values = sample.data if sparse.issparse(sample) else sample
    if values.dtype.kind not in "iufb":
        return False
    if fractional is None:
        return not np.any(_no_count(values))
    logarithms = sparse.issparse(sample) and _look_like_logarithms(sample)
    return not (logarithms or np.any(_no_amount(values)))


def _as_estimated_counts(
    rows: sparse.csr_matrix, location: MatrixLocation, fractional: str
) -> RawCounts:
    counts = rows.astype(np.float64)
    if np.any(_no_amount(counts.data)):
        raise _not_raw(rows, location, _no_amount)
    if _look_like_logarithms(counts):
        # Ranks of logarithms divided by medians would be others.
        raise InputError(
            f"{location.matrix}: looks {_LOGARITHMS}, and logarithms are no estimated counts: "
            f"{location.remedy}"
        )
    counts.sum_duplicates()
    if counts.data.max(initial=0) > _MAX_COUNT:
        raise _not_raw(counts, location, _no_amount)
    if fractional == ROUND:
        counts = sparse.csr_matrix(
            (np.rint(counts.data).astype(np.int32), counts.indices, counts.indptr), counts.shape
        )
    counts.eliminate_zeros()
    return RawCounts(counts, np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel())


def _no_amount(values: np.ndarray) -> np.ndarray:
    """Which values are no estimated counts."""
    return ~np.isfinite(values) | (values < 0) | (values > _MAX_COUNT)


def _no_count(values: np.ndarray) -> np.ndarray:
    """Which values are no raw counts."""
    return _no_amount(values) | (values != np.floor(values))


def _look_like_logarithms(rows: sparse.csr_matrix) -> bool:
    """Whether all cells that tell look log-transformed."""
    looked_at = 0
    for row in range(rows.shape[0]):
        values = np.unique(rows.data[rows.indptr[row] : rows.indptr[row + 1]])
        values = values[values > 0]
        if len(values) < _DIFFERENT_VALUES:
            continue
        if not _are_logarithms(values):
            return False
        looked_at += 1
        if looked_at == _CELLS_LOOKED_AT:
            break
    return looked_at > 0


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


def _not_raw(
    rows: sparse.csr_matrix,
    location: MatrixLocation,
    wrong: Callable[[np.ndarray], np.ndarray] = _no_count,
) -> InputError:
    """The error for the first value that is not a raw count, or wrong by another rule."""
    data = rows.data
    entry = int(np.flatnonzero(wrong(data))[0])
    row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
    value = data[entry]
    where = (
        f'{location.matrix}: cell "{location.cell_ids[location.first_row + row]}", '
        f'gene "{location.gene_ids[rows.indices[entry]]}": value {value:g}'
    )
    if np.isinf(value):
        return InputError(f"{where} is infinite; raw counts are needed: {location.remedy}")
    if np.isnan(value):
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
    looks = _looks_like(data[rows.indptr[row] : rows.indptr[row + 1]])
    remedies = [location.remedy, *([] if looks == _LOGARITHMS else [_TAKE_FRACTIONAL])]
    return InputError(
        f"{where} is not a whole number; raw counts are needed, and this looks {looks}: "
        + "; ".join(remedies)
    )


def _looks_like(values: np.ndarray) -> str:
    """What was probably done to the counts of one cell, from its values."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if _are_logarithms(values):
        return _LOGARITHMS
    if _are_multiples(values):
        return "normalised (counts divided by a total)"
    if np.mean(values == np.floor(values)) > _OFTEN:
        return "estimated (reads shared among genes)"
    if values.max() < _LARGEST_LOG:
        return f"{_LOGARITHMS}, scaled or corrected"
    return "corrected or estimated"


def _are_logarithms(values: np.ndarray) -> bool:
    """Whether all values, above 0, look like log1p of counts or of counts divided by a total."""
    return bool(values.max() < _LARGEST_LOG and _are_multiples(np.expm1(values)))


def _are_multiples(values: np.ndarray) -> bool:
    """Whether values are near whole multiples of the smallest one, as far as that can be told."""
    multiples = values / values.min()
    telling = multiples[(multiples > 1 + _NEAR) & (multiples < _LARGEST_TELLING)]
    return telling.size > 0 and bool(np.all(np.abs(telling - np.rint(telling)) <= _NEAR * telling))
