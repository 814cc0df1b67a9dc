"""Which controls are set beside a statistic: their names, what they cost and what they need.

Imports no JAX: a command checks names before it loads it.
"""

from collections.abc import Iterable, Sequence

from geneformer_jax.common.arguments import require_type
from geneformer_jax.common.errors import InputError, did_you_mean

FREE, ALL, NONE = "free", "all", "none"
LIKE_RANK, CELLS, COVERAGE, START = "like_rank", "cells", "coverage", "start"
RERANKING, DONORS, RESPONSIVENESS = "reranking", "donors", "responsiveness"
EXPRESSION, COVARIANCE = "differential_expression", "covariance"
RANDOM_WEIGHTS, SELF_DELETION = "random_weights", "self_deletion"
# These take further encodings; all others follow from what a run has anyway.
DEAR = (RERANKING, RANDOM_WEIGHTS, SELF_DELETION)
CHEAP = (LIKE_RANK, CELLS, COVERAGE, START, EXPRESSION, COVARIANCE, DONORS, RESPONSIVENESS)
CONTROLS = (*CHEAP, *DEAR)
QUESTIONS = {
    LIKE_RANK: "Does any gene shift cells otherwise than genes of like rank and detection?",
    CELLS: "How much of the shifts is a matter of the cell, and how much of the gene?",
    COVERAGE: "In how many cells could the gene be edited?",
    START: "Is towards the goal also away from the start?",
    RERANKING: "Is it the gene, or only its rank?",
    EXPRESSION: "Would differential expression, without a model, give the same list?",
    COVARIANCE: "Would the covariance of genes, without a model, give the same list?",
    DONORS: "Does it hold in other donors?",
    RESPONSIVENESS: "Does an edit affect genes that other edits do not?",
    RANDOM_WEIGHTS: "Would a model that has learned nothing give the same list?",
    SELF_DELETION: "What stays of a shift if the states are embedded without the deleted gene?",
}
NEEDS_START = "a start state that is not the goal: perturb with `start`"
NEEDS_STATES = "cell states to compare: name their column by `states` and a `goal`"
NEEDS_DELETIONS = "deletions of one gene at a time, where later genes move up and none slides in"
NEEDS_GROUP = "an obs column of donors: name it by `group`"


def read_controls(controls: str | Sequence[str]) -> tuple[str, ...] | None:
    """Returns the names of controls that must be set beside, or None for all that there are.

    Args:
      controls: "free" or "all", "none", or names.

    Raises:
      InputError: a name is unknown, or no text.
    """
    require_type("controls", controls, Iterable, 'give "all", "none", or names of controls')
    names = (controls,) if isinstance(controls, str) else tuple(controls)
    if names in ((FREE,), (ALL,), (NONE,)):
        return () if names == (NONE,) else None
    for name in names:
        if name not in CONTROLS:
            known = [*CONTROLS, FREE, ALL, NONE]
            raise InputError(
                f'there is no control "{name}"{did_you_mean(name, known)}; `controls` are '
                f"{', '.join(known)}"
            )
    return names


def dear_controls(controls: str | Sequence[str]) -> tuple[str, ...]:
    """Returns those of the controls that take further encodings; "all" has all of them."""
    return tuple(name for name in DEAR if is_all(controls) or name in controls)


def is_all(controls: str | Sequence[str]) -> bool:
    """Whether all controls are asked for, those that take further encodings too."""
    return controls == ALL or tuple(controls) == (ALL,)


def is_free(controls: str | Sequence[str]) -> bool:
    """Whether those are asked for that cost nothing, or little beside the run."""
    return controls == FREE or tuple(controls) == (FREE,)


def refuse(name: str, why: str) -> InputError:
    """Returns the error on a control that was named but cannot be had."""
    return InputError(f'the control "{name}" needs {why}; or leave it out of `controls`')


def require_controls(controls: str | Sequence[str], start: str, goal: str, group: str) -> None:
    """Raises InputError for an unknown control, or one that lacks what the run could have.

    Args:
      controls: see `read_controls`.
      start, goal: states of the run, "" without.
      group: obs column of donors, "" without.
    """
    has_start = start not in ("", goal)
    needs = {
        START: (has_start, NEEDS_START),
        SELF_DELETION: (has_start, NEEDS_START),
        RERANKING: (goal, NEEDS_STATES),
        EXPRESSION: (goal, NEEDS_STATES),
        COVARIANCE: (goal, NEEDS_STATES),
        DONORS: (group, NEEDS_GROUP),
    }
    for name in read_controls(controls) or ():
        is_there, why = needs.get(name, (True, ""))
        if not is_there:
            raise refuse(name, why)
