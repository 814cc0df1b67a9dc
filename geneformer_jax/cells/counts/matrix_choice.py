"""Which matrix of a source holds the raw counts, and sums of several matrices.

A matrix is judged by a sample of its first cells. A wrong guess cannot give wrong tokens: whichever
matrix is chosen is checked whole while it is read.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from scipy import sparse

from geneformer_jax.cells.counts.matrix import Piece, Pieces, Rows
from geneformer_jax.cells.counts.options import DEFAULT_LIMITS, CountOptions
from geneformer_jax.cells.counts.raw_counts import are_raw_counts
from geneformer_jax.common.errors import InputError, did_you_mean

# A sample is small: most matrices that hold no raw counts show it in their first cell.
SAMPLE_LIMITS = replace(
    DEFAULT_LIMITS, entries=1 << 16, piece_entries=1 << 16, dense_values=1 << 18
)
_SAMPLED_CELLS = 32
_SAMPLED_BATCHES = 8
MAIN = "X"
_PLUS = "+"
# AnnData's raw may have other genes than the layers, and cannot be added to them.
_OWN_GENES = "raw"

Sample = sparse.csr_matrix | np.ndarray
OpenMatrix = Callable[[str], Rows | Pieces]


def choose_matrices(
    names: Sequence[str], options: CountOptions, open_sample: OpenMatrix, where: str
) -> list[str]:
    """Returns the matrices that are to be read, and summed if several.

    Args:
      names: of all matrices; that of the main one, which may lack, is `MAIN`.
      options: `counts_layer` names one, or several joined by "+". None for the main one if it holds
        raw counts, or else the one that does; where none does the main one again: reading it will
        say what it holds. Of several that are the same in a sample the first is taken.
      open_sample: opens a matrix for reading a little of it, with `SAMPLE_LIMITS`.
      where: names the source in errors.

    Raises:
      InputError: one that is asked for is not there; or nothing is asked for, the main one holds no
        raw counts, and several different others do, or none is there.
    """
    if options.counts_layer is not None:
        return _asked(names, options.counts_layer, where)
    if len(names) == 1:
        return list(names)
    if MAIN in names and _is_raw(sample_of(open_sample(MAIN)), options.fractional):
        return [MAIN]
    samples = {name: _sample_or_none(open_sample, name) for name in names if name != MAIN}
    raw = {name: each for name, each in samples.items() if _is_raw(each, options.fractional)}
    if any(not _are_equal(next(iter(raw.values())), each) for each in raw.values()):
        raise InputError(f"{where}: {_describe_several(list(raw), MAIN in names)}")
    if not raw and MAIN not in names:
        raise InputError(f"{where} has no {MAIN}; {remedy_of(names, [])}")
    return [next(iter(raw), MAIN)]


def _asked(names: Sequence[str], asked: str, where: str) -> list[str]:
    parts = [asked] if asked in names else [part.strip() for part in asked.split(_PLUS)]
    for part in parts:
        if part not in names:
            near, remedy = did_you_mean(part, names), remedy_of(names, [part])
            raise InputError(f'{where} has no layer "{part}"{near}; {remedy}')
    return list(dict.fromkeys(parts))


def _describe_several(raw: Sequence[str], has_main: bool) -> str:
    listed = ", ".join(f'"{name}"' for name in raw)
    several = (
        f"{MAIN} holds no raw counts, but several others do"
        if has_main
        else "several matrices hold raw counts"
    )
    addable = [name for name in raw if name != _OWN_GENES][:2]
    example = f', which also takes a sum such as "{_PLUS.join(addable)}"'
    hint = example if len(addable) > 1 else ""
    return f"{several} ({listed}): choose by `counts_layer`{hint}"


def remedy_of(names: Sequence[str], chosen: Sequence[str]) -> str:
    """What to do if the chosen ones of a source's matrices hold no raw counts."""
    others = [name for name in names if name not in chosen]
    if not others:
        return "give a file with raw counts (this one has no other matrix)"
    listed = ", ".join(f'"{name}"' for name in others)
    return f"choose the matrix with raw counts by `counts_layer` (there is also: {listed})"


