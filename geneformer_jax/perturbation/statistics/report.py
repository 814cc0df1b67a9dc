"""Statistics of a finished perturbation: tables, figures and a page to read, in its folder.

`perturbation_statistics` is what the perturb command calls, and a notebook on its output.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from geneformer_jax.common.arguments import require_path, require_type
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import FILE_NAME, describe_run
from geneformer_jax.common.tables import without_formulas
from geneformer_jax.perturbation.controls.beside import with_controls
from geneformer_jax.perturbation.controls.choice import ALL, read_controls
from geneformer_jax.perturbation.layout import MEANINGS, REPORT, SHIFTS, WORDS
from geneformer_jax.perturbation.statistics.accuracy.estimated import mark_estimates
from geneformer_jax.perturbation.statistics.from_table import write_table_of_shifts
from geneformer_jax.perturbation.statistics.modes.choice import MODES, require_modes
from geneformer_jax.perturbation.statistics.modes.result import (
    Controls,
    StatisticOptions,
    StatisticResult,
)
from geneformer_jax.perturbation.statistics.shifts import BACKGROUND, SEED
from geneformer_jax.reporting.figures import Drawing, save_figure
from geneformer_jax.reporting.html import Report, include_pages
from geneformer_jax.reporting.index import refresh_index
from geneformer_jax.reporting.tables import MAX_ROWS

STATISTICS = "statistics"
# Options that only some modes take.
_ONLY = {
    "null": ("vs_null",),
    "goal": ("goal_state_shift",),
    "alternatives": ("goal_state_shift",),
    "group": ("goal_state_shift",),
    "without_own": ("goal_state_shift",),
    "anchor": ("mixture_model", "aggregate_gene_shifts"),
    "state": ("vs_null", "mixture_model", "aggregate", "combinations"),
}


def perturbation_statistics(
    folder: Path | str | pd.DataFrame,
    mode: str,
    *,
    output: Path | str | None = None,
    null: Path | str = "",
    goal: str = "",
    alternatives: Sequence[str] | None = None,
    measure: str = "",
    state: str = "",
    anchor: str = "",
    without_own: bool = False,
    background: int = BACKGROUND,
    seed: int = SEED,
    set_size: int = 0,
    controls: str | Sequence[str] = ALL,
    min_cells: int = StatisticOptions.min_cells,
    group: str = "",
) -> list[Path]:
    """Computes one statistic of a perturbation and writes it into the folder `statistics` there.

    Writes <mode>.parquet, <mode>.csv, <mode>_<figure>.png and .pdf, <mode>.html (all of it on one
    page) and the mode's entry in provenance.json. Each file appears whole or not at all, and those
    of an earlier call with the same mode are replaced.

    Args:
      folder: what `perturb`, or `perturb_cells` with an `output`, wrote; or the table of shifts of
        cells that `perturb_cells` returned, beside which no other lists, donors or numbers of cells
        of the states are known.
      mode: goal_state_shift, vs_null, mixture_model, aggregate, aggregate_gene_shifts or
        combinations; see the functions of these names in `shifts`, `mixture`, `aggregate` and
        `combinations`.
      output: for a table: the new folder to write it into, and then its statistics.
      null: for vs_null: the perturbation of other cells to compare with.
      goal: for goal_state_shift: the goal state, by default the perturbation's.
      alternatives: for goal_state_shift: further states, by default the perturbation's.
      measure: by default state_shift for goal_state_shift, else the first there is of
        mean_gene_cosine (the original's), cls_cosine and cell_cosine.
      state: the state, if the measure has states; by default the goal state, and for aggregate all.
      anchor: one edit (gene id): for mixture_model, divide the genes that it affects instead of the
        edits; for aggregate_gene_shifts, the edit to draw.
      without_own: for goal_state_shift: compare an edit with a background that it is not part of.
      background: at most this many rows of the background of goal_state_shift; more are sampled.
      seed: of that sample.
      set_size: only edits of this many genes; 0 takes all, and so compares pairs with single genes
        where a perturbation has both.
      controls: what is set beside it, from what the folder holds: "all" that it allows, "none", or
        names: like_rank, cells, coverage, start, differential_expression, covariance, donors, and
        what the run makes on request, reranking, random_weights and self_deletion, for
        goal_state_shift; those that fit for aggregate, mixture_model and vs_null, which say why
        others do not; responsiveness for aggregate_gene_shifts. See `perturbation.controls`.
      min_cells: genes edited in fewer cells are not compared by controls.
      group: for the control donors: obs column of the cells that names them.

    Returns:
      The files written.

    Raises:
      InputError: unknown mode, no or damaged tables, tables without what the mode needs, a state
        that is absent, too few cells or edits, or an option that the mode does not take.
    """
    is_table = isinstance(folder, pd.DataFrame)
    if not is_table:
        require_path("folder", folder, "the folder that the command perturb wrote")
        if output is not None:
            raise InputError("`output` is for a table; statistics of a folder are written there")
    require_type("mode", mode, str, f"choose from {', '.join(MODES)}")
    require_modes([mode], null)
    if alternatives is not None:
        alternatives = (alternatives,) if isinstance(alternatives, str) else tuple(alternatives)
    options = StatisticOptions(str(null), goal, alternatives, measure, state, anchor, without_own,
                      background, seed, set_size, min_cells, group)  # fmt: skip
    _check(mode, options)
    names = read_controls(controls)
    folder = write_table_of_shifts(folder, output) if is_table else Path(folder)
    result = compute_statistic(folder, mode, options, names)
    target = folder / STATISTICS
    target.mkdir(exist_ok=True)
    written, heads = [], {}
    for name, pieces in result.tables.items():
        files, heads[name] = _write_table(target / name, pieces)
        written += files
    drawings = list(result.drawings())
    of_controls = list(result.controls.drawings()) if result.controls else []
    for drawing in [*drawings, *of_controls]:
        written += save_figure(drawing.figure, target / f"{mode}_{drawing.name}")
    _remove_others(target, mode, written)
    rows = {name: head[1] for name, head in heads.items()}
    provenance = _provenance(folder, mode, options, result, rows)
    page = Report(_title(mode), f"Statistics of the perturbation {folder.name}.")
    if result.controls:
        _log_verdict(mode, result.controls)
        heads[mode] = _enough_cells_first(target / f"{mode}.parquet", min_cells, heads[mode])
    _add(page, mode, result, drawings, heads)
    if result.controls:
        _add_controls(page, result.controls, of_controls)
    _add_meanings(page, heads[mode][0], result.controls)
    page.provenance(provenance)
    page.write(target / f"{mode}.html")
    _record(target / FILE_NAME, mode, provenance)
    if (report := folder / REPORT).exists():
        pages = (target / f"{each}.html" for each in MODES)
        include_pages(report, [path for path in pages if path.exists()])
    refresh_index(folder)
    return [*written, target / f"{mode}.html", target / FILE_NAME]


def compute_statistic(
    folder: Path,
    mode: str,
    options: StatisticOptions | None = None,
    controls: Sequence[str] | None = None,
) -> StatisticResult:
    """Computes one statistic of what `perturb` wrote, and the controls beside it; writes nothing.

    Args:
      folder: of the perturbation.
      mode, options: see `perturbation_statistics`.
      controls: names; None for all that the folder allows.

    Raises:
      InputError: see `perturbation_statistics`.
    """
    options = options or StatisticOptions()
    result = with_controls(folder, mode, options, MODES[mode](folder, options), controls)
    return mark_estimates(folder, result)


def _check(mode: str, options: StatisticOptions) -> None:
    defaults = StatisticOptions()
    for name, modes in _ONLY.items():
        value = getattr(options, name)
        if value != getattr(defaults, name) and mode not in modes:
            raise InputError(f"{name} = {value} has no meaning for {mode}, only for "
                             f"{', '.join(modes)}; leave it out")  # fmt: skip
    for name, minimum in (("background", 1), ("set_size", 0), ("seed", 0), ("min_cells", 2)):
        value = getattr(options, name)
        if value < minimum:
            raise InputError(f"{name} is {value}, but must be at least {minimum}")


def _write_table(
    stem: Path, pieces: Iterable[pd.DataFrame]
) -> tuple[list[Path], tuple[pd.DataFrame, int]]:
    """Writes pieces as one parquet and one csv; returns the files and (first rows, all rows)."""
    paths = [stem.with_name(f"{stem.name}.parquet"), stem.with_name(f"{stem.name}.csv")]
    first: list[pd.DataFrame] = []
    rows = 0
    with contextlib.ExitStack() as stack:
        asides = [stack.enter_context(atomic_write(path)) for path in paths]
        with contextlib.ExitStack() as open_files:
            writers: list[Any] = []
            for piece in pieces:
                tables = [_plain(piece), _plain(without_formulas(piece))]
                if not writers:
                    schemas = [table.schema for table in tables]
                    parquet = pq.ParquetWriter(asides[0], schemas[0], compression="zstd")
                    csv = pyarrow.csv.CSVWriter(asides[1], schemas[1])
                    writers = [open_files.enter_context(each) for each in (parquet, csv)]
                for writer, table, schema in zip(writers, tables, schemas, strict=True):
                    writer.write_table(table.cast(schema))
                if rows < MAX_ROWS:
                    first.append(piece.head(MAX_ROWS - rows))
                rows += len(piece)
    return paths, (pd.concat(first, ignore_index=True), rows)


def _plain(piece: pd.DataFrame) -> pa.Table:
    """The piece with its categories as text, and without pandas' own notes."""
    table = pa.Table.from_pandas(piece, preserve_index=False)
    fields = [
        pa.field(field.name, pa.string() if _is_text(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _remove_others(target: Path, mode: str, written: Sequence[Path]) -> None:
    """Removes figures of an earlier call that this one did not draw again."""
    other_modes = [f"{name}_" for name in MODES if name.startswith(f"{mode}_")]
    for suffix in ("png", "pdf"):
        for path in target.glob(f"{mode}_*.{suffix}"):
            if path not in written and not path.name.startswith(tuple(other_modes)):
                path.unlink()


def _add(
    report: Report,
    mode: str,
    result: StatisticResult,
    drawings: Sequence[Drawing],
    heads: dict[str, tuple[pd.DataFrame, int]],
) -> None:
    """Adds the answer, the first rows of the main table and figures to a report."""
    verdict = result.controls.verdict if result.controls else ""
    if verdict:
        report.conclude(f"{verdict[0].upper()}{verdict[1:]}.")
    report.section("Edits", result.text)
    for drawing in drawings:
        report.draw(drawing)
    head, rows = heads[mode]
    shown = "" if rows == len(head) else f" The first {len(head):,} of {rows:,} rows."
    caption = f"All of the table is in {STATISTICS}/{mode}.csv.{shown}"
    if result.controls and "Matched_FDR" in head:
        caption += " Genes in too few cells to be compared come last here."
    meanings = MEANINGS | dict(result.controls.headings if result.controls else {})
    key = "Ensembl_ID" if "Ensembl_ID" in head else ""
    report.table(_numbers_first(head), caption, name=mode, key=key, words=WORDS, meanings=meanings)


def _log_verdict(mode: str, controls: Controls) -> None:
    if controls.verdict:
        logger.info(f"{mode}: {controls.verdict}")


def _numbers_first(table: pd.DataFrame) -> pd.DataFrame:
    """The table with numbers of cells beside the names of genes."""
    first = [name for name in table if name.startswith(("Gene_name", "N_Detections"))]
    return table[[*first, *(name for name in table if name not in first)]]


def _add_controls(report: Report, controls: Controls, drawings: Sequence[Drawing]) -> None:
    report.section("Can this be believed?")
    report.table(controls.table, "What each control asks of this result, and what it found.")
    for drawing in drawings:
        report.draw(drawing)


def _add_meanings(report: Report, table: pd.DataFrame, controls: Controls | None) -> None:
    """Says what the columns of the main table are."""
    meanings = MEANINGS | dict(controls.headings if controls else {})
    known = [
        (WORDS.get(name, name.replace("_", " ")), meanings[name], name)
        for name in _numbers_first(table)
        if name in meanings
    ]
    report.section("What the columns say")
    headings = ["heading", "meaning", "column in the files"]
    report.table(pd.DataFrame(known, columns=headings), "Columns of the table above.")


def _enough_cells_first(
    path: Path, min_cells: int, head: tuple[pd.DataFrame, int]
) -> tuple[pd.DataFrame, int]:
    """Returns the rows to show of a table of edits, those of enough cells first.

    The files keep the original's order, in which edits of single cells come first by chance.
    """
    cells = next((name for name in head[0] if name.startswith("N_Detections")), None)
    if cells is None or "Matched_FDR" not in head[0]:
        return head
    table = pd.read_parquet(path)
    few = (table[cells] < min_cells).to_numpy()
    order = np.argsort(few, kind="stable")[:MAX_ROWS]
    return table.iloc[order].reset_index(drop=True), head[1]


def _title(mode: str) -> str:
    return f"Statistics: {mode.replace('_', ' ')}"


def _provenance(
    folder: Path,
    mode: str,
    options: StatisticOptions,
    result: StatisticResult,
    rows: dict[str, int],
) -> dict[str, Any]:
    asked = {**dataclasses.asdict(options), **result.used, "folder": folder, "mode": mode}
    inputs = [folder / SHIFTS, *([Path(options.null) / SHIFTS] if options.null else [])]
    return describe_run("statistics", asked, inputs, {"rows": rows})


def _record(path: Path, mode: str, provenance: dict[str, Any]) -> None:
    """Writes the mode's provenance beside those of other modes."""
    kept: dict[str, Any] = {}
    if path.exists():
        with contextlib.suppress(ValueError):
            kept = json.loads(path.read_text(encoding="utf-8"))
    kept[mode] = provenance
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(kept, indent=2, default=str) + "\n", encoding="utf-8")
