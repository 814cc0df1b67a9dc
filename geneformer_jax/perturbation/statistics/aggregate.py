"""Means of shifts over cells, for each edit and for each pair of genes."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from geneformer_jax.perturbation.layout import EXACT
from geneformer_jax.perturbation.statistics.moments import (
    GeneIndex,
    Moments,
    RunningMoments,
    blocks_of,
)
from geneformer_jax.perturbation.statistics.shifts import (
    CELL,
    PAIRS_AT_ONCE,
    Pieces,
    is_within,
    sorted_by,
)

_PAIR_COLUMNS = (
    "Gene_name",
    "Ensembl_ID",
    "Affected",
    "Affected_gene_name",
    "Affected_Ensembl_ID",
)
_MOMENT_COLUMNS = ("Cosine_sim_mean", "Cosine_sim_stdev", "N_Detections")


def aggregate(pieces: Pieces) -> pd.DataFrame:
    """How far each edit moves its cells: the mean over cells and its spread.

    Returns:
      One row for each edit and state, farthest moved from the top (the smallest mean): Gene_name,
      Ensembl_ID, State ("" without states), Cosine_sim_mean, Cosine_sim_stdev (population, as the
      original's other tables), N_Detections.
    """
    edits, groups = _moments_by(pieces, ["state"])
    tables = []
    for (state,), moments in groups.items():
        names = {
            "Gene_name": edits.symbols[moments.keys],
            "Ensembl_ID": edits.names[moments.keys],
            "State": state,
        }
        tables.append(pd.DataFrame({**names, **_moment_columns(moments)}))
    return sorted_by(pd.concat(tables), {"State": True, "Cosine_sim_mean": True})


def summarise(pieces: Pieces) -> pd.DataFrame:
    """Summarises each edit, measure and state over cells.

    Args:
      pieces: rows of all measures and states.

    Returns:
      One row for each edit, measure and state, sorted by these: perturbed, perturbed_symbol,
      measure, state, mean, sd (population) and n (cells).
    """
    edits, groups = _moments_by(pieces, ["measure", "state"])
    tables = []
    for (measure, state), moments in groups.items():
        columns = {
            "perturbed": edits.names[moments.keys],
            "perturbed_symbol": edits.symbols[moments.keys],
            "measure": measure,
            "state": state,
            "mean": moments.means,
            "sd": moments.deviations,
            "n": moments.counts,
        }
        tables.append(pd.DataFrame(columns))
    keys = ["perturbed", "perturbed_symbol", "measure", "state"]
    return pd.concat(tables).sort_values(keys, ignore_index=True)


def with_parts(summary: pd.DataFrame, pieces: Pieces, parts: Sequence[str]) -> pd.DataFrame:
    """Adds what shifts consist of to a summary.

    Args:
      summary: see `summarise`.
      pieces: rows as often as wanted, with the columns `parts`.
      parts: of `reranking`, `removal` and `method`.

    Returns:
      The summary with the means over cells of `reranking` and `removal`, NaN for measures without
      these, and from `method` of a screen `exact`, the fraction of the cells in which the edit was
      made exactly.
    """
    keys = ["perturbed", "perturbed_symbol", "measure", "state"]
    for name in parts:
        means = summarise(_as_values(pieces, name))[[*keys, "mean"]]
        column = "exact" if name == "method" else name
        summary = summary.merge(means.rename(columns={"mean": column}), on=keys)
    return summary


def _as_values(pieces: Pieces, name: str) -> Iterator[pd.DataFrame]:
    for piece in pieces:
        values = piece[name] if name != "method" else (piece[name] == EXACT).astype(float)
        yield piece.assign(value=values)


def _moments_by(
    pieces: Pieces, columns: list[str]
) -> tuple[GeneIndex, dict[tuple[str, ...], Moments]]:
    """Returns the edits, and their moments by the values of some columns.

    The memory taken depends on the number of different edits and values alone.
    """
    edits, running = GeneIndex(), {}
    for piece in pieces:
        numbers = edits.add(piece["perturbed"], piece["perturbed_symbol"])
        values = piece["value"].to_numpy(np.float64)
        keys = [piece[name].to_numpy(object) for name in columns]
        for key, rows in pd.Series(np.arange(len(piece))).groupby(keys, sort=False):
            running.setdefault(key, RunningMoments()).add(numbers[rows], values[rows])
    return edits, {key: each.result() for key, each in running.items()}


def aggregate_cells(pieces: Pieces) -> Iterator[pd.DataFrame]:
    """The shift of every cell, as the original's aggregate_data: Cosine_sim, Gene, a row per cell.

    Sets of genes, at which the original fails, are named "A+B". `Cell`, `Ensembl_ID` and `State`
    stand beside, because the original does not name the cell of a row.
    """
    columns = {
        "cell": "Cell",
        "value": "Cosine_sim",
        "perturbed_symbol": "Gene",
        "perturbed": "Ensembl_ID",
        "state": "State",
    }
    for piece in pieces:
        yield piece[list(columns)].rename(columns=columns)


def aggregate_gene_shifts(
    cells: Pieces, genes: Pieces, *, pairs_at_once: int = PAIRS_AT_ONCE
) -> Iterator[pd.DataFrame]:
    """How far each edit moves the cells, and each gene in them.

    Args:
      cells: rows of one measure and state.
      genes: rows with `affected` and `affected_symbol` instead of `state`: the shifts of genes.
      pairs_at_once: pairs of a perturbed and an affected gene held in memory; with more, `genes`
        is read several times.

    Yields:
      The table in pieces: Gene_name, Ensembl_ID, Affected (gene id, or "cell_emb" for the cell
      itself, all of which come first), Affected_gene_name, Affected_Ensembl_ID, Cosine_sim_mean,
      Cosine_sim_stdev (population), N_Detections; each piece by ascending mean.
    """
    by_cell = aggregate(cells).drop(columns="State")
    by_cell[["Affected", "Affected_gene_name", "Affected_Ensembl_ID"]] = CELL, "", ""
    yield by_cell[[*_PAIR_COLUMNS, *_MOMENT_COLUMNS]]
    edits, affected = GeneIndex(), GeneIndex()
    rows = np.zeros(0, np.int64)
    for piece in genes:
        numbers = edits.add(piece["perturbed"], piece["perturbed_symbol"])
        affected.add(piece["affected"], piece["affected_symbol"])
        counts = np.bincount(numbers, minlength=len(edits))
        counts[: len(rows)] += rows
        rows = counts
    for block in blocks_of(np.minimum(rows, len(affected)), pairs_at_once):
        yield _pair_table(genes, edits, affected, block)


def _pair_table(genes: Pieces, edits: GeneIndex, affected: GeneIndex, block: range) -> pd.DataFrame:
    running = RunningMoments()
    for piece in genes:
        numbers = edits.find(piece["perturbed"])
        rows = is_within(numbers, block)
        keys = numbers[rows] * len(affected) + affected.find(piece["affected"][rows])
        running.add(keys, piece["value"].to_numpy(np.float64)[rows])
    moments = running.result()
    edit, gene = np.divmod(moments.keys, max(len(affected), 1))
    columns = (
        edits.symbols[edit],
        edits.names[edit],
        affected.names[gene],
        affected.symbols[gene],
        affected.names[gene],
    )
    names = dict(zip(_PAIR_COLUMNS, columns, strict=True))
    return sorted_by(pd.DataFrame({**names, **_moment_columns(moments)}), {"Cosine_sim_mean": True})


def _moment_columns(moments: Moments) -> dict[str, np.ndarray]:
    columns = (moments.means, moments.deviations, moments.counts)
    return dict(zip(_MOMENT_COLUMNS, columns, strict=True))
