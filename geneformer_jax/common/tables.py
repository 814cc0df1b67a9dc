"""Tables of ids that people write, read into one form, and tables as text that we write.

A spreadsheet computes text that begins with =, +, -, @, a tab or a carriage return, and may so send
what is in the table elsewhere (OWASP: CSV injection). Such labels and names of genes get a ' in
front, which reading takes away again; numbers stay as they are. The downloads of reports do the
same, by the same expression in `reporting/report.js`.
"""

import bz2
import csv
import gzip
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import read_json, suffixes_of

# What reading a damaged Parquet table raises: pandas trusts the notes that it left in one.
PARQUET_ERRORS = (ValueError, OSError, LookupError, TypeError, AttributeError, pa.ArrowException)
SUFFIXES = (".json", ".txt", ".tsv", ".csv", ".parquet")

CLASS_COLUMNS = ("class", "label", "labels", "category")
GENE_COLUMNS = (
    "ensembl_id",
    "ensembl_gene_id",
    "gene_id",
    "gene_ids",
    "id",
    "gene",
    "genes",
    "gene_symbol",
    "hgnc_symbol",
    "symbol",
    "gene_name",
)
_HEADINGS = {*CLASS_COLUMNS, *GENE_COLUMNS, "ensembl", "symbols", "cell", "cell_id", "barcode"}

# A number is none, also where it is a label, such as cluster -1.
_FORMULA = r"(?![+-]?\d+\.?\d*(?:e[+-]?\d+)?$)[=+\-@\t\r]"
FORMULA = re.compile(f"'*{_FORMULA}", re.IGNORECASE)
_NEUTRAL = re.compile(f"'+{_FORMULA}", re.IGNORECASE)
# What pandas unpacks by a file's ending; archives have checksums of their own.
_UNPACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ARCHIVES = {".zip", ".tar", ".zst"}
_PART_BYTES = 1 << 20


def read_id_table(path: Path | str) -> pd.DataFrame:
    """Reads a table of text.

    Args:
      path: .csv, .tsv or .parquet with named columns (a .gz is unpacked); .json as
        {"class": ["id", ...]}, read as columns `class` and `id`; .txt as a table with tabs, or as
        one id per line, read as column `id`. One column needs no heading: a first line that is
        none (see `is_heading`) is an id.

    Returns:
      [rows] text columns; blanks around values are gone.

    Raises:
      InputError: it is not there, of another kind, or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    suffix = next((each for each in SUFFIXES if each in suffixes_of(path)), "")
    if not suffix:
        raise InputError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if suffix == ".json":
        table = _from_json(path)
    elif suffix == ".parquet":
        table = _from_parquet(path)
    elif suffix == ".txt" and not _has_tabs(path):
        table = _one_column(path.read_text(encoding="utf-8-sig").splitlines())
    else:
        table = read_table(path)
        if table.shape[1] == 1 and not is_heading(table.columns[0]):
            table = _one_column([table.columns[0], *table.iloc[:, 0]])
    table = table.astype(str).apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)].reset_index(drop=True)
    if table.empty:
        raise InputError(f"{path} holds no row; name a table with ids")
    return table


def is_heading(text: object) -> bool:
    """Whether a text names a column of ids or classes, as "Gene symbol" does."""
    return _plain(text) in _HEADINGS


def _plain(heading: object) -> str:
    return "_".join(str(heading).strip(" \"'").lower().split())


def _one_column(values: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": values[1:] if values and is_heading(values[0]) else values})


def named_column(table: pd.DataFrame, names: tuple[str, ...], what: str, path: object) -> str:
    """Returns the first of `names` that is a column of `table`.

    Raises:
      InputError: it has none of them.
    """
    found = {_plain(column): column for column in reversed(list(table.columns))}
    for name in names:
        if name in found:
            return found[name]
    have = ", ".join(map(str, table.columns))
    raise InputError(
        f"{path} has no column with {what}: the first line has {have}; call it one of "
        f"{', '.join(names)} there"
    )


def _has_tabs(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return "\t" in file.readline()


def _from_json(path: Path) -> pd.DataFrame:
    try:
        content = read_json(path, _without_repeats)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); write it anew") from error
    right = isinstance(content, dict) and all(isinstance(ids, list) for ids in content.values())
    if not right:
        raise InputError(f'{path} must be of the form {{"class": ["id", ...], ...}}')
    rows = [(name, each) for name, ids in content.items() for each in ids]
    return pd.DataFrame(rows, columns=["class", "id"])


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of JSON, of which Python keeps the last of several values in silence."""
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f'"{name}" is in it twice')
        content[name] = value
    return content


