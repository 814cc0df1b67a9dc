"""Controls set beside a statistic: further columns, figures, and a table of what they found."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.perturbation.controls import of_genes
from geneformer_jax.perturbation.controls.finding import Asked, Finding
from geneformer_jax.perturbation.layout import SHIFTS
from geneformer_jax.perturbation.statistics.modes import (
    Controls,
    StatisticOptions,
    StatisticResult,
    goal_state_shift,
)
from geneformer_jax.perturbation.statistics.tables import (
    column_names,
    read_provenance,
)
from geneformer_jax.reporting.figures import Drawing

ALL, NONE = "all", "none"
OF_GENES: dict[str, Callable[[Asked], Finding]] = {
    "like_rank": of_genes.like_rank,
    "cells": of_genes.cells,
    "coverage": of_genes.coverage,
    "start": of_genes.start,
}
_NEEDS_START = "a start state that is not the goal: perturb with `start`"
_MODE = goal_state_shift.__name__


def read_controls(controls: str | Sequence[str]) -> tuple[str, ...] | None:
    """Returns the names of controls that must be made, or None for all that the run allows.

    Args:
      controls: "all", "none", or names.

    Raises:
      InputError: a name is unknown.
    """
    names = (controls,) if isinstance(controls, str) else tuple(controls)
    if names in ((ALL,), (NONE,)):
        return None if names == (ALL,) else ()
    for name in names:
        if name not in OF_GENES:
            known = [*OF_GENES, ALL, NONE]
            raise InputError(
                f'there is no control "{name}"{did_you_mean(name, known)}; `controls` are '
                f"{', '.join(known)}"
            )
    return names


def require_controls(controls: str | Sequence[str], start: str) -> None:
    """Raises InputError for an unknown control, or one that a run without a start cannot have."""
    if "start" in (read_controls(controls) or ()) and not start:
        raise InputError(f'the control "start" needs {_NEEDS_START}; or leave it out of `controls`')


def with_controls(
    folder: Path,
    mode: str,
    options: StatisticOptions,
    result: StatisticResult,
    names: Sequence[str] | None,
) -> StatisticResult:
    """Sets controls beside a goal-state shift; other statistics stay as they are.

    Args:
      folder: of the perturbation.
      mode, options, result: of the statistic.
      names: of controls, see `read_controls`.

    Raises:
      InputError: a control that was named cannot be made.
    """
    if mode != _MODE or names == ():
        return result
    asked = _asked(folder, options, result)
    lacking = {name: why for name in names or OF_GENES if (why := _lacks(name, asked))}
    if names and lacking:
        name, why = next(iter(lacking.items()))
        raise InputError(f'the control "{name}" needs {why}; or leave it out of `controls`')
    made = [name for name in names or OF_GENES if name not in lacking]
    findings = {name: OF_GENES[name](asked) for name in made}
    return result._replace(
        tables=result.tables | {mode: [_joined(asked.table, findings.values())]},
        controls=Controls(
            table=_described(findings, lacking),
            verdict=findings["like_rank"].result if "like_rank" in findings else "",
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
    )


def _lacks(name: str, asked: Asked) -> str:
    """Says what a control needs that the tables lack; "" where nothing is missing."""
    if "rank" not in column_names(asked.folder / SHIFTS):
        return "ranks of the edited genes, which tables of this version have: perturb again"
    if not any(True for _ in asked.rows(asked.goal)):
        return "edits of single genes: perturb each gene in turn"
    if name == "start" and asked.start in ("", asked.goal):
        return _NEEDS_START
    return ""


def _joined(table: pd.DataFrame, findings: Iterable[Finding]) -> pd.DataFrame:
    for finding in findings:
        columns = finding.columns.reindex(table["Ensembl_ID"]).reset_index(drop=True)
        table = pd.concat([table, columns], axis=1)
    return table


def _described(findings: dict[str, Finding], lacking: dict[str, str]) -> pd.DataFrame:
    rows = [(name, each.asks, each.result, each.verdict) for name, each in findings.items()]
    rows += [(name, "", f"not made: it needs {why}", "") for name, why in lacking.items()]
    return pd.DataFrame(rows, columns=["control", "what it asks", "result", "verdict"])


def _drawings(findings: Iterable[Finding]) -> Iterator[Drawing]:
    for finding in findings:
        yield from finding.drawings
