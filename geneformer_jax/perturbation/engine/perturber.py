"""Makes the edits of a run on all devices, a range of them at a time."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.progress import Progress
from geneformer_jax.model.heads import HeadConfig
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import BATCH, inference_mesh
from geneformer_jax.perturbation.engine.batches import (
    Batches,
    SlotWork,
    Step,
    choose_rows,
    is_out_of_memory,
    lay_out_edits,
    split_by_cut,
    tokens_worth_compiling,
)
from geneformer_jax.perturbation.engine.forward import (
    CELL,
    REPLICATED,
    PerturbationPass,
    Shifts,
    baseline,
    perturb_rows,
)
from geneformer_jax.perturbation.engine.plan import Work, choose_lengths

# Padded lengths are multiples of this: kernels of accelerators want 128.
_MULTIPLE = {"cpu": 16}
_ACCELERATOR_MULTIPLE = 128
# Devices have cells of their own where a cell has fewer batches of edits than this.
_FEW_BATCHES = 4
# Edits of neighbouring genes that share the first block, at least.
_NEIGHBOURS = 32


@dataclass(frozen=True)
class MetricSpec:
    """What is measured of each edit.

    Attributes:
      mode: what stands for a cell, "cell" or "cls".
      layer: counted back from the last.
      states: names of the states.
      vectors: float32 [states, D] their embeddings at unit length.
      head: cell classifier whose probabilities are wanted, or None.
      gene_rows: shifts of single genes: 0 none, -1 all, N the lowest N.
    """

    mode: str = CELL
    layer: int = -1
    states: tuple[str, ...] = ()
    vectors: np.ndarray | None = None
    head: HeadConfig | None = None
    gene_rows: int = 0

    @property
    def names(self) -> list[tuple[str, str]]:
        """(measure, state) of each value of an edit."""
        names = [("mean_gene_cosine", ""), ("cell_cosine", "")]
        if self.mode != CELL:
            names = [("cls_cosine", "")]
        names += [("state_shift", state) for state in self.states]
        for when in ("before", "after"):
            labels = self.head.labels if self.head else ()
            names += [(f"class_probability_{when}", str(label)) for label in labels]
        return names


class PartShifts(NamedTuple):
    """What some edits did, in the order of the edits.

    Attributes:
      cells: int32 [E] the perturbed cell.
      sets_EK: int32 the perturbed genes, filled up with -1.
      values_EM: float32 the measures, in the order of `Measures.names`.
      gene_edits: int32 [N] which of these edits a value of a gene belongs to, ascending.
      affected: int32 [N] token of the gene.
      gene_values: float32 [N] its cosine.
    """

    cells: np.ndarray
    sets_EK: np.ndarray
    values_EM: np.ndarray
    gene_edits: np.ndarray
    affected: np.ndarray
    gene_values: np.ndarray


@dataclass
class Throughput:
    """What was done, and in what time.

    Attributes:
      edits: edits made.
      tokens: their tokens.
      padded: tokens with padding and filler rows.
      seconds: of making them, compiling included.
      compiling: seconds until the first batch of each shape was under way.
    """

    edits: int = 0
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0
    compiling: float = 0.0

    def describe(self) -> str:
        """Returns one line for the user."""
        seconds = max(self.seconds - self.compiling, 1e-9)
        return (
            f"{self.edits:,} edits in {seconds:,.1f} s ({self.edits / seconds:,.1f} edits/s), "
            f"after {self.compiling:,.1f} s of compiling; padding "
            f"{1 - self.tokens / max(self.padded, 1):.1%} of tokens"
        )


class _Answer(NamedTuple):
    """What came back of one batch: edits with their values, and genes with theirs."""

    numbers: np.ndarray
    values: np.ndarray
    gene_edits: np.ndarray
    affected: np.ndarray
    gene_values: np.ndarray


class Perturber:
    """Makes ranges of the edits of a run, all with the same compiled programs."""

    def __init__(
        self,
        model: PretrainedModel,
        work: Work,
        measures: MetricSpec,
        runtime: Runtime | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
        tokens_per_device: int | None = None,
    ):
        """Chooses buckets and batches, and puts the weights on the devices."""
        self.work, self.measures = work, measures
        self.throughput = Throughput()
        self._compiled: set[tuple[PerturbationPass, int, int]] = set()
        self.mesh = inference_mesh(None if devices is None else list(devices))
        config, platform = model.config, self.mesh.devices.flat[0].platform
        self.pass_ = PerturbationPass(
            config=config,
            runtime=runtime or Runtime(),
            mesh=self.mesh,
            layer=config.layers + measures.layer,
            frame=work.frame,
            mode=measures.mode,
            gene_rows=measures.gene_rows,
            head=measures.head,
        )
        multiple = _MULTIPLE.get(platform, _ACCELERATOR_MULTIPLE)
        worth = tokens_worth_compiling(config, platform, int(work.longest.max()))
        padded = choose_lengths(work.longest, work.counts, multiple, worth)
        self.lengths = np.unique(np.minimum(padded, config.positions))
        self._rows = {
            int(T): choose_rows(self.pass_, int(T), tokens_per_device) for T in self.lengths
        }
        bucket = np.searchsorted(self.lengths, work.longest)
        self._edits_per_cell = {
            int(T): float(work.counts[(bucket == b) & (work.counts > 0)].mean())
            for b, T in enumerate(self.lengths)
        }
        self._params = self._put(self._needed(model), REPLICATED)
        vectors = measures.vectors
        if vectors is None:
            vectors = np.zeros((0, config.width), np.float32)
        self._states = self._put(vectors, REPLICATED)

    def progress(self, edits: int) -> Progress:
        """Returns a progress bar over so many edits."""
        return Progress(edits, "perturb", "edits")

    def shifts(self, start: int, stop: int, progress: Progress) -> PartShifts:
        """Makes the edits from `start` to before `stop`."""
        began, answers = time.perf_counter(), []
        for padded, slots in self._groups(start, stop):
            answers += self._run_group(padded, slots)
            progress.advance(sum(len(slot.numbers) for slot in slots))
        self.throughput.seconds += time.perf_counter() - began
        numbers = np.concatenate([answer.numbers for answer in answers])
        values_EM = np.empty((stop - start, len(self.measures.names)), np.float32)
        values_EM[numbers - start] = np.concatenate([answer.values for answer in answers])
        cells, sets_EK = self._edited(start, stop)
        gene_edits = np.concatenate([answer.gene_edits for answer in answers])
        order = np.argsort(gene_edits, kind="stable")
        return PartShifts(
            cells,
            sets_EK,
            values_EM,
            (gene_edits[order] - start).astype(np.int32),
            np.concatenate([answer.affected for answer in answers])[order],
            np.concatenate([answer.gene_values for answer in answers])[order],
        )

    def _edited(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        edited = list(self.work.between(start, stop))
        cells = [np.full(len(each.sets_EK), each.cell, np.int32) for each in edited]
        return np.concatenate(cells), np.concatenate([each.sets_EK for each in edited])

    def _needed(self, model: PretrainedModel):
        names = ["embeddings", "blocks", *([self.measures.head.kind] if self.measures.head else [])]
        return {name: model.params[name] for name in names}

    def _put(self, tree, spec):
        return jax.device_put(tree, NamedSharding(self.mesh, spec))

    def _groups(self, start: int, stop: int) -> Iterator[tuple[int, list[SlotWork]]]:
        """Yields padded lengths and cells with their edits, as many as are done at one go."""
        waiting: dict[int, list[SlotWork]] = defaultdict(list)
        for edited in self.work.between(start, stop):
            bucket = np.searchsorted(self.lengths, self.work.longest[edited.cell])
            padded = int(self.lengths[bucket])
            together = max(self._own_slots(padded) * self.mesh.size, 1)
            for slot in split_by_cut(self.work, edited, padded):
                waiting[padded].append(slot)
                if len(waiting[padded]) == together:
                    yield padded, waiting.pop(padded)
        yield from waiting.items()

    def _own_slots(self, padded: int) -> int:
        """Cells at hand on each device; 0 where all devices share the edits of one cell."""
        rows = self._rows[padded]
        edits = self._edits_per_cell[padded]
        if edits >= _FEW_BATCHES * rows * self.mesh.size:
            return 0
        return int(np.clip(np.ceil(_FEW_BATCHES * rows / edits), 1, rows))

    def _run_group(self, padded: int, slots: list[SlotWork]) -> list[_Answer]:
        """Makes the edits of some cells; halves the batch where memory does not suffice."""
        while True:
            own = self._own_slots(padded)
            together = max(own * self.mesh.size, 1)
            try:
                answers = []
                for begin in range(0, len(slots), together):
                    answers += self._run_batches(padded, slots[begin : begin + together], own)
                return answers
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
        print(
            f"out of memory with {rows} edited cells of {padded:,} tokens at a time on each "
            f"device; going on with {rows // 2}",
            flush=True,
        )

    def _run_batches(self, padded: int, slots: list[SlotWork], own: int) -> list[_Answer]:
        rows, devices = self._rows[padded], self.mesh.size
        pass_ = replace(self.pass_, spread=own > 0)
        if not own and self._shares_first_block(slots):
            pass_ = replace(pass_, neighbours=self.work.neighbours, together=rows)
            rows *= -(-_NEIGHBOURS // rows)
        batches = lay_out_edits(self.work, slots, padded, rows, devices, own)
        cells = self._put(batches.slots, BATCH if own else REPLICATED)
        before = baseline(pass_, self._params, self._states, cells)
        answers, waiting = [], None
        # One batch behind, so that the devices compute while the last answers are taken.
        for step in batches.steps:
            edits = self._put(step.rows, BATCH)
            arguments = self._params, self._states, cells, before, edits
            started = step, self._start(pass_, arguments, step, padded)
            if waiting is not None:
                answers.append(self._answer(batches, *waiting))
            waiting = started
        return [*answers, self._answer(batches, *waiting)]

    def _shares_first_block(self, slots: list[SlotWork]) -> bool:
        # On a CPU that block takes a third or a quarter of the time; not measured elsewhere.
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        if not on_cpu or not self.work.neighbours or self.pass_.blocks < 1:
            return False
        # A gene that a cell lists twice would be edited at its first place both times.
        return all((np.diff(slot.edits.positions[:, 0]) == 1).all() for slot in slots)

    def _start(self, pass_: PerturbationPass, arguments, step: Step, padded: int) -> Shifts:
        """Starts a batch and counts it; the first of each shape compiles meanwhile."""
        began, counted = time.perf_counter(), self.throughput
        shifts = perturb_rows(pass_, *arguments)
        shape = pass_, padded, step.numbers.size
        if shape not in self._compiled:
            self._compiled.add(shape)
            counted.compiling += time.perf_counter() - began
        cells = self.work.cell_of(step.numbers[step.numbers >= 0])
        counted.edits += len(cells)
        counted.tokens += int(self.work.longest[cells].sum())
        # Groups of nothing but fillers are left out where the first block is shared.
        together = pass_.together or step.numbers.size
        is_encoded = (step.numbers >= 0).reshape(-1, together).any(axis=1)
        counted.padded += int(is_encoded.sum()) * together * padded
        return shifts

    def _answer(self, batches: Batches, step: Step, shifts: Shifts) -> _Answer:
        shifts = jax.device_get(shifts)
        real = step.numbers >= 0
        affected_RN = batches.affected(step, shifts.affected_RN)
        there = np.isfinite(shifts.genes_RN) & real[:, None]
        values = self._values(shifts)[real]
        edits = np.broadcast_to(step.numbers[:, None], there.shape)[there]
        return _Answer(
            step.numbers[real], values, edits, affected_RN[there], shifts.genes_RN[there]
        )

    def _values(self, shifts: Shifts) -> np.ndarray:
        cell_R1 = shifts.cell_R[:, None]
        means = [shifts.gene_mean_R[:, None]] if self.measures.mode == CELL else []
        return np.concatenate(
            [*means, cell_R1, shifts.states_RS, shifts.before_RC, shifts.after_RC], axis=1
        )
