"""The tables of a perturbation, read a piece at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import read_json
from geneformer_jax.common.provenance import FILE_NAME
from geneformer_jax.perturbation.layout import (
    CELLS,
    EDITS,
    GENE_MEANS,
    GENE_SHIFTS,
    JOINT,
    METHODS,
    SHIFTS,
)

STATE_SHIFT = "state_shift"
# The original's "cell_emb" is the first that a run has of these.
COSINES = ("mean_gene_cosine", "cls_cosine", "cell_cosine")
_MEANS = {
    "perturbed_symbol": "Gene_name",
    "perturbed": "Ensembl_ID",
    "affected_symbol": "Affected_gene_name",
    "affected": "Affected_Ensembl_ID",
    "mean": "Cosine_sim_mean",
    "sd": "Cosine_sim_stdev",
    "n": "N_Detections",
}
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
_PIECE_ROWS = 1 << 18
_FLOATS = ("value", "reranking", "removal", "estimate", "mean", "sd")
_WHOLE = ("rank", "n")
_FLAGS = ("sampled",)
# Only shifts towards states have these.
_IN_SOME_ROWS = ("reranking", "removal", "estimate")


class ShiftRows:
    """Rows of one folder of parquet files as DataFrames, a piece at a time, as often as wanted.

    Args:
      folder: holds part-*.parquet.
      columns: names of those to read.
      where: read only rows with this value in this column, for each of its entries.
      genes_in_edit: read only edits of this many genes; 0 reads all.

    Raises:
      InputError: the folder is missing or empty, a file is damaged, or a column is missing.
    """

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        where: dict[str, str] | None = None,
        genes_in_edit: int = 0,
    ):
        self._parts = parts_of(folder)
        for part in self._parts:
            _require_columns(part, {*columns, *(where or {})})
        self._columns, self._where = list(columns), dict(where or {})
        self._genes_in_edit = genes_in_edit

    def __iter__(self) -> Iterator[pd.DataFrame]:
        for part in self._parts:
            try:
                yield from self._pieces(part)
            except _DAMAGED as error:
                raise _damaged(part) from error

    def _pieces(self, part: Path) -> Iterator[pd.DataFrame]:
        with pq.ParquetFile(part, page_checksum_verification=True) as file:
            columns = sorted({*self._columns, *self._where})
            for batch in file.iter_batches(_PIECE_ROWS, columns=columns):
                table = _with_values(pa.table(batch), part)
                for name, value in self._where.items():
                    table = table.filter(pc.equal(table[name].cast(pa.string()), value))
                piece = _as_frame(table.select(self._columns))
                if self._genes_in_edit:
                    piece = piece[_edit_sizes(piece["perturbed"]) == self._genes_in_edit]
                if len(piece):
                    yield piece


def problem_of_columns(schema: pa.Schema, columns: Iterable[str]) -> str:
    """Says which of the columns a table of shifts lacks, or has of another type; "" if none."""
    columns = sorted(columns)
    if missing := [name for name in columns if name not in schema.names]:
        return f"has no column {', '.join(missing)}"
    for name in columns:
        kinds = [schema.field(at).type for at in schema.get_all_field_indices(name)]
        if len(kinds) > 1:
            return f"has {len(kinds)} columns {name}"
        expected, words = _expected_in(name)
        if not expected(kinds[0]):
            return f"has a column {name} of {kinds[0]}, not of {words}"
    return ""


def problem_of_values(table: pa.Table) -> str:
    """Says which column of a table of shifts lacks values that it must have; "" if none."""
    for name in table.column_names:
        column = table[name]
        if name in _IN_SOME_ROWS:
            continue
        if column.null_count:
            return f"has a column {name} without a value in {column.null_count:,} rows"
        if name in _FLOATS and not pc.all(pc.is_finite(column)).as_py():
            return f"has a column {name} with values that are NaN or infinite"
    return ""


def _require_columns(part: Path, columns: Iterable[str]) -> None:
    if problem := problem_of_columns(schema_of(part), columns):
        raise InputError(f"{part} {problem}; name a folder that perturb wrote")


def _with_values(table: pa.Table, part: Path) -> pa.Table:
    if problem := problem_of_values(table):
        raise InputError(f"{part} {problem}; run the perturbation again")
    return table


def _as_frame(table: pa.Table) -> pd.DataFrame:
    # Notes that pandas left in a file add nothing here; pyarrow reads them though it is told not
    # to (`ignore_metadata`), and ends in errors of JSON where they are damaged.
    return table.replace_schema_metadata(None).to_pandas()


def _expected_in(column: str) -> tuple[Callable[[pa.DataType], bool], str]:
    if column in _FLOATS:
        return pa.types.is_floating, "numbers"
    if column in _WHOLE:
        return pa.types.is_integer, "whole numbers"
    if column in _FLAGS:
        return pa.types.is_boolean, "true and false"
    return _is_text, "texts"


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value)


def parts_of(folder: Path) -> list[Path]:
    """Returns the parquet files of a folder of tables, in their order.

    Raises:
      InputError: the folder is missing or empty.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        run = folder.parent.resolve()
        unfinished = run.with_name(run.name + ".parts").is_dir()
        remedy = (
            "its perturbation is not finished: run it again with the same arguments"
            if unfinished
            else f"name a folder that perturb wrote{_gene_remedy(folder)}"
        )
        raise InputError(f"there are no tables {folder.name}/part-*.parquet in {folder.parent}; "
                         f"{remedy}")  # fmt: skip
    return parts


