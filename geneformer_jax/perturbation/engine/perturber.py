"""Makes the edits of a plan exactly, each by an encoding of its own."""

import functools
from dataclasses import replace

import numpy as np

from geneformer_jax.inference.pipeline import run_ahead
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.sharding import BATCH
from geneformer_jax.perturbation.engine.batches import lay_out_edits
from geneformer_jax.perturbation.engine.edits import EditBatch, ranks_at
from geneformer_jax.perturbation.engine.encoding import REPLICATED, ForwardSpec
from geneformer_jax.perturbation.engine.engine import Engine
from geneformer_jax.perturbation.engine.forward import (
    BaselineCells,
    encode_baseline,
    perturb_batch,
)
from geneformer_jax.perturbation.engine.plan import EditPlan
from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.layout import CELL

MIN_BATCHES, MIN_CONSECUTIVE = 4, 32


class Perturber(Engine):
    """Makes ranges of the edits of a plan exactly."""

    def __init__(
        self,
        model: PretrainedModel,
        plan: EditPlan,
        spec: ForwardSpec,
        states_SD: np.ndarray | None = None,
        *,
        tokens_per_device: int | None = None,
        min_batches: int = MIN_BATCHES,
        min_consecutive: int = MIN_CONSECUTIVE,
    ):
        """Readies the devices.

        Args:
          model, plan, spec, states_SD, tokens_per_device: see `Engine`.
          min_batches: all devices share the edits of one cell where these fill at least this many
            batches; otherwise each has cells of its own.
          min_consecutive: edits of consecutive genes, at least, that share the first block where it
            pays; 0 shares none.
        """
        super().__init__(model, plan, spec, states_SD, tokens_per_device=tokens_per_device)
        # The mean cosine of the other genes is NaN where none is left.
        self._always_known = int(spec.mode == CELL)
        self._min_batches, self._min_consecutive = min_batches, min_consecutive
        bucket = np.searchsorted(self.lengths, plan.longest)
        self._edits_per_cell = {
            int(T): _mean_edits(plan.made[bucket == b]) for b, T in enumerate(self.lengths)
        }

    def _together(self, padded: int) -> int:
        return max(self._own_cells(padded) * self.spec.mesh.size, 1)

    def _own_cells(self, padded: int) -> int:
        """Cells at hand on each device; 0 where all devices share the edits of one cell."""
        rows = self._rows[padded]
        edits = max(self._edits_per_cell[padded], 1.0)
        if edits >= self._min_batches * rows * self.spec.mesh.size:
            return 0
        return int(np.clip(np.ceil(self._min_batches * rows / edits), 1, rows))

    def _run_batches(self, padded: int, edits: list[EditBatch]) -> list[Shifts]:
        rows, devices, own = self._rows[padded], self.spec.mesh.size, self._own_cells(padded)
        spec = replace(self.spec, spread=own > 0)
        if not own and self._shares_first_block(edits):
            spec = replace(spec, consecutive=self.plan.consecutive, together=rows)
            rows *= -(-self._min_consecutive // rows)
        cells, batches = lay_out_edits(self.plan, edits, padded, rows, devices, own)
        cells = self._put(cells, BATCH if own else REPLICATED)
        with self.throughput.starting((spec, *cells.tokens_CT.shape)):
            cells = encode_baseline(spec, self._params, self._states, cells)
        start = functools.partial(self._start, spec, cells)
        made = run_ahead(batches, start)
        return [self._collect(batch, results, padded) for batch, results in made]

    def _shares_first_block(self, edits: list[EditBatch]) -> bool:
        # On a CPU that block takes a third or a quarter of the time; not measured elsewhere.
        on_cpu = self.spec.mesh.devices.flat[0].platform == "cpu"
        possible = self._min_consecutive and self.plan.consecutive and self.spec.blocks > 0
        if not on_cpu or not possible:
            return False
        # A gene that a cell lists twice would be edited at its first place both times.
        return all((np.diff(each.positions[:, 0]) == 1).all() for each in edits)

    def _start(self, spec: ForwardSpec, cells: BaselineCells, batch: EditBatch) -> tuple:
        """Starts a batch on the devices, and counts it."""
        edits = self._put(batch.for_device(), BATCH)
        is_real, (rows, padded) = batch.numbers >= 0, (len(batch.numbers), cells.tokens_CT.shape[1])
        with self.throughput.starting((spec, padded, rows)):
            results = perturb_batch(spec, self._params, self._states, cells, edits)
        edited = self.plan.cell_of(batch.numbers[is_real])
        # Groups of nothing but fillers are left out where the first block is shared.
        together = spec.together or rows
        is_encoded = is_real.reshape(-1, together).any(axis=1)
        encoded = int(is_encoded.sum()) * together
        self.throughput.add(len(edited), int(self.plan.longest[edited].sum()), encoded * padded)
        return results

    def _collect(self, batch: EditBatch, results: tuple, padded: int) -> Shifts:
        """Returns the results of a batch, without those of fillers."""
        is_real = batch.numbers >= 0
        values_EM, cosines_EN, tokens_EN = (each[is_real] for each in results)
        is_there = ~np.isinf(cosines_EN)
        edits = np.arange(len(values_EM), dtype=np.int32)
        return Shifts(
            numbers=batch.numbers[is_real],
            cells=self.plan.cell_of(batch.numbers[is_real]).astype(np.int32),
            sets_EK=batch.sets[is_real],
            ranks_E=ranks_at(self.plan.special, batch.positions[is_real, 0], padded),
            values_EM=values_EM,
            gene_edits=np.broadcast_to(edits[:, None], is_there.shape)[is_there],
            affected=tokens_EN[is_there],
            gene_values=cosines_EN[is_there],
        )


def _mean_edits(edits: np.ndarray) -> float:
    """Returns the mean number of edits of the cells that have any."""
    return float(edits.sum() / max(np.count_nonzero(edits), 1))