def sample_of(matrix: Rows | Pieces) -> Sample:
    """The first cells that hold anything; entries, where a matrix is not stored by cell."""
    if isinstance(matrix, Rows):
        parts = (rows for _, rows in matrix.rows(_SAMPLED_CELLS))
    else:
        parts = (piece.values for piece in matrix.pieces())
    part = np.empty(0)
    for part in islice(parts, _SAMPLED_BATCHES):
        if np.any(_values(part)):
            break
    return part


def _sample_or_none(open_sample: OpenMatrix, name: str) -> Sample | None:
    """A sample, or None of a matrix of a kind that cannot be read; it may never be asked for."""
    try:
        return sample_of(open_sample(name))
    except (InputError, OSError, ValueError, TypeError, LookupError):
        return None


def _values(sample: Sample) -> np.ndarray:
    return sample.data if sparse.issparse(sample) else sample


def _is_raw(sample: Sample | None, fractional: str | None) -> bool:
    holds_any = sample is not None and bool(np.any(_values(sample)))
    return holds_any and are_raw_counts(sample, fractional)


def _are_equal(one: Sample, other: Sample) -> bool:
    if one.shape != other.shape or sparse.issparse(one) != sparse.issparse(other):
        return False
    if sparse.issparse(one):
        return (one != other).nnz == 0
    return np.array_equal(one, other)


class SummedRows(Rows):
    """The sum of several matrices that can be read cell by cell.

    Entries stand beside each other, to be added once each has been checked: halves of a count
    would else make a whole one.
    """

    def __init__(self, parts: Sequence[Rows]):
        """Takes matrices of one shape."""
        self._parts, self.shape = parts, parts[0].shape
        self.together = math.lcm(*(part.together for part in parts))

    def sizes(self, first: int, stop: int) -> np.ndarray:
        """Returns [stop - first] about how many values each of these rows holds; reads none."""
        return np.sum([part.sizes(first, stop) for part in self._parts], axis=0)

    def rows(
        self, cells_per_batch: int, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yields (first row, rows) as asked for, an entry of several parts several times."""
        stop = self.shape[0] if stop is None else stop
        blocks = [_Blocks(part.rows(cells_per_batch, first, stop)) for part in self._parts]
        start, genes = first, self.shape[1]
        while start < stop:
            length = min(block.available() for block in blocks)
            rows = sparse.hstack([block.take(length) for block in blocks], format="csr")
            indices = rows.indices % genes
            yield start, sparse.csr_matrix((rows.data, indices, rows.indptr), (length, genes))
            start += length


class _Blocks:
    """Batches of rows of one matrix, taken in lengths that suit all."""

    def __init__(self, batches: Iterator[tuple[int, sparse.csr_matrix]]):
        self._batches, self._rest = batches, None

    def available(self) -> int:
        if self._rest is None or not self._rest.shape[0]:
            self._rest = next(self._batches)[1]
        return self._rest.shape[0]

    def take(self, length: int) -> sparse.csr_matrix:
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken


class SummedPieces(Pieces):
    """The sum of several matrices of which one at least cannot be read cell by cell."""

    def __init__(self, parts: Sequence[Rows | Pieces]):
        """Takes matrices of one shape."""
        self._parts, self.shape = parts, parts[0].shape
        known = [part.entries for part in parts if isinstance(part, Pieces)]
        # Only to size what they are sorted in; float64 holds every count.
        self.entries, self.dtype = max(known) * len(parts), np.dtype(np.float64)

    def pieces(self) -> Iterator[Piece]:
        """Yields the entries of one part after the other."""
        for part in self._parts:
            if isinstance(part, Pieces):
                yield from part.pieces()
                continue
            for start, rows in part.rows(_SAMPLED_CELLS):
                entries = rows.tocoo()
                yield Piece(entries.row.astype(np.int32) + start, entries.col, entries.data)


def sum_of(parts: Sequence[Rows | Pieces], where: str) -> Rows | Pieces:
    """Returns the sum of matrices; of one, itself.

    Raises:
      InputError: they have not the same shape.
    """
    if len(parts) == 1:
        return parts[0]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        listed = " and ".join(f"{cells} x {genes}" for cells, genes in sorted(shapes))
        raise InputError(f"{where}: matrices of {listed} cannot be added; name others")
    by_cell = all(isinstance(part, Rows) for part in parts)
    return SummedRows(parts) if by_cell else SummedPieces(parts)
