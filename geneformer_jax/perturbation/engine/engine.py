"""What engines share: programs for each padded length, cells in groups, halving, progress."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.inference.finite import not_finite
from geneformer_jax.inference.pipeline import Throughput
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.perturbation.engine.batches import (
    choose_rows,
    is_out_of_memory,
    split_by_cut,
    tokens_worth_compiling,
)
from geneformer_jax.perturbation.engine.edits import EditBatch
from geneformer_jax.perturbation.engine.encoding import REPLICATED, ForwardSpec
from geneformer_jax.perturbation.engine.plan import EditPlan, choose_lengths
from geneformer_jax.perturbation.engine.shifts import Shifts

# Padded lengths are multiples of this: kernels of accelerators want 128.
_MULTIPLE = {"cpu": 16}
_ACCELERATOR_MULTIPLE = 128


def place_weights(model: PretrainedModel, spec: ForwardSpec) -> PretrainedModel:
    """Returns a model with the weights that an edit needs, on all devices.

    Engines of such a model share them; of another each has copies of its own.
    """
    needed = ["embeddings", "blocks", *([spec.head.kind] if spec.head else [])]
    everywhere = NamedSharding(spec.mesh, REPLICATED)
    params = jax.device_put({name: model.params[name] for name in needed}, everywhere)
    return replace(model, params=params)


class Engine(ABC):
    """Makes ranges of the edits of a plan, all with the same compiled programs.

    Attributes:
      plan: the edits.
      spec: what is computed of them, and where.
      lengths: ascending padded lengths.
      throughput: of what is made.
    """

    # The first of the values of an edit that are never NaN.
    _always_known = 0

    def __init__(
        self,
        model: PretrainedModel,
        plan: EditPlan,
        spec: ForwardSpec,
        states_SD: np.ndarray | None = None,
        *,
        tokens_per_device: int | None = None,
    ):
        """Chooses buckets and batches, and puts the weights on the devices.

        Args:
          model: that perturbs.
          plan: the edits.
          spec: what is computed of them, and where.
          states_SD: float32 embeddings of `spec.states` at unit length; None without states.
          tokens_per_device: padded tokens at a time on each device; by default sized from its
            memory.
        """
        self.plan, self.spec = plan, spec
        self.throughput = Throughput("edits")
        config, platform = model.config, spec.mesh.devices.flat[0].platform
        multiple = _MULTIPLE.get(platform, _ACCELERATOR_MULTIPLE)
        worth = tokens_worth_compiling(config, platform, int(plan.longest.max()))
        padded = choose_lengths(plan.longest, plan.passes, multiple, worth)
        self.lengths = np.unique(np.minimum(padded, config.positions))
        self._rows = {int(T): choose_rows(spec, int(T), tokens_per_device) for T in self.lengths}
        self._model = place_weights(model, spec)
        self._params = self._model.params
        if states_SD is None:
            states_SD = np.zeros((0, config.width), np.float32)
        self._states = self._put(states_SD, REPLICATED)

    def progress(self, edits: int) -> Progress:
        """Returns a progress bar over `edits` edits."""
        return Progress(edits, "perturb", "edits")

    def shifts(self, start: int, stop: int, progress: Progress | None = None) -> Shifts:
        """Makes the edits from `start` to before `stop`."""
        made = []
        with self.throughput.clock():
            for padded, edits in self._groups(start, stop):
                made += self._run_group(padded, edits)
                done = sum(len(each.numbers) for each in edits)
                if progress is not None:
                    progress.advance(done, compiling=self.throughput.compiling)
        return Shifts.join(made)

    @abstractmethod
    def _together(self, padded: int) -> int:
        """Returns how many cells of a padded length are done at one go."""

    @abstractmethod
    def _run_batches(self, padded: int, edits: list[EditBatch]) -> list[Shifts]:
        """Makes the edits of so many cells."""

    def _put(self, tree, spec: PartitionSpec):
        return jax.device_put(tree, NamedSharding(self.spec.mesh, spec))

    def _groups(self, start: int, stop: int) -> Iterator[tuple[int, list[EditBatch]]]:
        """Yields padded lengths and edits of the cells that are done at one go."""
        waiting: dict[int, list[EditBatch]] = defaultdict(list)
        for padded, of_cell in self.plan.between(start, stop, self.lengths):
            together = self._together(padded)
            for edits in split_by_cut(of_cell):
                waiting[padded].append(edits)
                if len(waiting[padded]) == together:
                    yield padded, waiting.pop(padded)
        yield from waiting.items()

    def _run_group(self, padded: int, edits: list[EditBatch]) -> list[Shifts]:
        """Makes the edits of some cells; halves the batch where memory does not suffice."""
        while True:
            together = self._together(padded)
            try:
                made = []
                for begin in range(0, len(edits), together):
                    made += self._run_batches(padded, edits[begin : begin + together])
                self._require_finite(made)
                return made
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(padded)

    def _require_finite(self, made: list[Shifts]) -> None:
        """Raises InputError if the values of an edit are NaN or infinite."""
        for shifts in made:
            is_wrong = ~np.isfinite(shifts.values_EM[:, self._always_known :]).all(axis=1)
            is_wrong[shifts.gene_edits[~np.isfinite(shifts.gene_values)]] = True
            if is_wrong.any():
                edit = int(np.argmax(is_wrong))
                tokens = shifts.sets_EK[edit]
                genes = self.plan.cells.vocabulary.names_of(tokens[tokens >= 0])
                what = f" with an edit of {', '.join(map(str, genes))}"
                asked = self.plan.cells, self._model, self.spec.runtime.precision, what
                raise not_finite(int(shifts.cells[edit]), *asked)

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