def _from_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except PARQUET_ERRORS as error:
        raise InputError(f"{path} is no Parquet table ({error}); write it anew") from error
    if table.index.name is not None:
        table = table.reset_index()
    return table.astype(object).where(table.notna(), "")


def read_table(path: Path | str) -> pd.DataFrame:
    """Reads a table of text, separated by tabs (or by commas if its name ends in .csv).

    Raises:
      InputError: it is not there or no such table.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    separator = "," if ".csv" in suffixes_of(path) else "\t"
    try:
        return read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is no table that can be read ({error})") from error


def write_csv(
    table: pd.DataFrame | pd.Series, path: Path, *, index: bool = False, sep: str = ","
) -> None:
    """Writes a table as text that holds no formula.

    Args:
      table: its headings, and its index, may hold text too.
      path: of the file.
      index: whether the index is written, as the first columns.
      sep: between values.
    """
    table = without_formulas(table.to_frame() if isinstance(table, pd.Series) else table)
    columns = [table.iloc[:, place] for place in range(table.shape[1])]
    columns += [table.index.get_level_values(level) for level in range(table.index.nlevels)]
    # Python does not quote a carriage return alone, which others take for the end of a line.
    returns = any("\r" in value for each in columns for value in _texts(each))
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    table.to_csv(path, sep=sep, index=index, quoting=quoting)


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """Reads a table as `pandas.read_csv` does, with text as it was before `write_csv`.

    Raises:
      ValueError: it is no such table, or holds NUL bytes.
    """
    require_no_nul(path)
    return _changed(pd.read_csv(path, **options), _NEUTRAL, lambda text: text[1:])


def require_no_nul(path: Path) -> None:
    """Checks text that pandas is to read, which takes a NUL byte for the end of a text or number.

    Disks leave them where writing broke off.

    Raises:
      ValueError: there is one.
    """
    if path.suffix in _ARCHIVES:
        return
    with _UNPACKED.get(path.suffix, open)(path, "rb") as file:
        if any(b"\0" in part for part in iter(lambda: file.read(_PART_BYTES), b"")):
            raise ValueError("it holds NUL bytes: it is damaged, or not UTF-8; write it again")


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table whose text, headings and index a spreadsheet takes for text."""
    return _changed(table, FORMULA, "'{}".format)


def _changed(
    table: pd.DataFrame, pattern: re.Pattern[str], change: Callable[[str], str]
) -> pd.DataFrame:
    """Changes the text that a pattern fits in values, headings and index."""

    def of(value: Any) -> Any:
        return change(value) if isinstance(value, str) and pattern.match(value) else value

    table = table.copy(deep=False)
    for place in range(table.shape[1]):
        column = table.iloc[:, place]
        if isinstance(column.dtype, pd.CategoricalDtype):
            table.isetitem(place, column.cat.rename_categories(of))
        elif any(map(pattern.match, _texts(column))):
            table.isetitem(place, column.map(of))
    return table.rename(columns=of, index=of).rename_axis(index=of)


def _texts(column: pd.Series | pd.Index) -> Iterator[str]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.categories if isinstance(column, pd.Index) else column.cat.categories
    if pd.api.types.is_numeric_dtype(column.dtype):
        return iter(())
    return (value for value in column if isinstance(value, str))
