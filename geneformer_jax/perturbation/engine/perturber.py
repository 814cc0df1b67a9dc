"""Makes the edits of a plan on all devices, a range of them at a time."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.inference.pipeline import Throughput, run_ahead
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.sharding import BATCH
from geneformer_jax.perturbation.engine.batches import (
    choose_rows,
    is_out_of_memory,
    lay_out_edits,
    split_by_cut,
    tokens_worth_compiling,
)
from geneformer_jax.perturbation.engine.edits import EditBatch
from geneformer_jax.perturbation.engine.forward import (
    REPLICATED,
    BaselineCells,
    ForwardSpec,
    encode_baseline,
    perturb_batch,
)
from geneformer_jax.perturbation.engine.plan import EditPlan, choose_lengths

# Padded lengths are multiples of this: kernels of accelerators want 128.
_MULTIPLE = {"cpu": 16}
_ACCELERATOR_MULTIPLE = 128
MIN_BATCHES, MIN_CONSECUTIVE = 4, 32


class Shifts(NamedTuple):
    """What some edits did.

    Attributes:
      numbers: int64 [E] number of each edit in the plan.
      cells: int32 [E] the perturbed cell.
      sets_EK: int32 the perturbed genes, filled up with -1.
      values_EM: float32 the measures, in the order of `ForwardSpec.measures`.
      gene_edits: int32 [N] which of these edits a value of a gene belongs to.
      affected: int32 [N] token of the gene.
      gene_values: float32 [N] its cosine.
    """

    numbers: np.ndarray
    cells: np.ndarray
    sets_EK: np.ndarray
    values_EM: np.ndarray
    gene_edits: np.ndarray
    affected: np.ndarray
    gene_values: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["Shifts"]) -> "Shifts":
        """Puts shifts together, in the order of the plan."""
        first = np.cumsum([0, *(len(part.numbers) for part in parts)])
        gene_edits = [part.gene_edits + begin for part, begin in zip(parts, first, strict=False)]
        numbers, cells, sets, values, _, affected, gene_values = map(
            np.concatenate, zip(*parts, strict=True)
        )
        order = np.argsort(numbers)
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        gene_edits = place[np.concatenate(gene_edits)]
        genes = np.argsort(gene_edits, kind="stable")
        return cls(
            numbers[order],
            cells[order],
            sets[order],
            values[order],
            gene_edits[genes],
            affected[genes],
            gene_values[genes],
        )


class Perturber:
    """Makes ranges of the edits of a plan exactly, all with the same compiled programs."""

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
        """Chooses buckets and batches, and puts the weights on the devices.

        Args:
          model: that perturbs.
          plan: the edits.
          spec: what is computed of them, and where.
          states_SD: float32 embeddings of `spec.states` at unit length; None without states.
          tokens_per_device: padded tokens at a time on each device; by default sized from its
            memory.
          min_batches: all devices share the edits of one cell where these fill at least this many
            batches; otherwise each has cells of its own.
          min_consecutive: edits of consecutive genes, at least, that share the first block where it
            pays; 0 shares none.
        """
        self.plan, self.spec = plan, spec
        self.throughput = Throughput("edits")
        self._min_batches, self._min_consecutive = min_batches, min_consecutive
        config, platform = model.config, spec.mesh.devices.flat[0].platform
        multiple = _MULTIPLE.get(platform, _ACCELERATOR_MULTIPLE)
        worth = tokens_worth_compiling(config, platform, int(plan.longest.max()))
        padded = choose_lengths(plan.longest, plan.counts, multiple, worth)
        self.lengths = np.unique(np.minimum(padded, config.positions))
        self._rows = {int(T): choose_rows(spec, int(T), tokens_per_device) for T in self.lengths}
        bucket = np.searchsorted(self.lengths, plan.longest)
        self._edits_per_cell = {
            int(T): float(plan.counts[(bucket == b) & (plan.counts > 0)].mean())
            for b, T in enumerate(self.lengths)
        }
        needed = ["embeddings", "blocks", *([spec.head.kind] if spec.head else [])]
        self._params = self._put({name: model.params[name] for name in needed}, REPLICATED)
        if states_SD is None:
            states_SD = np.zeros((0, config.width), np.float32)
        self._states = self._put(states_SD, REPLICATED)

    def progress(self, edits: int) -> Progress:
        """Returns a progress bar over `edits` edits."""
        return Progress(edits, "perturb", "edits")

    def shifts(self, start: int, stop: int, progress: Progress) -> Shifts:
        """Makes the edits from `start` to before `stop`."""
        made = []
        with self.throughput.clock():
            for padded, edits in self._groups(start, stop):
                made += self._run_group(padded, edits)
                done = sum(len(each.numbers) for each in edits)
                progress.advance(done, compiling=self.throughput.compiling)
        return Shifts.join(made)

    def _put(self, tree, spec):
        return jax.device_put(tree, NamedSharding(self.spec.mesh, spec))

    def _groups(self, start: int, stop: int) -> Iterator[tuple[int, list[EditBatch]]]:
        """Yields padded lengths and edits of the cells that are done at one go."""
        waiting: dict[int, list[EditBatch]] = defaultdict(list)
        for padded, of_cell in self.plan.between(start, stop, self.lengths):
            together = max(self._own_cells(padded) * self.spec.mesh.size, 1)
            for edits in split_by_cut(of_cell):
                waiting[padded].append(edits)
                if len(waiting[padded]) == together:
                    yield padded, waiting.pop(padded)
        yield from waiting.items()

    def _own_cells(self, padded: int) -> int:
        """Cells at hand on each device; 0 where all devices share the edits of one cell."""
        rows = self._rows[padded]
        edits = self._edits_per_cell[padded]
        if edits >= self._min_batches * rows * self.spec.mesh.size:
            return 0
        return int(np.clip(np.ceil(self._min_batches * rows / edits), 1, rows))

    def _run_group(self, padded: int, edits: list[EditBatch]) -> list[Shifts]:
        """Makes the edits of some cells; halves the batch where memory does not suffice."""
        while True:
            own = self._own_cells(padded)
            together = max(own * self.spec.mesh.size, 1)
            try:
                made = []
                for begin in range(0, len(edits), together):
                    made += self._run_batches(padded, edits[begin : begin + together], own)
                return made
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(padded)

    def _halve(self, padded: int) -> None:
        rows = self._rows[padded]
        if rows == 1:
            raise InputError(
                f"the device's memory does not hold one cell of {padded:,} tokens; use another "
                'precision or attention "chunked", or a larger device'
            )
        self._rows[padded] = rows // 2
        logger.warning(
            f"out of memory with {rows} edited cells of {padded:,} tokens at a time on each "
            f"device; going on with {rows // 2}"
        )

    def _run_batches(self, padded: int, edits: list[EditBatch], own: int) -> list[Shifts]:
        rows, devices = self._rows[padded], self.spec.mesh.size
        spec = replace(self.spec, spread=own > 0)
        if not own and self._shares_first_block(edits):
            spec = replace(spec, consecutive=self.plan.consecutive, together=rows)
            rows *= -(-self._min_consecutive // rows)
        cells, batches = lay_out_edits(self.plan, edits, padded, rows, devices, own)
        cells = self._put(cells, BATCH if own else REPLICATED)
        with self.throughput.starting((spec, *cells.tokens_CT.shape)):
            cells = encode_baseline(spec, self._params, self._states, cells)
        start = functools.partial(self._start, spec, cells)
        return [self._collect(batch, results) for batch, results in run_ahead(batches, start)]

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

    def _collect(self, batch: EditBatch, results: tuple) -> Shifts:
        """Returns the results of a batch, without those of fillers."""
        is_real = batch.numbers >= 0
        values_EM, cosines_EN, tokens_EN = (each[is_real] for each in results)
        is_there = np.isfinite(cosines_EN)
        edits = np.arange(len(values_EM), dtype=np.int32)
        return Shifts(
            numbers=batch.numbers[is_real],
            cells=self.plan.cell_of(batch.numbers[is_real]).astype(np.int32),
            sets_EK=batch.sets[is_real],
            values_EM=values_EM,
            gene_edits=np.broadcast_to(edits[:, None], is_there.shape)[is_there],
            affected=tokens_EN[is_there],
            gene_values=cosines_EN[is_there],
        )
