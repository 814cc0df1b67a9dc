"""What lies beside the shards of a store, an entry for each cell: lengths and the obs table."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.cells.counts.source import cell_index
from geneformer_jax.cells.store.layout import CHECKSUMS
from geneformer_jax.cells.store.obs_columns import CELL_ID, original_name
from geneformer_jax.cells.store.shards import REMEDY
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import checksum, read_json


def read_numbers(path: Path, cells: int) -> np.ndarray:
    """Opens an array of one whole number per cell; int32 [cells], read-only.

    Raises:
      InputError: the file is missing or damaged, or of another number of cells.
    """
    with _explain_damage(path):
        _check_content(path)
        numbers = np.load(path, mmap_mode="r")
        if numbers.shape != (cells,) or numbers.dtype != np.int32:
            raise ValueError(f"{numbers.dtype} {numbers.shape} for {cells:,} cells")
    return numbers


def read_obs(path: Path, cells: int) -> pd.DataFrame:
    """Reads an obs table; text columns become categorical, the cell ids the index.

    Raises:
      InputError: the file is missing or damaged, or of another number of cells.
    """
    with _explain_damage(path):
        _check_table(path)
        text = [field.name for field in obs_schema(path) if pa.types.is_string(field.type)]
        categories = [name for name in text if name != CELL_ID]
        table = _read(path, read_dictionary=categories).to_pandas()
        ids = table.pop(CELL_ID)
        _check_rows(table, cells)
    table = table.rename(columns=original_name)
    return table.set_axis(cell_index(ids, table.columns))


def read_cell_ids(path: Path, cells: int) -> np.ndarray:
    """Reads the cell ids of an obs table; [cells] str (dtype object).

    Raises:
      InputError: as `read_obs`.
    """
    with _explain_damage(path):
        _check_table(path)
        table = _read(path, columns=[CELL_ID])
        _check_rows(table, cells)
        return table[CELL_ID].to_numpy(zero_copy_only=False)


def obs_schema(path: Path) -> pa.Schema:
    """Reads stored names and types of the columns of an obs table.

    Raises:
      InputError: the file is missing or damaged.
    """
    with _explain_damage(path):
        return pq.read_schema(path)


def obs_batches(
    path: Path, rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yields columns of an obs table by their stored names, at most `rows` at a time.

    Raises:
      InputError: the file is missing or damaged.
    """
    with _explain_damage(path):
        _check_table(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as table:
            yield from table.iter_batches(rows, columns=columns)


def has_numbers(path: Path) -> bool:
    """Whether a store has, or once had, an array of one number per cell.

    Raises:
      InputError: what tells it is damaged.
    """
    return path.is_file() or path.name in (_checksums(path.parent) or {})


def _check_content(path: Path) -> None:
    """Compares a file with its checksum; stores of earlier versions have none."""
    expected = _checksums(path.parent)
    if expected is not None and checksum(path) != expected.get(path.name):
        raise ValueError(f"not as {CHECKSUMS} states")


def _check_table(path: Path) -> None:
    """The same for a table, whose checksum stores of earlier versions lack."""
    if path.name in (_checksums(path.parent) or {}):
        _check_content(path)


def _checksums(folder: Path) -> dict[str, str] | None:
    """Name -> checksum of the files beside the shards; None in a store of an earlier version."""
    stated = folder / CHECKSUMS
    if not stated.is_file():
        return None
    with _explain_damage(stated):
        return dict(read_json(stated))


def _read(path: Path, **options) -> pa.Table:
    return pq.read_table(path, page_checksum_verification=True, **options)


def _check_rows(table: pd.DataFrame | pa.Table, cells: int) -> None:
    if len(table) != cells:
        raise ValueError(f"{len(table):,} rows for {cells:,} cells")


@contextlib.contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    # NumPy takes the head of its files for Python's tokens.
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        TokenError,
        pa.ArrowException,
    ) as error:
        if isinstance(error, InputError | PermissionError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is missing or damaged ({reason}); {REMEDY}") from error
