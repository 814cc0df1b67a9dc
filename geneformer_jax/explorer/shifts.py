"""Perturbations: their edits, and which genes an edit moves, read from what perturb wrote."""

import functools
from collections.abc import Iterator
from pathlib import Path

import altair as alt
import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.layout import GENE_MEANS, GENE_SHIFTS, JOINT, WORDS
from geneformer_jax.perturbation.statistics.modes.result import MIN_CELLS
from geneformer_jax.perturbation.statistics.report import STATISTICS, compute_statistic
from geneformer_jax.perturbation.statistics.tables import ShiftRows, read_table, schema_of
from geneformer_jax.reporting import charts

# Statistics in memory: a gene is looked up in all of them.
_KEPT = 16
# Computed where a perturbation has no statistics yet.
_MEANS = "aggregate"
# Shift, its FDR and its number of cells, of the statistics that test.
_TESTED = (
    ("Shift_to_goal_end", "Goal_end_FDR", "N_Detections"),
    ("Test_vs_null_avg_shift", "Test_vs_null_FDR", "N_Detections_test"),
    ("Combo_minus_sum_shift", "Combo_vs_sum_FDR", "N_Detections"),
)
_PAIR = ["gene", "gene_id", "cosine", "cells"]
CAUTION = (
    f"Shifts in fewer than {MIN_CELLS} cells say little. Whether the others can be believed is "
    "told by the controls, in columns of the table and in the report of the perturbation."
)
MEANINGS_OF_PAIRS = {
    "cosine": "mean over cells of the cosine of the gene before with after: 1 where nothing moved",
    "cells": "in which this was measured",
}
_RANKED = ("Shift_to_goal_end", "Test_avg_shift", "Cosine_sim_mean")


def statistics_of(folder: Path) -> list[str]:
    """Returns the names of a perturbation's statistics with a row for each edit."""
    names = [path.stem for path in _tables(folder)]
    return names or [_MEANS]


def _tables(folder: Path) -> Iterator[Path]:
    for path in sorted((folder / STATISTICS).glob("*.parquet")):
        columns = set(schema_of(path).names)
        is_of_edits = "Ensembl_ID" in columns and "Affected" not in columns
        if is_of_edits and columns.intersection((*_RANKED, *(shift for shift, *_ in _TESTED))):
            yield path


@functools.lru_cache(maxsize=_KEPT)
def read_statistic(folder: Path, name: str) -> pd.DataFrame:
    """Returns a statistic of `statistics_of`, an edit a row; nothing is written.

    Raises:
      InputError: a table is damaged.
    """
    path = folder / STATISTICS / f"{name}.parquet"
    if path.is_file():
        return read_table(path)
    return pd.concat(compute_statistic(folder, name, controls=[]).tables[name], ignore_index=True)


def edits_of_gene(folder: Path, name: str, gene_id: str) -> pd.DataFrame:
    """Returns the rows of a statistic whose edit is, or holds, a gene."""
    table = read_statistic(folder, name)
    return table[[gene_id in each.split(JOINT) for each in table["Ensembl_ID"].astype(str)]]


def edits_chart(table: pd.DataFrame) -> alt.LayerChart:
    """Charts the edits of a statistic: by significance where it tests them, else by rank."""
    for shift, rate, cells in _TESTED:
        if {shift, rate, "Sig"} <= set(table):
            return charts.volcano(
                table, shift, rate, {shift: WORDS[shift], rate: "-log10 FDR"}, cells
            )
    shift = next(name for name in _RANKED if name in table)
    enough = table["N_Detections"] >= MIN_CELLS
    labels = WORDS[shift], f"in at least {MIN_CELLS} cells"
    return charts.ranked(table, shift, enough, labels, "N_Detections")


def has_gene_shifts(folder: Path) -> bool:
    """Whether a perturbation measured how single genes move."""
    return (folder / GENE_MEANS).is_file() or (folder / GENE_SHIFTS).is_dir()


def affected_by(folder: Path, edit: str) -> pd.DataFrame:
    """Returns the genes that an edit moves, those it moves most first.

    Columns: gene, gene_id, cosine (before with after, the mean over cells: 1 where nothing moved),
    cells.

    Raises:
      InputError: a table is damaged; the perturbation did not measure single genes.
    """
    return _pairs(folder, "perturbed", edit, "affected")


def affecting(folder: Path, gene_id: str) -> pd.DataFrame:
    """Returns the edits that move a gene, as `affected_by` the genes."""
    return _pairs(folder, "affected", gene_id, "perturbed")


def _pairs(folder: Path, given: str, gene_id: str, other: str) -> pd.DataFrame:
    if not has_gene_shifts(folder):
        raise InputError(
            f"{folder.name} did not measure how single genes move; perturb with gene_shifts=means"
        )
    if (folder / GENE_MEANS).is_file():
        rows = _of_means(folder / GENE_MEANS, given, gene_id, other)
    else:
        rows = _of_cells(folder / GENE_SHIFTS, given, gene_id, other)
    return rows.sort_values(["cosine", "gene_id"], kind="stable", ignore_index=True)


def _of_means(path: Path, given: str, gene_id: str, other: str) -> pd.DataFrame:
    columns = [f"{other}_symbol", other, "mean", "n"]
    rows = read_table(path, columns, {given: gene_id})
    return rows.set_axis(_PAIR, axis=1).astype({"gene": str, "gene_id": str})


def _of_cells(folder: Path, given: str, gene_id: str, other: str) -> pd.DataFrame:
    columns = [f"{other}_symbol", other, "value"]
    pieces = [piece.astype(dict.fromkeys(columns[:2], str))
              for piece in ShiftRows(folder, columns, {given: gene_id})]  # fmt: skip
    if not pieces:
        return pd.DataFrame(columns=_PAIR)
    rows = pd.concat(pieces)
    means = rows.groupby(columns[:2])["value"].agg(["mean", "size"]).reset_index()
    return means.set_axis(_PAIR, axis=1)
