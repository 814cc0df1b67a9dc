"""Non-zero medians of genes over a corpus: exact while they fit in memory, bounded beyond.

The median of a gene is that of counts / total x 10,000 over the cells that express it (Nature
2023, "Gene median"). The original keeps one t-digest per gene; here all values are kept as long as
they fit, and beyond that a histogram with logarithmic bins (the idea of DDSketch), whose answer
is within `RELATIVE_ERROR` of the exact one and does not depend on the order of cells or files.
"""

import math
from collections.abc import Mapping

import numba
import numpy as np
from scipy import sparse

from geneformer_jax.cells.tokenization.rank_encoding import TARGET_SUM
from geneformer_jax.common.threads import compiled

RELATIVE_ERROR = 0.0025
DEFAULT_BYTES_FOR_EXACT = 1 << 31
_LOG_WIDTH = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
# A bin's answer that is off by the same fraction at both of its ends.
_BIN_VALUE = 2 / (1 + (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
BYTES_PER_VALUE = 12
_SPARE_BINS = 64
_MAX_CELLS = np.iinfo(np.uint32).max


class MedianAccumulator:
    """Collects expression values cell by cell and answers with the genes' non-zero medians.

    Accumulators of several files or processes may be merged in any order; genes are numbered by
    the caller, alike for all of them.
    """

    def __init__(self, n_genes: int, bytes_for_exact: int = DEFAULT_BYTES_FOR_EXACT):
        """Starts empty.

        Args:
          n_genes: number of genes.
          bytes_for_exact: memory for keeping all values; beyond it the histogram takes over.
        """
        self.n_genes = n_genes
        self.detected = np.zeros(n_genes, dtype=np.int64)
        self._bytes_for_exact = bytes_for_exact
        self._kept_genes: list[np.ndarray] = []
        self._kept_values: list[np.ndarray] = []
        self._kept = 0
        self._bins: np.ndarray | None = None
        self._first_bin = 0

    @property
    def exact(self) -> bool:
        """Whether the medians are exact (else within `RELATIVE_ERROR`)."""
        return self._bins is None

    def add(self, counts: sparse.csr_matrix, totals: np.ndarray, genes: np.ndarray) -> None:
        """Adds cells.

        Args:
          counts: [cells, columns] raw counts.
          totals: [cells] all counts of each cell over all genes of its source.
          genes: [columns] int, number of each column's gene, -1 to leave the column out. Columns of
            one gene are summed.
        """
        genes = np.asarray(genes)
        kept = np.flatnonzero(genes >= 0)
        if len(np.unique(genes[kept])) < len(kept):
            shape = (len(genes), self.n_genes)
            merge = sparse.csr_matrix((np.ones(len(kept)), (kept, genes[kept])), shape=shape)
            counts, genes = sparse.csr_matrix(counts @ merge), np.arange(self.n_genes)
        numbers = genes[counts.indices]
        used = (numbers >= 0) & (counts.data != 0)
        cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))[used]
        inverse_totals = np.divide(1.0, totals, where=totals > 0, out=np.zeros(len(totals)))
        values = counts.data[used].astype(np.float64) * inverse_totals[cell] * TARGET_SUM
        self._take(numbers[used].astype(np.int32), values)

    def merge(self, other: "MedianAccumulator") -> None:
        """Takes over everything that `other` has collected."""
        for genes, values in zip(other._kept_genes, other._kept_values, strict=True):
            self._take(genes, values)
        if other._bins is not None:
            self.merge_arrays(other.to_arrays())

    def count_in_bins(self) -> None:
        """Turns from kept values to the histogram; later calls change nothing."""
        if self._bins is not None:
            return
        self._bins = np.zeros((self.n_genes, 0), dtype=np.uint32)
        for genes, values in zip(self._kept_genes, self._kept_values, strict=True):
            self._count_in_bins(genes, values)
        self._kept_genes, self._kept_values, self._kept = [], [], 0

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything collected so far, to be kept in a file; see `merge_arrays`."""
        if self._bins is not None:
            # Few of the bins of a share are filled.
            genes, bins = np.nonzero(self._bins)
            numbers = (bins + self._first_bin).astype(np.int32)
            cells = self._bins[genes, bins]
            return {"genes": genes.astype(np.int32), "bins": numbers, "cells": cells}
        genes = [np.empty(0, np.int32), *self._kept_genes]
        return {"genes": np.concatenate(genes), "values": np.concatenate([[], *self._kept_values])}

    def merge_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over what `to_arrays` of another accumulator of the same genes returned."""
        if "bins" in arrays:
            self._add_to_bins(arrays["genes"], arrays["bins"], arrays["cells"])
        else:
            self._take(arrays["genes"], arrays["values"])

    def medians(self) -> np.ndarray:
        """Returns [genes] float64, NaN for genes that no cell expresses."""
        return self._exact_medians() if self._bins is None else self._histogram_medians()

    def _add_to_bins(self, genes: np.ndarray, bins: np.ndarray, cells: np.ndarray) -> None:
        """Adds numbers of cells to bins of genes, each of which is named once."""
        self.count_in_bins()
        if len(bins):
            self._cover(int(bins.min()), int(bins.max()))
            self._count_detected(np.bincount(genes, cells, self.n_genes).astype(np.int64))
            self._bins[genes, bins - self._first_bin] += cells

    def _take(self, genes: np.ndarray, values: np.ndarray) -> None:
        self._count_detected(np.bincount(genes, minlength=self.n_genes))
        if self._bins is not None:
            self._count_in_bins(genes, values)
            return
        self._kept_genes.append(genes)
        self._kept_values.append(values)
        self._kept += len(values)
        if self._kept * BYTES_PER_VALUE > self._bytes_for_exact:
            self.count_in_bins()

    def _count_detected(self, cells: np.ndarray) -> None:
        self.detected += cells
        if self.detected.max(initial=0) > _MAX_CELLS:
            raise OverflowError(f"more than {_MAX_CELLS:,} cells express one gene")

    def _count_in_bins(self, genes: np.ndarray, values: np.ndarray) -> None:
        if not len(values):
            return
        bins = np.ceil(np.log(values) / _LOG_WIDTH).astype(np.int64)
        self._cover(int(bins.min()), int(bins.max()))
        _count(self._bins, genes, bins - self._first_bin)

    def _cover(self, lowest: int, highest: int) -> None:
        """Widens the histogram to hold these bins."""
        width = self._bins.shape[1]
        if width == 0:
            self._first_bin = lowest
        before = max(0, self._first_bin - lowest)
        after = max(0, highest - (self._first_bin + width - 1))
        if before or after:
            before, after = (extra + _SPARE_BINS if extra else 0 for extra in (before, after))
            self._bins = np.pad(self._bins, ((0, 0), (before, after)))
            self._first_bin -= before

    def _exact_medians(self) -> np.ndarray:
        result = np.full(self.n_genes, np.nan)
        if self._kept == 0:
            return result
        genes, values = np.concatenate(self._kept_genes), np.concatenate(self._kept_values)
        values = values[np.argsort(genes, kind="stable")]
        stops = np.cumsum(self.detected)
        for gene in np.flatnonzero(self.detected):
            result[gene] = np.median(values[stops[gene] - self.detected[gene] : stops[gene]])
        return result

    def _histogram_medians(self) -> np.ndarray:
        result = np.full(self.n_genes, np.nan)
        for gene in np.flatnonzero(self.detected):
            reached = np.cumsum(self._bins[gene], dtype=np.int64)
            count = reached[-1]
            middle = np.array([(count - 1) // 2, count // 2])
            bins = self._first_bin + np.searchsorted(reached, middle, side="right")
            result[gene] = np.mean(np.exp(bins * _LOG_WIDTH) * _BIN_VALUE)
        return result


@compiled
def _count(bins, genes, positions):
    one = numba.uint32(1)
    for i in range(len(genes)):
        bins[genes[i], positions[i]] += one
