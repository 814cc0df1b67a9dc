"""Controls set beside a statistic: further columns, figures, and a table of what they found."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.perturbation.controls import comparisons, of_genes
from geneformer_jax.perturbation.controls.choice import CELLS as CELLS_COMPARED
from geneformer_jax.perturbation.controls.choice import (
    COVARIANCE,
    COVERAGE,
    DEAR,
    DONORS,
    EXPRESSION,
    LIKE_RANK,
    NEEDS_GROUP,
    NEEDS_START,
    RANDOM_WEIGHTS,
    RERANKING,
    RESPONSIVENESS,
    SELF_DELETION,
    START,
    refuse,
)
from geneformer_jax.perturbation.controls.donors import MIN_DONORS
from geneformer_jax.perturbation.controls.finding import Asked, Finding
from geneformer_jax.perturbation.controls.responsiveness import (
    MIN_EDITS,
    describe,
    responsiveness,
    without_responsiveness,
)
from geneformer_jax.perturbation.layout import (
    BASELINES,
    CELLS,
    OBS,
    RANDOM_RUN,
    SHIFTS,
    WITHOUT_OWN,
)
from geneformer_jax.perturbation.statistics.modes import (
    Controls,
    StatisticOptions,
    StatisticResult,
    aggregate_gene_shifts,
    goal_state_shift,
)
from geneformer_jax.perturbation.statistics.tables import (
    column_names,
    read_provenance,
)
from geneformer_jax.reporting.figures import Drawing

OF_GENES: dict[str, Callable[[Asked], Finding]] = {
    LIKE_RANK: of_genes.like_rank,
    CELLS_COMPARED: of_genes.cells,
    COVERAGE: of_genes.coverage,
    START: of_genes.start,
    RERANKING: comparisons.reranking,
    EXPRESSION: comparisons.differential_expression,
    COVARIANCE: comparisons.covariance,
    DONORS: of_genes.donors,
    RANDOM_WEIGHTS: comparisons.random_weights,
    SELF_DELETION: comparisons.self_deletion,
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
_COLUMNS = ["control", "what it asks", "result", "verdict"]
_MODE, _OF_GENE_SHIFTS = goal_state_shift.__name__, aggregate_gene_shifts.__name__
_OF_MODE = {_MODE: tuple(OF_GENES), _OF_GENE_SHIFTS: (RESPONSIVENESS,)}


def with_controls(
    folder: Path,
    mode: str,
    options: StatisticOptions,
    result: StatisticResult,
    names: Sequence[str] | None,
) -> StatisticResult:
    """Sets controls beside the statistics that have some; others stay as they are.

    Args:
      folder: of the perturbation.
      mode, options, result: of the statistic.
      names: of controls, see `read_controls`.

    Raises:
      InputError: a control that was named cannot be made.
    """
    of_mode = _OF_MODE.get(mode, ())
    names = None if names is None else [name for name in names if name in of_mode]
    if not of_mode or names == []:
        return result
    if mode == _OF_GENE_SHIFTS:
        return _with_responsiveness(folder, options, result, names is not None)
    asked = _asked(folder, options, result)
    lacking = {name: why for name in names or OF_GENES if (why := _lacks(name, asked))}
    if names and lacking:
        name, why = next(iter(lacking.items()))
        raise refuse(name, why)
    made = [name for name in names or OF_GENES if name not in lacking]
    findings = {name: OF_GENES[name](asked) for name in made}
    return result._replace(
        tables=result.tables | {mode: [_joined(asked.table, findings.values())]},
        controls=Controls(
            table=_described(findings, lacking),
            verdict=findings[LIKE_RANK].result if LIKE_RANK in findings else "",
            headings={
                name: text for each in findings.values() for name, text in each.headings.items()
            },
            drawings=lambda: _drawings(findings.values()),
        ),
    )


def _asked(folder: Path, options: StatisticOptions, result: StatisticResult) -> Asked:
    provenance, used = read_provenance(folder), result.used
    states = provenance.get("counts", {}).get("states") or {}
    return Asked(
        folder=folder,
        measure=used["measure"],
        goal=used["goal"],
        start=states.get("start") or "",
        chosen_cells=provenance.get("counts", {}).get("chosen_cells", 0),
        min_cells=options.min_cells,
        table=pd.concat(result.tables[_MODE], ignore_index=True),
        donors=_donors(folder, options.group) if options.group else None,
    )


def _donors(folder: Path, column: str) -> pd.Series:
    """Returns the values of an obs column by id of the cell, without missing ones."""
    path = folder / CELLS
    if not path.exists():
        raise InputError(f"{path} is missing, in which the cells' donors would be; perturb again")
    names = pq.read_schema(path).names
    check_columns([name.removeprefix(OBS) for name in names if name.startswith(OBS)], [column])
    table = pd.read_parquet(path, columns=["cell", f"{OBS}{column}"])
    return table.set_index("cell")[f"{OBS}{column}"].dropna()


def _lacks(name: str, asked: Asked) -> str:
    """Says what a control needs that the tables lack; "" where nothing is missing."""
    if "rank" not in column_names(asked.folder / SHIFTS):
        return "ranks of the edited genes, which tables of this version have: perturb again"
    if not any(True for _ in asked.rows(asked.goal)):
        return "edits of single genes: perturb each gene in turn"
    if name == START and not asked.has_start:
        return NEEDS_START
    if name == RERANKING and name not in column_names(asked.folder / SHIFTS):
        return "the part `reranking` of shifts: perturb with `screen`"
    if name in _FILES and not (asked.folder / _FILES[name]).exists():
        return _NOT_MADE[name]
    if name == DONORS and (asked.donors is None or asked.donors.nunique() < MIN_DONORS):
        return f"{NEEDS_GROUP}, of which at least {MIN_DONORS} have cells"
    return ""


def _with_responsiveness(
    folder: Path, options: StatisticOptions, result: StatisticResult, is_required: bool
) -> StatisticResult:
    again = aggregate_gene_shifts(folder, options)
    found = responsiveness(again.tables[_OF_GENE_SHIFTS], options.min_cells)
    if found.edits < MIN_EDITS:
        why = (
            f"at least {MIN_EDITS} edits of {options.min_cells} cells, but there are "
            f"{found.edits}: perturb more genes, or lower `min_cells`"
        )
        if is_required:
            raise refuse(RESPONSIVENESS, why)
        table = _described({}, {RESPONSIVENESS: why})
        return result._replace(controls=Controls(table, "", {}, lambda: iter(())))
    pieces = without_responsiveness(result.tables[_OF_GENE_SHIFTS], found.means)
    row = (RESPONSIVENESS, "Does an edit affect genes that other edits do not?", *describe(found))
    controls = Controls(
        table=pd.DataFrame([row], columns=_COLUMNS),
        verdict="",
        drawings=lambda: iter(()),
        headings={
            "Universal_mean": "mean over all edits of the affected gene's mean cosine, pairs in "
            f"fewer than {options.min_cells} cells left out",
            "Minus_universal": "Cosine_sim_mean minus that: below 0, this edit moves the gene more "
            "than edits do",
        },
    )
    return result._replace(tables=result.tables | {_OF_GENE_SHIFTS: pieces}, controls=controls)


def _joined(table: pd.DataFrame, findings: Iterable[Finding]) -> pd.DataFrame:
    for finding in findings:
        columns = finding.columns.reindex(table["Ensembl_ID"]).reset_index(drop=True)
        table = pd.concat([table, columns], axis=1)
    return table


def _described(findings: dict[str, Finding], lacking: dict[str, str]) -> pd.DataFrame:
    rows = [(name, each.asks, each.result, each.verdict) for name, each in findings.items()]
    rows += [(name, "", f"not made: it needs {why}", "") for name, why in lacking.items()]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _drawings(findings: Iterable[Finding]) -> Iterator[Drawing]:
    for finding in findings:
        yield from finding.drawings
