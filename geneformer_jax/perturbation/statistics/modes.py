"""What each statistic of a perturbation reads, computes and draws."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import slug
from geneformer_jax.common.log import logger
from geneformer_jax.perturbation.layout import GENE_MEANS, GENE_SHIFTS, SHIFTS
from geneformer_jax.perturbation.statistics import aggregate as statistics_aggregate
from geneformer_jax.perturbation.statistics import figures as draw
from geneformer_jax.perturbation.statistics import shifts as statistics
from geneformer_jax.perturbation.statistics.combinations import combinations
from geneformer_jax.perturbation.statistics.mixture import mixture_model
from geneformer_jax.perturbation.statistics.tables import (
    COSINES,
    STATE_SHIFT,
    ShiftRows,
    are_same_cells,
    choose_measure,
    edit_kind,
    read_gene_means,
    read_provenance,
    states_of,
)
from geneformer_jax.reporting.figures import Drawing

_CELL_ROWS = ("cell", "perturbed", "perturbed_symbol", "state", "value")
_GENE_ROWS = ("cell", "perturbed", "perturbed_symbol", "affected", "affected_symbol", "value")
_SHOWN_EDITS = 12
_DRAWN_EDITS = 3
_COSINE = "mean cosine similarity"


@dataclasses.dataclass(frozen=True)
class StatisticOptions:
    """What `perturbation_statistics` was asked for; see its docstring."""

    null: str = ""
    goal: str = ""
    alternatives: tuple[str, ...] | None = None
    measure: str = ""
    state: str = ""
    anchor: str = ""
    without_own: bool = False
    background: int = statistics.BACKGROUND
    seed: int = statistics.SEED
    set_size: int = 0
    min_cells: int = 10
    group: str = ""


class Controls(NamedTuple):
    """What controls beside a statistic found; see the package `controls`.

    Attributes:
      table: control, what it asks, result, verdict.
      verdict: what they come to, in a sentence; "" without.
      headings: what their columns say.
      drawings: called when the tables have been read to their end.
    """

    table: pd.DataFrame
    verdict: str
    headings: Mapping[str, str]
    drawings: Callable[[], Iterator[Drawing]]


class StatisticResult(NamedTuple):
    """The result of one statistic.

    Attributes:
      tables: name -> pieces of the table; the first has the mode's name.
      drawings: called when the tables have been read to their end.
      text: one or two sentences on how to read the table.
      used: the resolved options.
      controls: set beside it, None without.
    """

    tables: dict[str, Iterable[pd.DataFrame]]
    drawings: Callable[[], Iterator[Drawing]]
    text: str
    used: dict[str, Any]
    controls: Controls | None = None


def goal_state_shift(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Shifts towards a goal state and alternatives, against all edits."""
    measure = choose_measure(folder, options.measure, (STATE_SHIFT,))
    goal, alternatives = states_of(read_provenance(folder))
    goal = options.goal or goal
    if options.alternatives is not None:
        alternatives = options.alternatives
    if not goal:
        raise InputError(f"{folder} does not name its goal state; name it in goal")
    alternatives = tuple(state for state in alternatives if state != goal)
    rows = _cell_rows(folder, measure, None, options)
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
            caption = "Shift of each edit and its significance against all edits."
            yield Drawing("volcano", draw.volcano_figure(table, shift, "Goal_end_FDR", axis_labels),
                          caption)  # fmt: skip
            ranked = draw.ranked_figure(table, shift, table["Sig"] == 1,
                                        (axis_labels[shift], "FDR < 0.05"))  # fmt: skip
            yield Drawing("ranked", ranked, f"All edits by their shift towards {goal}.")
        toward = _cell_rows(folder, measure, goal, options)
        labels = (f"shift towards {goal}", "shifts of all edits in all cells")
        yield _background(toward, toward, _outermost(table, shift), labels)

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
    measure, state = _measure_and_state(folder, options)
    choose_measure(null, measure, ())
    if are_same_cells(folder, null):
        logger.warning(f"{null} is of the same cells as {folder}: a null is of other cells")
    test_rows = _cell_rows(folder, measure, state, options)
    null_rows = _cell_rows(null, measure, state, options)
    table = statistics.versus_null(test_rows, null_rows)
    shift = "Test_vs_null_avg_shift"
    axis_labels = {shift: "mean shift, test minus null", "Test_vs_null_FDR": "-log10 FDR"}

    def drawings() -> Iterator[Drawing]:
        volcano = draw.volcano_figure(table, shift, "Test_vs_null_FDR", axis_labels)
        yield Drawing("volcano", volcano, "Difference of the two cell sets and its significance.")
        ranked = draw.ranked_figure(
            table, shift, table["Sig"] == 1, (axis_labels[shift], "FDR < 0.05")
        )
        yield Drawing("ranked", ranked, "All edits by their difference.")
        labels = (measure.replace("_", " "), "null cells, all edits")
        yield _background(null_rows, test_rows, _outermost(table, shift), labels)

    text = (
        "Each edit's shifts in these cells are compared with its shifts in the null cells by a "
        "two-sided rank-sum test. Negative differences mean that the edit moves these cells more."
    )
    return StatisticResult(
        {"vs_null": [table]}, drawings, text, {"measure": measure, "state": state}
    )


