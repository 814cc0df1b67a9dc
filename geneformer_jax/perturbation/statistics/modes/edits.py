"""Shifts of edits put together: over cells, of genes, of sets of genes, and which have impact."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import slug
from geneformer_jax.perturbation.layout import GENE_MEANS, GENE_SHIFTS
from geneformer_jax.perturbation.statistics import aggregate as statistics_aggregate
from geneformer_jax.perturbation.statistics import figures as draw
from geneformer_jax.perturbation.statistics.combinations import combinations
from geneformer_jax.perturbation.statistics.mixture import mixture_model
from geneformer_jax.perturbation.statistics.modes.result import StatisticOptions, StatisticResult
from geneformer_jax.perturbation.statistics.modes.rows import (
    cell_rows,
    draw_ranked,
    draw_tested,
    measure_and_state,
)
from geneformer_jax.perturbation.statistics.tables import (
    COSINES,
    STATE_SHIFT,
    ShiftRows,
    choose_measure,
    read_gene_means,
)
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import Drawing

_GENE_ROWS = ("cell", "perturbed", "perturbed_symbol", "affected", "affected_symbol", "value")
_DRAWN_EDITS, _DRAWN_GENES = 3, 25
_COSINE = "mean cosine similarity"


def mixture(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Edits, or the genes one edit affects, divided into those with impact and those without."""
    if options.anchor:
        return _anchor_mixture(folder, options)
    measure, state = measure_and_state(folder, options)
    rows = cell_rows(folder, measure, state, options)
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
        counts, edges = np.histogram(means, draw.mixture_bins(len(means)))
        names = f"impact {fitted.means[0]:.4g}", f"no impact {fitted.means[1]:.4g}"
        marks = dict(zip(names, fitted.means.tolist(), strict=True))
        chart = charts.histogram(counts, edges, (f"mean shift of {what}", what), marks)
        caption = f"Mean shifts of {what} and the two components."
        yield Drawing("components", figure, caption, chart)
        yield draw_ranked(
            table, "mixture_model", "Test_avg_shift", impact, ("mean shift", "impact"),
            f"All {what} by their mean shift.",
        )  # fmt: skip

    text = (
        f"{impact.sum():,} of {len(table):,} {what} belong to the impact component, the one with "
        f"the lower mean ({fitted.means[0]:.4g} against {fitted.means[1]:.4g})."
    )
    used["components"] = {name: values.tolist() for name, values in fitted._asdict().items()}
    return StatisticResult({"mixture_model": [table]}, drawings, text, used)


def aggregate(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Shifts put together over cells, and the shift of every cell beside."""
    measure = choose_measure(folder, options.measure, (*COSINES, STATE_SHIFT))
    rows = cell_rows(folder, measure, options.state or None, options)
    table = statistics_aggregate.aggregate(rows)

    def drawings() -> Iterator[Drawing]:
        for state, part in table.groupby("State"):
            label = f"{_words(measure)} {state}".strip()
            yield draw_ranked(
                part, "aggregate", "Cosine_sim_mean", part["N_Detections"] < 2,
                (label, "one cell only"), f"All edits by their mean over cells: {label}.",
                name=f"ranked_{slug(state)}" if state else "ranked",
            )  # fmt: skip

    text = "Mean and standard deviation over the cells in which an edit was made."
    tables = {"aggregate": [table], "aggregate_data": statistics_aggregate.aggregate_cells(rows)}
    return StatisticResult(tables, drawings, text, {"measure": measure, "state": options.state})


def aggregate_gene_shifts(folder: Path, options: StatisticOptions) -> StatisticResult:
    """Shifts of genes put together over cells, from all of them or from running means."""
    measure = choose_measure(folder, options.measure, COSINES)
    cells = cell_rows(folder, measure, "", options)
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
                figure = draw.affected_figure(rows, str(rows["Gene_name"].iloc[0]), _DRAWN_GENES)
                caption = f"Genes that {rows['Gene_name'].iloc[0]} affects most."
                shown = rows.nsmallest(_DRAWN_GENES, "Cosine_sim_mean")
                spread = shown["Cosine_sim_stdev"]
                shown = shown.assign(
                    low=shown["Cosine_sim_mean"] - spread,
                    high=(shown["Cosine_sim_mean"] + spread).clip(upper=1),
                )
                chart = charts.dots(
                    shown, "Cosine_sim_mean", "Affected_gene_name",
                    "cosine similarity before and after", interval=("low", "high"),
                    further=("N_Detections",),
                )  # fmt: skip
                yield Drawing(f"affected_{slug(edit)}", figure, caption, chart)

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
    measure, state = measure_and_state(folder, options)
    if measure not in (*COSINES, STATE_SHIFT):
        raise InputError(f"combination effects of {measure} are not defined; take "
                         f"{', '.join((*COSINES, STATE_SHIFT))}")  # fmt: skip
    rows = cell_rows(folder, measure, state, dataclasses.replace(options, set_size=0))
    table, left_out = combinations(rows, 0.0 if measure == STATE_SHIFT else 1.0)
    shift = "Combo_minus_sum_shift"
    axis_labels = {shift: "observed minus sum of single effects", "Combo_vs_sum_FDR": "-log10 FDR"}

    def drawings() -> Iterator[Drawing]:
        yield from draw_tested(
            table, "combinations", (shift, "Combo_vs_sum_FDR", "N_Detections"), axis_labels,
            ("Combination effect of each set and its significance.",
             "All sets by their combination effect."),
        )  # fmt: skip
        for name, column, label in (
            ("pairs_sum", shift, axis_labels[shift]),
            ("pairs_strongest", "Combo_minus_strongest_shift", "observed minus strongest single"),
        ):
            if (pairs := draw.strongest_pairs(table, column)) is not None:
                figure, chart = draw.pairs_figure(pairs, label), draw.pairs_chart(pairs, label)
                yield Drawing(name, figure, f"Pairs of genes: {label}.", chart)

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


def _words(measure: str) -> str:
    return _COSINE if measure in COSINES else f"mean {measure.replace('_', ' ')}"
