"""Shifts towards cell states, and those of some cells beside those of others."""

from collections.abc import Iterator
from pathlib import Path

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.perturbation.statistics import shifts as statistics
from geneformer_jax.perturbation.statistics.modes.result import StatisticOptions, StatisticResult
from geneformer_jax.perturbation.statistics.modes.rows import (
    cell_rows,
    draw_background,
    draw_tested,
    measure_and_state,
    outermost,
)
from geneformer_jax.perturbation.statistics.tables import (
    STATE_SHIFT,
    are_same_cells,
    choose_measure,
    edit_kind,
    read_provenance,
    states_of,
)
from geneformer_jax.reporting.figures import Drawing


def goal_state_shift(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Shifts towards a goal state and alternatives, against all edits."""
    measure = choose_measure(folder, options.measure, (STATE_SHIFT,))
    goal, alternatives = states_of(read_provenance(folder))
    goal = options.goal or goal
    if options.alternatives is not None:
        alternatives = options.alternatives
    if not goal:
        raise InputError(f"{folder} does not name its goal state; name it in goal")
    alternatives = tuple(dict.fromkeys(state for state in alternatives if state != goal))
    rows = cell_rows(folder, measure, None, options)
    table = statistics.goal_state_shift(
        rows,
        goal,
        alternatives,
        without_own=options.without_own,
        background=options.background,
        seed=options.seed,
    )
    axis_labels = {
        "Shift_to_goal_end": f"mean shift towards {goal}",
        "Goal_end_FDR": "-log10 FDR against all edits",
    }

    def drawings() -> Iterator[Drawing]:
        shift = "Shift_to_goal_end"
        if "Sig" in table:
            yield from draw_tested(
                table, "goal_state_shift", (shift, "Goal_end_FDR", "N_Detections"), axis_labels,
                ("Shift of each edit and its significance against all edits.",
                 f"All edits by their shift towards {goal}."),
            )  # fmt: skip
        toward = cell_rows(folder, measure, goal, options)
        labels = (f"shift towards {goal}", "shifts of all edits in all cells")
        yield draw_background(toward, toward, outermost(table, shift), labels)

    text = (
        f"Positive shifts go towards {goal}. Each edit's cells are compared with those of all "
        f"edits{' but itself' if options.without_own else ''} by a two-sided rank-sum test."
    )
    used = {"measure": measure, "goal": goal, "alternatives": list(alternatives)}
    return StatisticResult({"goal_state_shift": [table]}, drawings, text, used)


def vs_null(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Shifts of these cells against those of other cells under the same edits."""
    null = Path(options.null)
    kinds = edit_kind(folder), edit_kind(null)
    if kinds[0] != kinds[1]:
        raise InputError(f"{folder} holds edits of kind {kinds[0]}, but {null} holds {kinds[1]}; "
                         "both must be the same")  # fmt: skip
    measure, state = measure_and_state(folder, options)
    choose_measure(null, measure, ())
    remark = _remark_on_null(folder, null)
    test_rows = cell_rows(folder, measure, state, options)
    null_rows = cell_rows(null, measure, state, options)
    table = statistics.versus_null(test_rows, null_rows)
    shift = "Test_vs_null_avg_shift"
    axis_labels = {shift: "mean shift, test minus null", "Test_vs_null_FDR": "-log10 FDR"}

    def drawings() -> Iterator[Drawing]:
        yield from draw_tested(
            table, "vs_null", (shift, "Test_vs_null_FDR", "N_Detections_test"), axis_labels,
            ("Difference of the two cell sets and its significance.",
             "All edits by their difference."),
        )  # fmt: skip
        labels = (measure.replace("_", " "), "null cells, all edits")
        yield draw_background(null_rows, test_rows, outermost(table, shift), labels)

    text = (
        "Each edit's shifts in these cells are compared with its shifts in the null cells by a "
        "two-sided rank-sum test. Negative differences mean that the edit moves these cells more."
        f"{remark}"
    )
    return StatisticResult(
        {"vs_null": [table]}, drawings, text, {"measure": measure, "state": state}
    )


def _remark_on_null(folder: Path, null: Path) -> str:
    """Says, also in the log, if the null is of the cells that are compared with it."""
    if not are_same_cells(folder, null):
        return ""
    remark = f"{null} is of the same cells as {folder}: a null is of other cells"
    logger.warning(remark)
    return f" {remark}."
