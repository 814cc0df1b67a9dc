"""A screen: all deletions estimated, and then those made exactly that are worth it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.inference.pipeline import Throughput
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.engine import place_weights
from geneformer_jax.perturbation.engine.plan import EditPlan
from geneformer_jax.perturbation.engine.screening.screener import Screener, encodings_of_screen
from geneformer_jax.perturbation.engine.screening.settling import (
    Chosen,
    Settler,
    choose_edits,
    number_to_settle,
)
from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.layout import METHODS
from geneformer_jax.perturbation.statistics.accuracy.screen_accuracy import (
    describe_accuracy,
    describe_poor,
    screen_accuracy,
)
from geneformer_jax.perturbation.statistics.tables import STATE_SHIFT, ShiftRows
from geneformer_jax.perturbation.tables import screened_table


def plan_screen(plan: EditPlan, spec: ForwardSpec, options: PerturbationOptions) -> EditPlan:
    """Returns the plan of a screen: parts of whole cells, sized by what a screen encodes.

    Raises:
      InputError: no cell has as many tokens as split points are asked for.
    """
    if options.split_points > (longest := int(plan.longest.max())):
        raise InputError(
            f"`split_points` is {options.split_points:,}, but the longest cell has {longest:,} "
            "tokens: exact shifts take less; leave `screen` out, or give fewer"
        )
    settled = number_to_settle(options.settle, plan.edits) / plan.edits
    screened = encodings_of_screen(options.split_points, len(spec.screened))
    is_cheap = _are_cheap(plan, spec, options)
    if cells := int((is_cheap & (plan.counts > 0)).sum()):
        logger.info(
            f"{cells:,} cells have at most {screened} edits, as many as a screen encodes of a "
            "cell: these are all made exactly"
        )
    plan = plan.in_whole_cells(screened + np.where(is_cheap, 1, settled) * plan.counts)
    if (total := int(plan.passes.sum())) >= plan.edits:
        logger.warning(
            f"the screen takes {total:,} encodings, and exact shifts of all its edits "
            f"{plan.edits:,}: leave `screen` out, or give fewer split points"
        )
    return plan


def _are_cheap(plan: EditPlan, spec: ForwardSpec, options: PerturbationOptions) -> np.ndarray:
    """bool [cells], where exact edits take no more encodings than estimates."""
    return plan.counts <= encodings_of_screen(options.split_points, len(spec.screened))


class Screen:
    """A screen of the edits of a plan, made in two rounds.

    Attributes:
      screener: makes the first round.
    """

    def __init__(
        self,
        model: PretrainedModel,
        plan: EditPlan,
        spec: ForwardSpec,
        states_SD: np.ndarray,
        options: PerturbationOptions,
        *,
        tokens_per_device: int | None = None,
    ):
        """Readies the devices.

        Args:
          model, spec, states_SD, tokens_per_device: see `Engine`.
          plan: that `plan_screen` returned.
          options: of the run.
        """
        self._options, self._sizes = options, {"tokens_per_device": tokens_per_device}
        self._given = place_weights(model, spec), plan, spec, states_SD
        split_points = options.split_points
        self.screener = Screener(*self._given, split_points=split_points, **self._sizes)

    def choose(self, parts: Iterable[Shifts]) -> Chosen:
        """Chooses what to settle, given the estimates of all parts, and readies the devices."""
        goal = self.screener.spec.states.index(self._options.states.goal)
        estimates_E = np.concatenate([part.values_EM[:, goal] for part in parts])
        plan, spec = self.screener.plan, self.screener.spec
        # Edits are numbered cell after cell.
        cheap = np.flatnonzero(np.repeat(_are_cheap(plan, spec, self._options), plan.counts))
        chosen = choose_edits(estimates_E, self._options.settle, self._options.seed, cheap)
        self._settler = Settler(*self._given, chosen, **self._sizes)
        return chosen

    @property
    def settling(self) -> Throughput:
        """What the second round makes, once it is chosen."""
        return self._settler.throughput

    def settle(self, estimates: Shifts, progress: Progress | None = None) -> pa.Table:
        """Settles a range of the edits, and returns their table."""
        cells = self.screener.plan.cells
        settled = self._settler.settle(estimates, progress)
        names = self.screener.spec.screened
        return screened_table(settled, names, cells.obs.index.to_numpy(), cells.vocabulary)


def log_accuracy(accuracy: pd.DataFrame) -> None:
    """Logs what was measured of a screen, first of all where it is poor."""
    for line in describe_poor(accuracy):
        logger.warning(line)
    for line in describe_accuracy(accuracy):
        logger.info(line)


def describe_screen(shifts: Path, options: PerturbationOptions) -> dict[str, Any]:
    """Returns the facts of a screen, given the folder of its tables; logs its accuracy."""
    methods = Counter[str]()
    towards_goal = {"measure": STATE_SHIFT, "state": options.states.goal}
    for piece in ShiftRows(shifts, ("method",), towards_goal):
        methods.update(piece["method"].astype(str))
    columns = "measure", "state", "value", "estimate"
    sampled = list(ShiftRows(shifts, columns, {"sampled": "true"}))
    accuracy = pd.DataFrame()
    if sampled:
        accuracy = screen_accuracy(pd.concat(sampled), options.seed)
        log_accuracy(accuracy)
    return {
        "split_points": options.split_points,
        **{method: methods[method] for method in METHODS},
        "accuracy": accuracy.to_dict("records"),
    }