def mixture(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Edits, or the genes one edit affects, divided into those with impact and those without."""
    if options.anchor:
        return _anchor_mixture(folder, options)
    measure, state = _measure_and_state(folder, options)
    rows = _cell_rows(folder, measure, state, options)
    return _mixture_outcome(rows, "perturbed", "edits", {"measure": measure, "state": state})


def _anchor_mixture(folder: Path, options: StatisticOptions) -> StatisticResult:
    rows = ShiftRows(folder / GENE_SHIFTS, _GENE_ROWS, {"perturbed": options.anchor})
    if not any(True for _ in rows):
        raise InputError(f"the gene shifts in {folder} have no edit {options.anchor}; name a "
                         "perturbed gene by its id")  # fmt: skip
    return _mixture_outcome(rows, "affected", "genes", {"anchor": options.anchor})


def _mixture_outcome(rows: ShiftRows, of: str, what: str, used: dict[str, Any]) -> StatisticResult:
    table, fitted = mixture_model(rows, of)
    impact = table["Impact_component"] == 1

    def drawings() -> Iterator[Drawing]:
        means = table["Test_avg_shift"]
        figure = draw.mixture_figure(means.to_numpy(), fitted, f"mean shift of {what}")
        yield Drawing("components", figure, f"Mean shifts of {what} and the two components.")
        ranked = draw.ranked_figure(table, "Test_avg_shift", impact, ("mean shift", "impact"))
        yield Drawing("ranked", ranked, f"All {what} by their mean shift.")

    text = (
        f"{impact.sum():,} of {len(table):,} {what} belong to the impact component, the one with "
        f"the lower mean ({fitted.means[0]:.4g} against {fitted.means[1]:.4g})."
    )
    used["components"] = {name: values.tolist() for name, values in fitted._asdict().items()}
    return StatisticResult({"mixture_model": [table]}, drawings, text, used)


def aggregate(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Shifts put together over cells, and the shift of every cell beside."""
    measure = choose_measure(folder, options.measure, (*COSINES, STATE_SHIFT))
    rows = _cell_rows(folder, measure, options.state or None, options)
    table = statistics_aggregate.aggregate(rows)

    def drawings() -> Iterator[Drawing]:
        for state, part in table.groupby("State"):
            label = f"{_words(measure)} {state}".strip()
            figure = draw.ranked_figure(part, "Cosine_sim_mean", part["N_Detections"] < 2,
                                        (label, "one cell only"))  # fmt: skip
            name = f"ranked_{slug(state)}" if state else "ranked"
            yield Drawing(name, figure, f"All edits by their mean over cells: {label}.")

    text = "Mean and standard deviation over the cells in which an edit was made."
    tables = {"aggregate": [table], "aggregate_data": statistics_aggregate.aggregate_cells(rows)}
    return StatisticResult(tables, drawings, text, {"measure": measure, "state": options.state})


def aggregate_gene_shifts(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Shifts of genes put together over cells, from all of them or from running means."""
    measure = choose_measure(folder, options.measure, COSINES)
    cells = _cell_rows(folder, measure, "", options)
    if (folder / GENE_SHIFTS).is_dir() or not (folder / GENE_MEANS).exists():
        genes = ShiftRows(folder / GENE_SHIFTS, _GENE_ROWS, None, options.set_size)
        pieces = statistics_aggregate.aggregate_gene_shifts(cells, genes)
    else:
        pieces = _with_means(cells, folder)
    kept: dict[str, list[pd.DataFrame]] = {}

    def drawings() -> Iterator[Drawing]:
        for edit, parts in kept.items():
            rows = pd.concat(parts) if parts else pd.DataFrame()
            if len(rows):
                figure = draw.affected_figure(rows, str(rows["Gene_name"].iloc[0]))
                caption = f"Genes that {rows['Gene_name'].iloc[0]} affects most."
                yield Drawing(f"affected_{slug(edit)}", figure, caption)

    text = (
        "How far each edit moves the cell (Affected = cell_emb) and each of its genes, mean and "
        "standard deviation over cells. Where only the farthest moved genes of each cell were "
        "kept, the means and N_Detections are over the cells in which the gene was among them."
    )
    tables = {"aggregate_gene_shifts": _keeping(pieces, options.anchor, kept)}
    return StatisticResult(tables, drawings, text, {"measure": measure, "anchor": options.anchor})


def _with_means(cells: ShiftRows, folder: Path) -> Iterator[pd.DataFrame]:
    first, *_ = statistics_aggregate.aggregate_gene_shifts(cells, [])
    yield first
    for piece in read_gene_means(folder):
        yield piece[first.columns].sort_values("Cosine_sim_mean", ignore_index=True)


def _keeping(
    pieces: Iterable[pd.DataFrame], anchor: str, kept: dict[str, list[pd.DataFrame]]
) -> Iterator[pd.DataFrame]:
    """Passes pieces on, and keeps the rows of the edits to draw."""
    for piece in pieces:
        if not kept:
            # An edit of a handful of cells can have the lowest mean by chance.
            common = piece[piece["N_Detections"] * 4 >= piece["N_Detections"].max()]
            strongest = common.nsmallest(_DRAWN_EDITS, "Cosine_sim_mean")["Ensembl_ID"]
            kept.update({edit: [] for edit in ([anchor] if anchor else strongest)})
        else:
            for edit, parts in kept.items():
                parts.append(piece[(piece["Ensembl_ID"] == edit).to_numpy()])
        yield piece


def combination_effects(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Sets of genes edited together against each gene alone."""
    measure, state = _measure_and_state(folder, options)
    if measure not in (*COSINES, STATE_SHIFT):
        raise InputError(f"combination effects of {measure} are not defined; take "
                         f"{', '.join((*COSINES, STATE_SHIFT))}")  # fmt: skip
    rows = _cell_rows(folder, measure, state, dataclasses.replace(options, set_size=0))
    table, left_out = combinations(rows, 0.0 if measure == STATE_SHIFT else 1.0)
    shift = "Combo_minus_sum_shift"
    axis_labels = {shift: "observed minus sum of single effects", "Combo_vs_sum_FDR": "-log10 FDR"}

    def drawings() -> Iterator[Drawing]:
        volcano = draw.volcano_figure(table, shift, "Combo_vs_sum_FDR", axis_labels)
        yield Drawing("volcano", volcano, "Combination effect of each set and its significance.")
        ranked = draw.ranked_figure(
            table, shift, table["Sig"] == 1, (axis_labels[shift], "FDR < 0.05")
        )
        yield Drawing("ranked", ranked, "All sets by their combination effect.")
        for name, column, label in (
            ("pairs_sum", shift, axis_labels[shift]),
            ("pairs_strongest", "Combo_minus_strongest_shift", "observed minus strongest single"),
        ):
            if figure := draw.pairs_figure(table, column, label):
                yield Drawing(name, figure, f"Pairs of genes: {label}.")

    text = (
        "Each set is compared, cell by cell, with the sum of the effects of its genes alone and "
        "with the strongest of them. "
        + ("Above 0: the set shifts cells more towards the state than expected. "
           if measure == STATE_SHIFT
           else "Below 0: the set moves cells more than expected. ")
        + f"{left_out:,} sets are left out, because a gene of theirs was not edited alone."
    )  # fmt: skip
    used = {"measure": measure, "state": state, "left_out": left_out}
    return StatisticResult({"combinations": [table]}, drawings, text, used)


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


def _measure_and_state(folder: Path, options: StatisticOptions) -> tuple[str, str]:
    """The measure and the one state of a statistic that is about one number per cell and edit."""
    measure = choose_measure(folder, options.measure, (*COSINES, STATE_SHIFT))
    if measure in COSINES:
        if options.state:
            raise InputError(f"{measure} has no states, but state {options.state} was named; "
                             f"leave it out or name the measure {STATE_SHIFT}")  # fmt: skip
        return measure, ""
    goal = states_of(read_provenance(folder))[0] if measure == STATE_SHIFT else ""
    state = options.state or goal
    if not state:
        raise InputError(f"{measure} has a row for each state or class; name one in state")
    return measure, state


def _cell_rows(
    folder: Path, measure: str, state: str | None, options: StatisticOptions
) -> ShiftRows:
    """Rows of a measure, of one state or (None) of all; there is at least one."""
    where = {"measure": measure} | ({} if state is None else {"state": state})
    rows = ShiftRows(folder / SHIFTS, _CELL_ROWS, where, options.set_size)
    if not any(True for _ in rows):
        of = f" towards {state}" if state else ""
        size = f" for edits of {options.set_size} genes" if options.set_size else ""
        known = states_in(folder, measure)
        near = did_you_mean(state, known) if state else ""
        raise InputError(
            f"the tables in {folder} hold no {measure}{of}{size}{near}; "
            f"states there: {', '.join(known) or 'none'}"
        )
    return rows


def states_in(folder: Path, measure: str) -> list[str]:
    """Returns the states that a measure has rows of, sorted."""
    rows = ShiftRows(folder / SHIFTS, ("state",), {"measure": measure})
    return sorted({str(state) for piece in rows for state in piece["state"].unique()} - {""})


def _outermost(table: pd.DataFrame, shift: str) -> pd.DataFrame:
    """The edits to show cell by cell: the first of the ranked table and the last."""
    half = _SHOWN_EDITS // 2
    known = table[table[shift].notna()]
    return known if len(known) <= _SHOWN_EDITS else pd.concat([known.head(half), known.tail(half)])


def _background(
    background: ShiftRows, rows: ShiftRows, edits: pd.DataFrame, labels: tuple[str, str]
) -> Drawing:
    sample = statistics.sample_shifts(background)
    values = statistics.values_of_edits(rows, list(edits["Ensembl_ID"]))
    names = dict(zip(edits["Ensembl_ID"], edits["Gene_name"], strict=True))
    named = {names[edit]: each for edit, each in values.items()}
    figure = draw.background_figure(sample, named, labels)
    return Drawing("background", figure, "Cells of the outermost edits beside what they are "
                   "compared with; bars are means.")  # fmt: skip


def _words(measure: str) -> str:
    return _COSINE if measure in COSINES else f"mean {measure.replace('_', ' ')}"
