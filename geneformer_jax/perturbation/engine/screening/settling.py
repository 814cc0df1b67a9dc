"""A screen settled: edits made exactly, the strongest, a random sample, and all of small cells."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from geneformer_jax.common.progress import Progress
from geneformer_jax.inference.pipeline import Throughput
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.engine.plan import EditPlan
from geneformer_jax.perturbation.engine.screening.screener import Reranker
from geneformer_jax.perturbation.engine.shifts import Shifts

# Edits of the random sample by which a screen is judged; all where there are fewer.
SAMPLE = 200


class Chosen(NamedTuple):
    """Edits to settle.

    Attributes:
      strongest: int64 ascending numbers of those with the strongest estimates.
      sampled: int64 ascending numbers of the random sample.
      cheap: int64 ascending numbers of those that cost no more exactly than to estimate.
    """

    strongest: np.ndarray
    sampled: np.ndarray
    cheap: np.ndarray

    @property
    def all(self) -> np.ndarray:
        """All of them, each once."""
        return np.unique(np.concatenate(self))


class Settled(NamedTuple):
    """Edits of a screen, some of them exact.

    Attributes:
      shifts: their values are the shifts towards each state, and then for each state the part that
        comes from the later genes.
      estimates_ES: float32 the screen's estimates of the shifts.
      is_exact_E: bool which were made exactly.
      is_sampled_E: bool which are of the random sample.
    """

    shifts: Shifts
    estimates_ES: np.ndarray
    is_exact_E: np.ndarray
    is_sampled_E: np.ndarray


def number_to_settle(settle: int | float | None, edits: int) -> int:
    """Returns how many of the strongest edits are settled, given their number or fraction."""
    if settle is None:
        return 0
    return min(int(np.ceil(settle * edits)) if isinstance(settle, float) else settle, edits)


def choose_edits(
    estimates_E: np.ndarray,
    settle: int | float | None,
    seed: int,
    cheap: Sequence[int] | np.ndarray = (),
) -> Chosen:
    """Chooses the edits to settle.

    Args:
      estimates_E: of all edits of a plan; the strongest are those farthest from 0.
      settle: their number, or as a float their fraction; None settles nothing.
      seed: of the random sample.
      cheap: ascending numbers of edits that are always settled; the others are drawn from the rest.
    """
    cheap = np.asarray(cheap, np.int64)
    rest = np.setdiff1d(np.arange(len(estimates_E)), cheap)
    strongest = rest[np.argsort(-np.abs(estimates_E[rest]), kind="stable")]
    sampled = np.random.default_rng(seed).permutation(rest)
    sample = 0 if settle is None else SAMPLE
    number = number_to_settle(settle, len(estimates_E))
    return Chosen(np.sort(strongest[:number]), np.sort(sampled[:sample]), cheap)


class Settler:
    """Makes the chosen edits of a screen exactly."""

    def __init__(
        self,
        model: PretrainedModel,
        plan: EditPlan,
        spec: ForwardSpec,
        states_SD: np.ndarray,
        chosen: Chosen,
        *,
        tokens_per_device: int | None = None,
    ):
        """Readies the devices; arguments as of `Engine`, and the chosen edits."""
        self._chosen = chosen
        # An encoding of each for the later genes alone would take as long as the exact shifts: the
        # strongest of a screen keep the interpolated part.
        is_whole = len(chosen.strongest) + len(chosen.cheap) == plan.edits
        self._reranked = chosen.all if is_whole else chosen.sampled
        given, sizes = (spec, states_SD), {"tokens_per_device": tokens_per_device}
        self._perturber = Perturber(model, plan.choose(chosen.all), *given, **sizes)
        self._reranker = Reranker(model, plan.choose(self._reranked), *given, **sizes)
        self._measures = np.array([measure for measure, _ in spec.measures])

    @property
    def throughput(self) -> Throughput:
        """Of the exact shifts."""
        return self._perturber.throughput

    def _screened(self, values_EM: np.ndarray) -> np.ndarray:
        """Returns the exact values of what a screen estimates, see `ForwardSpec.screened`."""
        shifts, before, after = (
            values_EM[:, self._measures == name]
            for name in ("state_shift", "class_probability_before", "class_probability_after")
        )
        return np.concatenate([shifts, after - before], axis=1)

    def settle(self, estimates: Shifts, progress: Progress | None = None) -> Settled:
        """Settles what a screen found of a range of edits."""
        is_exact_E = np.isin(estimates.numbers, self._chosen.all)
        values_EM = estimates.values_EM.copy()
        states = values_EM.shape[1] // 2
        is_reranked_E = np.isin(estimates.numbers, self._reranked)
        bounds = int(estimates.numbers[0]), int(estimates.numbers[-1]) + 1
        if is_exact_E.any():
            exact = self._perturber.shifts(*bounds, progress)
            values_EM[is_exact_E, :states] = self._screened(exact.values_EM)
        if is_reranked_E.any():
            values_EM[is_reranked_E, states:] = self._reranker.shifts(*bounds).values_EM
        return Settled(
            estimates._replace(values_EM=values_EM),
            estimates.values_EM[:, :states],
            is_exact_E,
            np.isin(estimates.numbers, self._chosen.sampled),
        )
