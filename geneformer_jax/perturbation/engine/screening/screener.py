"""Estimates what deleting each gene does, from a few passes of each cell; see `passes`."""

from functools import partial

import jax
import numpy as np

from geneformer_jax.inference.pipeline import run_ahead
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.sharding import BATCH
from geneformer_jax.perturbation.engine.edits import EditBatch, ranks_at
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.engine import Engine
from geneformer_jax.perturbation.engine.plan import EditPlan
from geneformer_jax.perturbation.engine.screening.passes import (
    Derivatives,
    differentiate,
    values_when_moved,
)
from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.layout import SPLIT_POINTS

# What both derivatives cost, in encodings: a forward pass each, and one that the way back makes
# again; a backward pass takes two for each value.
_FORWARD, _BACKWARD = 4, 4


def encodings_of_screen(split_points: int, values: int) -> int:
    """Returns what screening a cell takes, in encodings of a cell.

    Args:
      split_points: of the cell.
      values: that are estimated of each edit, see `ForwardSpec.screened`.
    """
    return split_points - 2 + _FORWARD + _BACKWARD * values


class Screener(Engine):
    """Estimates ranges of the edits of a plan, which are deletions of one gene each.

    Values are the estimated shifts towards each state and in the probability of each class (see
    `ForwardSpec.screened`), and then of each the part that comes from the later tokens, which move
    up.
    """

    def __init__(
        self,
        model: PretrainedModel,
        plan: EditPlan,
        spec: ForwardSpec,
        states_SD: np.ndarray,
        *,
        split_points: int = SPLIT_POINTS,
        tokens_per_device: int | None = None,
    ):
        """Readies the devices.

        Args:
          model, plan, spec, states_SD, tokens_per_device: see `Engine`.
          split_points: positions of each cell, at least 2, at which the effect of moving all later
            tokens is evaluated; cells with fewer take each of theirs.
        """
        super().__init__(model, plan, spec, states_SD, tokens_per_device=tokens_per_device)
        self._inner = split_points - 2

    def _own_cells(self, padded: int) -> int:
        """Cells at hand on each device."""
        return max(self._rows[padded] // max(self._inner, 1), 1)

    def _together(self, padded: int) -> int:
        return self._own_cells(padded) * self.spec.mesh.size

    def _run_batches(self, padded: int, edits: list[EditBatch]) -> list[Shifts]:
        cells = _CellsAtHand(edits, self._together(padded), padded, self.plan)
        splits_CK = cells.splits(self._inner)
        placed = self._put((cells.tokens_CT, cells.lengths_C), BATCH)
        moved, whole = (self._differentiate(placed, splits_CK[:, k]) for k in (0, -1))
        inner_CKS = self._evaluate(placed, splits_CK[:, 1:-1])
        values_CKS = np.concatenate(
            [moved.values_CS[:, None], inner_CKS, whole.values_CS[:, None]], axis=1
        )
        moving_CST = (moved.moving_CST + whole.moving_CST) / 2
        passes = encodings_of_screen(self._inner + 2, len(self.spec.screened))
        done, cells_tokens = sum(len(each.numbers) for each in edits), int(cells.lengths_C.sum())
        self.throughput.add(done, passes * cells_tokens, passes * cells.tokens_CT.size)
        return [
            self._estimate(own, splits_CK[c], values_CKS[c], moving_CST[c], whole.removal_CST[c])
            for c, own in enumerate(edits)
        ]

    def _differentiate(self, placed: tuple, positions_C: np.ndarray) -> Derivatives:
        positions_C = self._put(positions_C.astype(np.int32), BATCH)
        with self.throughput.starting((self.spec, placed[0].shape)):
            found = differentiate(self.spec, self._params, self._states, *placed, positions_C)
        # Fetched before more is started, which would take memory beside.
        return jax.device_get(found)

    def _evaluate(self, placed: tuple, positions_CK: np.ndarray) -> np.ndarray:
        """Returns the values [C, K, S] of cells whose tokens behind these positions moved."""
        own = len(positions_CK) // self.spec.mesh.size
        rows = max(self._rows[placed[0].shape[1]] // own, 1)
        slots_C = np.tile(np.arange(own, dtype=np.int32), self.spec.mesh.size)
        columns = [
            positions_CK[:, begin : begin + rows] for begin in range(0, positions_CK.shape[1], rows)
        ]
        start = partial(self._start_evaluation, placed, slots_C, rows)
        found = [
            values.reshape(len(positions_CK), rows, -1)[:, : chosen.shape[1]]
            for chosen, values in run_ahead(columns, start)
        ]
        empty = np.zeros((len(positions_CK), 0, len(self.spec.screened)), np.float32)
        return np.concatenate([empty, *found], axis=1)

    def _start_evaluation(
        self, placed: tuple, slots_C: np.ndarray, rows: int, positions_CK: np.ndarray
    ) -> jax.Array:
        filled = np.pad(positions_CK, ((0, 0), (0, rows - positions_CK.shape[1])), mode="edge")
        batch = self._put((np.repeat(slots_C, rows), filled.reshape(-1).astype(np.int32)), BATCH)
        with self.throughput.starting((self.spec, placed[0].shape, rows)):
            return values_when_moved(self.spec, self._params, self._states, *placed, *batch)

    def _estimate(
        self,
        edits: EditBatch,
        splits_K: np.ndarray,
        values_KS: np.ndarray,
        moving_ST: np.ndarray,
        removal_ST: np.ndarray,
    ) -> Shifts:
        """Returns the estimates for the edits of one cell."""
        positions = edits.positions[:, 0]
        values_KS = values_KS.astype(np.float64)
        moved_ST = bridge(splits_K, values_KS, moving_ST)
        reranking_ES = (moved_ST[:, positions] - values_KS[-1][:, None]).T
        shifts_ES = reranking_ES + removal_ST[:, positions].T
        return self._shifts_of(edits, np.concatenate([shifts_ES, reranking_ES], axis=1))

    def _shifts_of(self, edits: EditBatch, values_EM: np.ndarray) -> Shifts:
        nothing = np.zeros(0, np.int32)
        return Shifts(
            numbers=edits.numbers,
            cells=self.plan.cell_of(edits.numbers).astype(np.int32),
            sets_EK=edits.sets,
            ranks_E=ranks_at(self.plan.special, edits.positions[:, 0], int(self.lengths[-1])),
            values_EM=values_EM.astype(np.float32),
            gene_edits=nothing,
            affected=nothing,
            gene_values=np.zeros(0, np.float32),
        )


class Reranker(Screener):
    """Makes the part of deletions that comes from the later tokens, by an encoding of each."""

    def _run_batches(self, padded: int, edits: list[EditBatch]) -> list[Shifts]:
        cells = _CellsAtHand(edits, self._together(padded), padded, self.plan)
        placed = self._put((cells.tokens_CT, cells.lengths_C), BATCH)
        longest = max(len(each.numbers) for each in edits)
        # Behind the last token nothing moves.
        positions_CK = np.repeat(cells.lengths_C[:, None] - 1, longest + 1, axis=1)
        for own_K, each in zip(positions_CK, edits, strict=False):
            own_K[: len(each.numbers)] = each.positions[:, 0]
        values_CKS = self._evaluate(placed, positions_CK)
        return [
            self._shifts_of(each, values_KS[: len(each.numbers)] - values_KS[-1])
            for values_KS, each in zip(values_CKS, edits, strict=False)
        ]


class _CellsAtHand:
    """Cells as arrays of fixed shape, filled up with empty ones."""

    def __init__(self, edits: list[EditBatch], total: int, padded: int, plan: EditPlan):
        self._first = plan.special.first
        self.tokens_CT = np.zeros((total, padded), np.int32)
        self.lengths_C = np.zeros(total, np.int32)
        for slot, each in enumerate(edits):
            tokens = plan.special.tokens_in_sight(each.cells[0])
            self.tokens_CT[slot, : len(tokens)] = tokens
            self.lengths_C[slot] = len(tokens)

    def splits(self, inner: int) -> np.ndarray:
        """Returns positions int [C, inner + 2], evenly from each first gene to the last token."""
        last_C = np.maximum(self.lengths_C - 1, self._first)
        fractions = np.linspace(0, 1, inner + 2)
        return np.rint(self._first + fractions * (last_C - self._first)[:, None]).astype(int)


def bridge(splits_K: np.ndarray, values_KS: np.ndarray, moving_ST: np.ndarray) -> np.ndarray:
    """Returns the cosine after all tokens behind each position have moved, float64 [S, T].

    Between split points it follows what moving one token more adds, and is then corrected linearly
    so that it meets the values there.

    Args:
      splits_K: ascending positions, the last that of the last token.
      values_KS: cosines there.
      moving_ST: what moving each token adds, about.
    """
    splits_K, places = np.unique(splits_K, return_index=True)
    # Where a short cell has a split point twice, the cell as it is counts.
    last, values_KS = splits_K[-1], values_KS[[*places[:-1], -1]]
    # Behind the last token nothing moves.
    behind_ST = np.zeros(moving_ST.shape)
    behind_ST[:, :last] = np.cumsum(moving_ST[:, last:0:-1], axis=1, dtype=np.float64)[:, ::-1]
    missing_KS = values_KS - behind_ST[:, splits_K].T
    places = np.arange(moving_ST.shape[1])
    corrections = [np.interp(places, splits_K, missing_K) for missing_K in missing_KS.T]
    return behind_ST + np.stack(corrections)
