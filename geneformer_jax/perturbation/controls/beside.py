"""Controls set beside a statistic: further columns, figures, and a table of what they found."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.perturbation.controls import comparisons, of_genes
from geneformer_jax.perturbation.controls.choice import CELLS as WITHIN_CELLS
from geneformer_jax.perturbation.controls.choice import (
    COVARIANCE,
    COVERAGE,
    DONORS,
    EXPRESSION,
    LIKE_RANK,
    QUESTIONS,
    RANDOM_WEIGHTS,
    RERANKING,
    RESPONSIVENESS,
    SELF_DELETION,
    START,
    refuse,
)
from geneformer_jax.perturbation.controls.finding import Asked, Finding
from geneformer_jax.perturbation.controls.requirements import (
    GOAL,
    OF_GENE_SHIFTS,
    OF_MODE,
    what_is_lacking,
    why_none,
)
from geneformer_jax.perturbation.controls.responsiveness import (
    MIN_EDITS,
    describe,
    responsiveness,
    without_responsiveness,
)
from geneformer_jax.perturbation.layout import CELLS, COUNTS, OBS
from geneformer_jax.perturbation.statistics.modes.edits import aggregate_gene_shifts
from geneformer_jax.perturbation.statistics.modes.result import (
    Controls,
    StatisticOptions,
    StatisticResult,
)
from geneformer_jax.perturbation.statistics.tables import read_provenance, read_table, schema_of
from geneformer_jax.reporting.figures import Drawing

_ASK: dict[str, Callable[[Asked], Finding]] = {
    LIKE_RANK: of_genes.like_rank,
    WITHIN_CELLS: of_genes.cells,
    COVERAGE: of_genes.coverage,
    START: of_genes.start,
    RERANKING: comparisons.reranking,
    EXPRESSION: comparisons.differential_expression,
    COVARIANCE: comparisons.covariance,
    DONORS: of_genes.donors,
    RANDOM_WEIGHTS: comparisons.random_weights,
    SELF_DELETION: comparisons.self_deletion,
}
_COLUMNS = ["control", "what it asks", "result", "verdict"]


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
    of_mode = OF_MODE.get(mode, ())
    if names != () and (why := why_none(mode, options.anchor)):
        logger.info(f"{mode}: {why}")
        return result._replace(text=f"{result.text} {why[0].upper()}{why[1:]}.")
    names = None if names is None else [name for name in names if name in of_mode]
    if names == []:
        return result
    if mode == OF_GENE_SHIFTS:
        return _with_responsiveness(folder, options, result, names is not None)
    asked = _asked(folder, mode, options, result)
    lacking = {name: why for name in names or of_mode if (why := what_is_lacking(name, asked))}
    if names and lacking:
        raise refuse(*next(iter(lacking.items())))
    findings = {name: _ASK[name](asked) for name in names or of_mode if name not in lacking}
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


def _asked(folder: Path, mode: str, options: StatisticOptions, result: StatisticResult) -> Asked:
    provenance, used = read_provenance(folder), result.used
    states = provenance.get("counts", {}).get("states") or {}
    table = pd.concat(result.tables[mode], ignore_index=True)
    return Asked(
        folder=folder,
        mode=mode,
        measure=used["measure"],
        goal=used["goal"] if mode == GOAL else used["state"] or _only_state(table),
        start=states.get("start") or "",
        chosen_cells=provenance.get("counts", {}).get("chosen_cells", 0),
        min_cells=options.min_cells,
        table=table,
        has_counts=provenance.get("counts", {}).get("expression_of") == COUNTS,
        group=options.group,
        donors=_donors(folder, options.group) if options.group else None,
    )


def _only_state(table: pd.DataFrame) -> str:
    states = table["State"].unique() if "State" in table else [""]
    return str(states[0]) if len(states) == 1 else ""


def _donors(folder: Path, column: str) -> pd.Series:
    """Returns the values of an obs column by id of the cell, without missing ones."""
    path = folder / CELLS
    if not path.exists():
        raise InputError(f"{path} is missing, in which the cells' donors would be; perturb again")
    names = schema_of(path).names
    check_columns([name.removeprefix(OBS) for name in names if name.startswith(OBS)], [column])
    table = read_table(path, ["cell", f"{OBS}{column}"])
    return table.set_index("cell")[f"{OBS}{column}"].dropna()


def _with_responsiveness(
    folder: Path, options: StatisticOptions, result: StatisticResult, is_required: bool
) -> StatisticResult:
    again = aggregate_gene_shifts(folder, options)
    found = responsiveness(again.tables[OF_GENE_SHIFTS], options.min_cells)
    if found.edits < MIN_EDITS:
        why = (
            f"at least {MIN_EDITS} edits of {options.min_cells} cells, but there are "
            f"{found.edits}: perturb more genes, or lower `min_cells`"
        )
        if is_required:
            raise refuse(RESPONSIVENESS, why)
        table = _described({}, {RESPONSIVENESS: why})
        return result._replace(controls=Controls(table, "", {}, lambda: iter(())))
    pieces = without_responsiveness(result.tables[OF_GENE_SHIFTS], found.means)
    row = (RESPONSIVENESS, QUESTIONS[RESPONSIVENESS], *describe(found))
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
    return result._replace(tables=result.tables | {OF_GENE_SHIFTS: pieces}, controls=controls)


def _joined(table: pd.DataFrame, findings: Iterable[Finding]) -> pd.DataFrame:
    for finding in findings:
        columns = finding.columns.reindex(table["Ensembl_ID"]).reset_index(drop=True)
        table = pd.concat([table, columns], axis=1)
    return table


def _described(findings: dict[str, Finding], lacking: dict[str, str]) -> pd.DataFrame:
    rows = [(name, QUESTIONS[name], each.result, each.verdict) for name, each in findings.items()]
    rows += [
        (name, QUESTIONS[name], f"not made: it needs {why}", "") for name, why in lacking.items()
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _drawings(findings: Iterable[Finding]) -> Iterator[Drawing]:
    for finding in findings:
        yield from finding.drawings
