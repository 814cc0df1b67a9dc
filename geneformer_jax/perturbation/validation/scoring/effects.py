"""What is compared: effects of perturbations as the model predicts, and as the screen has them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.statistics.moments import Moments, moments_of, pooled
from geneformer_jax.perturbation.validation.screen.expression import HALVES

# Arrays that are kept of a part, and merged over parts.
Arrays = Mapping[str, np.ndarray]


class Predicted(NamedTuple):
    """Mean effects of E edits on the control cells that they were made in.

    Attributes:
      tokens: int64 [E] the edited gene of each, ascending.
      cells: int64 [E].
      shifts: float64 [E, D] of the cell's embedding at unit length.
      gene_shifts: float32 [E, V], 1 - the mean cosine of each other gene before and after; NaN for
        genes that are in fewer than `min_cells` of these cells.
    """

    tokens: np.ndarray
    cells: np.ndarray
    shifts: np.ndarray
    gene_shifts: np.ndarray

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the place of each edited gene, shaped as `tokens`."""
        return np.searchsorted(self.tokens, tokens)


def predicted_sums(shifts: Shifts, width: int, size: int) -> dict[str, np.ndarray]:
    """Sums up the edits of one part, for `predicted_effects`.

    Args:
      shifts: with vectors of D = `width` behind the measures, and all genes.
      width: D.
      size: V.
    """
    tokens, edit = np.unique(shifts.sets_EK[:, 0], return_inverse=True)
    sums = np.zeros((len(tokens), width))
    np.add.at(sums, edit, shifts.values_EM[:, -width:].astype(np.float64))
    genes = shifts.sets_EK[shifts.gene_edits, 0].astype(np.int64) * size + shifts.affected
    moments = moments_of(genes, shifts.gene_values)
    return {
        "tokens": tokens.astype(np.int64),
        "cells": np.bincount(edit, minlength=len(tokens)),
        "sums": sums,
        "pairs": moments.keys,
        "counts": moments.counts,
        "means": moments.means,
    }


def predicted_effects(parts: Iterable[Arrays], size: int, min_cells: int) -> Predicted:
    """Joins what `predicted_sums` gave of all parts."""
    parts = list(parts)
    tokens, edit = np.unique(np.concatenate([p["tokens"] for p in parts]), return_inverse=True)
    cells = np.bincount(edit, np.concatenate([p["cells"] for p in parts])).astype(np.int64)
    sums = np.zeros((len(tokens), parts[0]["sums"].shape[1]))
    np.add.at(sums, edit, np.concatenate([p["sums"] for p in parts]))
    genes = pooled([
        Moments(p["pairs"], p["counts"], p["means"], np.zeros(len(p["pairs"]))) for p in parts
    ])  # fmt: skip
    known = genes.counts >= min_cells
    edited, affected = np.divmod(genes.keys[known], size)
    gene_shifts = np.full((len(tokens), size), np.nan, np.float32)
    gene_shifts[np.searchsorted(tokens, edited), affected] = 1 - genes.means[known]
    return Predicted(tokens, cells, sums / cells[:, None], gene_shifts)


def measured_sums(
    embeddings_CD: np.ndarray, groups: np.ndarray, halves: np.ndarray, number: int
) -> dict[str, np.ndarray]:
    """Sums up the embeddings, at unit length, of the cells of one part by group and half.

    Args:
      embeddings_CD: of the cells.
      groups: int64 [cells] 0 to G-1, negative ones take no part.
      halves: int64 [cells].
      number: G.
    """
    lengths = np.linalg.norm(embeddings_CD, axis=1, keepdims=True)
    units = embeddings_CD.astype(np.float64) / np.maximum(lengths, 1e-8)
    own = groups >= 0
    group = groups[own] * HALVES + halves[own]
    sums = np.zeros((number * HALVES, embeddings_CD.shape[1]))
    np.add.at(sums, group, units[own])
    cells = np.bincount(group, minlength=number * HALVES)
    return {"sums": sums, "cells": cells}


def measured_shifts(parts: Iterable[Arrays]) -> np.ndarray:
    """Joins what `measured_sums` gave of all parts.

    Returns:
      float64 [2, P, D] in each half the mean of each perturbation less that of the controls, which
      are the last group.
    """
    parts = list(parts)
    sums, cells = (sum(part[name] for part in parts) for name in ("sums", "cells"))
    means = (sums / cells[:, None]).reshape(-1, HALVES, sums.shape[1])
    return (means[:-1] - means[-1]).swapaxes(0, 1)
