"""Exact deletions, and beside each the part that comes from all later genes moving up."""

from dataclasses import replace

import numpy as np

from geneformer_jax.common.progress import Progress
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.engine import Engine, place_weights
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.engine.plan import EditPlan
from geneformer_jax.perturbation.engine.screening.screener import (
    Reranker,
    Screener,
    encodings_of_screen,
)
from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.layout import SPLIT_POINTS


def encodings_of_reranking(plan: EditPlan, states: int) -> int:
    """Returns what the part of later genes takes beside a plan's exact edits, in encodings."""
    return int(np.minimum(plan.counts, _screening(plan, states)).sum())


def _screening(plan: EditPlan, states: int) -> np.ndarray:
    """Returns what screening each cell takes, again in each part that has edits of it; [cells]."""
    bounds = np.array(plan.parts)
    first, last = plan.cell_of(bounds[:, 0]), plan.cell_of(bounds[:, 1] - 1)
    begun = np.bincount(first, minlength=len(plan.counts) + 1)
    ended = np.bincount(last + 1, minlength=len(plan.counts) + 1)
    return np.cumsum(begun - ended)[:-1] * encodings_of_screen(SPLIT_POINTS, states)


class RerankingPerturber(Perturber):
    """Makes deletions of one gene each exactly, with the part of each that is re-ranking.

    Behind the measures of each edit stands, for each state, how far the cell goes towards it when
    the gene stays and all later ones move up by one position: by an encoding of each edit of a
    cell, or interpolated as a screen does where that takes fewer.
    """

    def __init__(
        self,
        model: PretrainedModel,
        plan: EditPlan,
        spec: ForwardSpec,
        states_SD: np.ndarray,
        *,
        tokens_per_device: int | None = None,
    ):
        """Readies the devices; arguments as of `Engine`."""
        sizes = {"tokens_per_device": tokens_per_device}
        model = place_weights(model, spec)
        super().__init__(model, plan, spec, states_SD, **sizes)
        is_cheap = plan.counts <= _screening(plan, len(spec.states))
        # Edits are numbered cell after cell.
        is_exact = np.repeat(is_cheap, plan.counts)
        own_spec = replace(spec, head=None, gene_rows=0)
        self._beside: list[Engine] = [
            kind(model, plan.choose(numbers), own_spec, states_SD, **sizes)
            for kind, numbers in (
                (Reranker, np.flatnonzero(is_exact)),
                (Screener, np.flatnonzero(~is_exact)),
            )
            if len(numbers)
        ]

    def shifts(self, start: int, stop: int, progress: Progress | None = None) -> Shifts:
        """Makes the edits from `start` to before `stop`; values float32 [E, M + states]."""
        made = super().shifts(start, stop, progress)
        reranking_ES = np.empty((len(made.numbers), len(self.spec.states)), np.float32)
        for engine in self._beside:
            is_own = np.isin(made.numbers, engine.plan.chosen)
            if is_own.any():
                before = engine.throughput.seconds
                values_EM = engine.shifts(start, stop).values_EM
                reranking_ES[is_own] = values_EM[:, -len(self.spec.states) :]
                self.throughput.seconds += engine.throughput.seconds - before
        return made._replace(values_EM=np.concatenate([made.values_EM, reranking_ES], axis=1))
