"""Which controls a statistic has, and what the tables of a run lack for one."""

from geneformer_jax.perturbation.controls.choice import (
    CELLS,
    COVARIANCE,
    COVERAGE,
    DEAR,
    DONORS,
    EXPRESSION,
    LIKE_RANK,
    NEEDS_DELETIONS,
    NEEDS_GROUP,
    NEEDS_START,
    RANDOM_WEIGHTS,
    RERANKING,
    RESPONSIVENESS,
    SELF_DELETION,
    START,
)
from geneformer_jax.perturbation.controls.donors import describe_few
from geneformer_jax.perturbation.controls.finding import VERSUS_NULL, Asked
from geneformer_jax.perturbation.layout import BASELINES, RANDOM_RUN, SHIFTS, WITHOUT_OWN
from geneformer_jax.perturbation.statistics.modes.edits import aggregate, aggregate_gene_shifts
from geneformer_jax.perturbation.statistics.modes.states import goal_state_shift
from geneformer_jax.perturbation.statistics.tables import column_names

OF_GENES = (LIKE_RANK, CELLS, COVERAGE, START, RERANKING, EXPRESSION, COVARIANCE, DONORS,
            RANDOM_WEIGHTS, SELF_DELETION)  # fmt: skip
GOAL, AGGREGATE = goal_state_shift.__name__, aggregate.__name__
OF_GENE_SHIFTS, MIXTURE, SETS = aggregate_gene_shifts.__name__, "mixture_model", "combinations"
OF_MODE = {
    GOAL: OF_GENES,
    AGGREGATE: OF_GENES,
    MIXTURE: OF_GENES,
    VERSUS_NULL: OF_GENES,
    OF_GENE_SHIFTS: (RESPONSIVENESS,),
}
_FILES = {
    EXPRESSION: BASELINES,
    COVARIANCE: BASELINES,
    RANDOM_WEIGHTS: RANDOM_RUN,
    SELF_DELETION: WITHOUT_OWN,
}
_NOT_COMPARED = "cells of both states, which runs of this version compare: perturb again"
_NOT_MADE = {
    EXPRESSION: _NOT_COMPARED,
    COVARIANCE: _NOT_COMPARED,
    **{name: f"further encodings: perturb with `controls`={name}" for name in DEAR},
}
_TOWARDS_A_GOAL = (START, EXPRESSION, COVARIANCE, DONORS, SELF_DELETION)


def why_none(mode: str, anchor: str) -> str:
    """Says why no controls stand beside a statistic; "" where some do."""
    if mode == SETS:
        return (
            "no controls stand beside it: they compare genes that are edited one at a time, and "
            "these are sets, each compared with its own genes alone"
        )
    if mode == MIXTURE and anchor:
        return (
            "no controls stand beside it: they compare edits, and these are genes that one edit "
            f"affects; what any edit does to them is taken off in {OF_GENE_SHIFTS}"
        )
    return ""


def what_is_lacking(name: str, asked: Asked) -> str:
    """Says what a control needs that a statistic or the tables lack; "" where nothing does."""
    if "rank" not in column_names(asked.folder / SHIFTS):
        return "ranks of the edited genes, which tables of this version have: perturb again"
    if asked.table["Ensembl_ID"].duplicated().any():
        return "shifts towards one state: name it by `state`"
    if not any(True for _ in asked.rows(asked.goal)):
        return "edits of single genes: perturb each gene in turn"
    if asked.mode != GOAL and name in _TOWARDS_A_GOAL:
        return f"shifts towards a goal: ask for {GOAL}"
    if asked.mode == VERSUS_NULL and name not in (LIKE_RANK, COVERAGE):
        return "shifts of one set of cells, not their difference from another: ask for aggregate"
    return _lacks_of_run(name, asked)


def _lacks_of_run(name: str, asked: Asked) -> str:
    if name == START and not asked.has_start:
        return NEEDS_START
    if name == RERANKING and not asked.has_parts():
        return (
            f"the two parts of each shift towards a state: perturb with `controls`={name} into "
            f"another output, {NEEDS_DELETIONS}"
        )
    if name in _FILES and not (asked.folder / _FILES[name]).exists():
        return _NOT_MADE[name]
    if name == DONORS:
        return NEEDS_GROUP if asked.donors is None else describe_few(asked.group, asked.donors)
    return ""