def choose_measure(folder: Path, wanted: str, usual: Sequence[str]) -> str:
    """Returns the measure `wanted`, or if "" the first of `usual` that the tables hold.

    Raises:
      InputError: the tables do not hold it.
    """
    part = parts_of(folder / SHIFTS)[0]
    _require_columns(part, ["measure"])
    try:
        measures = _with_values(pq.read_table(part, columns=["measure"]), part)
    except _DAMAGED as error:
        raise _damaged(part) from error
    held = measures["measure"].unique().to_pylist()
    chosen = [wanted] if wanted else [name for name in usual if name in held][:1]
    if not chosen or chosen[0] not in held:
        asked = wanted or " or ".join(usual)
        raise InputError(
            f"the tables in {folder} hold no {asked}{did_you_mean(asked, held)}; they hold "
            f"{', '.join(sorted(held))}; name one that is there by `measure`"
        )
    return chosen[0]


def are_same_cells(folder: Path, other: Path) -> bool:
    """Whether two runs perturbed the same cells; False where one does not list them."""
    paths = [each / CELLS for each in (folder, other)]
    if not all(path.exists() for path in paths):
        return False
    first, second = (set(read_table(path, ["cell"])["cell"]) for path in paths)
    return first == second


def edit_kind(folder: Path) -> str:
    """Returns what was done to the genes: delete, overexpress..."""
    part = parts_of(folder / SHIFTS)[0]
    _require_columns(part, ["edit"])
    try:
        return str(pq.ParquetFile(part).read_row_group(0, columns=["edit"])["edit"][0])
    except (*_DAMAGED, IndexError) as error:
        raise _damaged(part) from error


def edits_in(folder: Path) -> int:
    """Returns how many edits a finished perturbation made, in all its cells."""
    return int(read_table(folder / EDITS, ["cells"])["cells"].sum())


def read_table(
    path: Path, columns: Sequence[str] | None = None, where: dict[str, str] | None = None
) -> pd.DataFrame:
    """Reads a table that a run wrote beside its shifts; of its rows those with these values.

    Raises:
      InputError: it is missing or damaged, or has no such column.
    """
    try:
        columns = None if columns is None else list(columns)
        table = pq.read_table(
            path,
            columns=columns,
            filters=[(name, "==", value) for name, value in (where or {}).items()] or None,
            page_checksum_verification=True,
        )
    except (*_DAMAGED, KeyError) as error:
        raise InputError(f"{path} is missing or damaged; run the perturbation again") from error
    return _as_frame(table)


def states_of(provenance: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Returns (goal state, alternative states) of a perturbation, ("", ()) without."""
    states = provenance.get("counts", {}).get("states") or {}
    return states.get("goal") or "", tuple(states.get("alternatives") or ())


def read_provenance(folder: Path) -> dict[str, Any]:
    """Returns provenance.json of a perturbation.

    Raises:
      InputError: it is missing or damaged.
    """
    path = folder / FILE_NAME
    try:
        provenance = read_json(path)
        _require_facts(provenance)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged; name a folder that perturb wrote"
        ) from error
    return provenance


def _require_facts(provenance: Any) -> None:
    """Raises ValueError where what statistics use of a provenance is not what it should be."""
    counts = provenance.get("counts", {}) if isinstance(provenance, dict) else None
    if not isinstance(counts, dict):
        raise ValueError("it tells no counts")
    states, screen = (counts.get(name) or {} for name in ("states", "screen"))
    if not isinstance(states, dict) or not isinstance(screen, dict):
        raise ValueError("its states or its screen are no records")
    if screen and not all(type(screen.get(name)) is int for name in METHODS):
        raise ValueError("its screen tells no numbers of edits")
    alternatives = states.get("alternatives") or []
    names = [states.get("start") or "", states.get("goal") or ""]
    if not isinstance(alternatives, list) or not all(
        isinstance(name, str) for name in [*names, *alternatives]
    ):
        raise ValueError("its states are no texts")


def read_gene_means(folder: Path) -> Iterator[pd.DataFrame]:
    """Yields the running means of gene shifts as pieces of the table `aggregate_gene_shifts`.

    Raises:
      InputError: the file is missing or damaged.
    """
    path = folder / GENE_MEANS
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _require_columns(path, _MEANS)
            for batch in file.iter_batches(_PIECE_ROWS, columns=list(_MEANS)):
                table = _with_values(pa.table(batch), path)
                piece = _as_frame(table).rename(columns=_MEANS)
                piece = piece.astype({"N_Detections": np.int64})
                yield piece.assign(Affected=piece["Affected_Ensembl_ID"].astype(str))
    except _DAMAGED as error:
        raise _damaged(path) from error


def _edit_sizes(perturbed: pd.Series) -> np.ndarray:
    """int [rows], the genes of each edit."""
    codes, distinct = pd.factorize(perturbed)
    return np.array([name.count(JOINT) + 1 for name in distinct], int)[codes]


def column_names(folder: Path) -> list[str]:
    """Returns the columns of a folder of tables; raises InputError if it has none."""
    return schema_of(parts_of(folder)[0]).names


def schema_of(part: Path) -> pa.Schema:
    """Returns the columns of a file; raises InputError if it is damaged."""
    try:
        return pq.read_schema(part)
    except _DAMAGED as error:
        raise _damaged(part) from error


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged or no parquet table; run the perturbation again")


def _gene_remedy(folder: Path) -> str:
    return " with gene shifts" if folder.name == GENE_SHIFTS else ""
