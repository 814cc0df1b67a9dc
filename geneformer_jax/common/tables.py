"""Tables of ids that people write: text, CSV, Parquet or JSON, read into one form."""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import read_json, suffixes_of

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
        content = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); write it anew") from error
    right = isinstance(content, dict) and all(isinstance(ids, list) for ids in content.values())
    if not right:
        raise InputError(f'{path} must be of the form {{"class": ["id", ...], ...}}')
    rows = [(name, each) for name, ids in content.items() for each in ids]
    return pd.DataFrame(rows, columns=["class", "id"])


def _from_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (ValueError, OSError, pa.ArrowException) as error:
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
        return pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is no table that can be read ({error})") from error
