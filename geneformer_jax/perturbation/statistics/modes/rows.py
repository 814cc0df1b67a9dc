"""Rows of a folder's shifts that statistics read, and what several of them draw."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.perturbation.layout import SHIFTS
from geneformer_jax.perturbation.statistics import figures as draw
from geneformer_jax.perturbation.statistics import shifts as statistics
from geneformer_jax.perturbation.statistics.modes.result import StatisticOptions
from geneformer_jax.perturbation.statistics.tables import (
    COSINES,
    STATE_SHIFT,
    ShiftRows,
    choose_measure,
    read_provenance,
    states_of,
)
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import Drawing

_CELL_ROWS = ("cell", "perturbed", "perturbed_symbol", "state", "value")
_SHOWN_EDITS = 12


def measure_and_state(folder: Path, options: StatisticOptions) -> tuple[str, str]:
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


def cell_rows(
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


def outermost(table: pd.DataFrame, shift: str) -> pd.DataFrame:
    """The edits to show cell by cell: the first of the ranked table and the last."""
    half = _SHOWN_EDITS // 2
    known = table[table[shift].notna()]
    return known if len(known) <= _SHOWN_EDITS else pd.concat([known.head(half), known.tail(half)])


def draw_ranked(
    table: pd.DataFrame,
    mode: str,
    shift: str,
    chosen: pd.Series,
    labels: tuple[str, str],
    caption: str,
    name: str = "ranked",
) -> Drawing:
    """Draws all edits by their rank; for the arguments see `ranked_figure`."""
    figure = draw.ranked_figure(table, shift, chosen, labels)
    cells = "N_Detections" if "N_Detections" in table else ""
    chart = charts.ranked(table, shift, chosen, labels, cells)
    caption += charts.describe_thinned(len(table))
    return Drawing(name, figure, caption, chart, mode)


def draw_tested(
    table: pd.DataFrame,
    mode: str,
    columns: tuple[str, str, str],
    labels: Mapping[str, str],
    captions: tuple[str, str],
) -> Iterator[Drawing]:
    """Draws edits that were tested, by significance and by rank.

    Args:
      table: of the statistic, with `Sig`.
      mode: of the statistic.
      columns: shift, FDR, number of cells.
      labels: of the axes, by column.
      captions: of the two figures.
    """
    shift, rate, cells = columns
    chart = charts.volcano(table, shift, rate, labels, cells)
    figure = draw.volcano_figure(table, shift, rate, labels)
    thinned = charts.describe_thinned(len(table))
    yield Drawing("volcano", figure, captions[0] + thinned, chart, mode)
    significant, words = table["Sig"] == 1, (labels[shift], "FDR < 0.05")
    chart = charts.ranked(table, shift, significant, words, cells, rate)
    figure = draw.ranked_figure(table, shift, significant, words)
    yield Drawing("ranked", figure, captions[1] + thinned, chart, mode)


def draw_background(
    background: ShiftRows, rows: ShiftRows, edits: pd.DataFrame, labels: tuple[str, str]
) -> Drawing:
    """Draws the cells of some edits, named in `edits`, beside a sample of the background."""
    sample = statistics.sample_shifts(background)
    values = statistics.values_of_edits(rows, list(edits["Ensembl_ID"]))
    names = dict(zip(edits["Ensembl_ID"], edits["Gene_name"], strict=True))
    named = {names[edit]: each for edit, each in values.items()}
    figure = draw.background_figure(sample, named, labels)
    caption = "Cells of the outermost edits beside what they are compared with; bars are means."
    return Drawing(
        "background", figure, caption, charts.strips({labels[1]: sample} | named, labels[0])
    )
