"""The statistics by their names."""

from collections.abc import Callable, Sequence
from pathlib import Path

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.perturbation.statistics.modes.edits import (
    aggregate,
    aggregate_gene_shifts,
    combination_effects,
    mixture,
)
from geneformer_jax.perturbation.statistics.modes.result import StatisticOptions, StatisticResult
from geneformer_jax.perturbation.statistics.modes.states import goal_state_shift, vs_null

MODES: dict[str, Callable[[Path, StatisticOptions], StatisticResult]] = {
    "goal_state_shift": goal_state_shift,
    "vs_null": vs_null,
    "mixture_model": mixture,
    "aggregate": aggregate,
    "aggregate_gene_shifts": aggregate_gene_shifts,
    "combinations": combination_effects,
}


def require_modes(modes: Sequence[str], null: Path | str = "") -> None:
    """Raises InputError for an unknown mode, or for vs_null without a perturbation to compare."""
    for mode in modes:
        if mode not in MODES:
            raise InputError(
                f'there is no statistic "{mode}"{did_you_mean(mode, MODES)}; choose from '
                f"{', '.join(MODES)}"
            )
    if "vs_null" in modes and not str(null):
        raise InputError(
            "vs_null compares with the same edits of other cells; name their perturbation in `null`"
        )
