"""Embeddings in files of several formats, each with its provenance."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, suffix_of
from geneformer_jax.common.provenance import require_own_provenance
from geneformer_jax.common.tables import PARQUET_ERRORS
from geneformer_jax.common.workdir import require_own
from geneformer_jax.embedding.embedder import Embedded
from geneformer_jax.inference.viewers import with_counts
from geneformer_jax.inference.written_anndata import write_anndata
from geneformer_jax.reporting.index import require_own_page

SUFFIXES = (".h5ad", ".parquet", ".npy")
PROVENANCE = "provenance"
ROWS_AT_ONCE = 16_384
_H5AD_INDEX = "_index"


def check_output(
    output: Path, configuration: Mapping[str, Any], changeable: Collection[str] = ()
) -> None:
    """Checks the format of an output, and that no file of someone else is in its place.

    Args:
      output: file to write.
      configuration: the command.
      changeable: its options that the embeddings do not depend on.

    Raises:
      InputError: otherwise, or it would replace another's provenance. A file that the same command
        wrote may be written again.
    """
    if suffix_of(output) not in SUFFIXES:
        raise InputError(f"`output` {output} must end in {', '.join(SUFFIXES)}")
    require_own_files_beside(output)
    fixed = _fixed(configuration, changeable)
    written = [output, table_path(output)] if suffix_of(output) == ".npy" else [output]
    for path in written:
        if path.exists():
            written = provenance_of(path).get("configuration")
            require_own(path, written if written is None else _fixed(written, changeable), fixed)


def report_path(output: Path) -> Path:
    """Where the report on an output lies."""
    return output.with_name(output.stem + ".report.html")


def require_own_files_beside(output: Path) -> None:
    """Checks that provenance and report of an output would replace none of others.

    Raises:
      InputError: they would.
    """
    require_own_provenance(output)
    require_own_page(report_path(output))


def _fixed(configuration: Mapping[str, Any], changeable: Collection[str]) -> dict[str, Any]:
    return {name: each for name, each in configuration.items() if name not in changeable}


def check_columns_fit(output: Path, columns: Collection[str], keys: Collection[str]) -> None:
    """Raises InputError if a format cannot hold columns of these names, before long work.

    Args:
      output: file to write.
      columns: names of the rows' columns.
      keys: names of the embeddings.
    """
    taken, other = ((_H5AD_INDEX,), ".parquet") if suffix_of(output) == ".h5ad" else (keys, ".h5ad")
    for name in columns:
        if name in taken and suffix_of(output) != ".npy":
            raise InputError(
                f'{output} cannot hold the obs column "{name}", whose name the format needs for '
                f"itself; rename the column, or write a file that ends in {other}"
            )


def table_path(output: Path) -> Path:
    """Where the table of rows of an .npy output lies."""
    return output.with_suffix(".rows.parquet")


def write_output(
    embedded: Embedded,
    output: Path,
    provenance: str,
    obsm: Mapping[str, np.ndarray] | None = None,
    *,
    counts: CountSource | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> None:
    """Writes embeddings with their provenance, whole or not at all.

    `.h5ad`: AnnData, put together in memory. `.parquet`: the table with one column of float32 lists
    for each layer, a few rows at a time. `.npy`: float32 [rows, D], or [rows, K, D] for several
    layers, with its table in NAME.rows.parquet.

    Args:
      embedded: what to write.
      output: ends in one of SUFFIXES.
      provenance: JSON text; the file carries it.
      obsm: further arrays [rows, ...] for an .h5ad.
      counts: raw counts of the cells, to be X of an .h5ad; None leaves it without X.
      rows_at_once: rows in memory while a .parquet or .npy is written.
    """
    if suffix_of(output) == ".h5ad":
        adata = embedded.to_anndata()
        adata.obsm.update(obsm or {})
        adata.uns["geneformer"][PROVENANCE] = provenance
        adata = with_counts(adata, counts) if counts else adata
        with atomic_write(output) as aside:
            write_anndata(adata, aside)
    elif suffix_of(output) == ".parquet":
        with atomic_write(output) as aside:
            _write_parquet(embedded.table, embedded.by_key(), aside, provenance, rows_at_once)
    else:
        with atomic_write(table_path(output)) as aside:
            _write_parquet(embedded.table, {}, aside, provenance, rows_at_once)
        with atomic_write(output) as aside:
            _write_npy(embedded.rows, aside, rows_at_once)


def _write_parquet(
    table: pd.DataFrame, columns: Mapping[str, np.ndarray], path: Path, provenance: str, size: int
) -> None:
    of_table = pa.Schema.from_pandas(table)
    fields = [
        pa.field(name, pa.list_(pa.float32(), rows.shape[1])) for name, rows in columns.items()
    ]
    schema = pa.schema([*of_table, *fields], {**of_table.metadata, PROVENANCE: provenance})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(table), size):
            chunk = slice(start, start + size)
            group = pa.Table.from_pandas(table.iloc[chunk], of_table)
            for field, rows in zip(fields, columns.values(), strict=True):
                part = np.ascontiguousarray(rows[chunk]).ravel()
                group = group.append_column(
                    field, pa.FixedSizeListArray.from_arrays(part, field.type.list_size)
                )
            writer.write_table(group.replace_schema_metadata(schema.metadata))


def _write_npy(rows: np.ndarray, path: Path, size: int) -> None:
    several = rows.shape[1] > 1
    shape = rows.shape if several else (rows.shape[0], rows.shape[2])
    # Not through a map of the file: where the disk is full that ends the process.
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), size):
            file.write(np.ascontiguousarray(rows[start : start + size], "<f4").data)


def read_output(output: Path, keys: Sequence[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """Reads what `write_output` wrote: (float32 [rows, K, D], table of the rows).

    Args:
      output: an earlier output.
      keys: names of the embeddings of K layers in it.

    Raises:
      InputError: it is damaged.
    """
    try:
        if suffix_of(output) == ".h5ad":
            adata = ad.read_h5ad(output)
            return np.stack([adata.obsm[key] for key in keys], axis=1), adata.obs
        if suffix_of(output) == ".parquet":
            table = pd.read_parquet(output)
            rows = [np.stack(table.pop(key).to_numpy()) for key in keys]
            return np.stack(rows, axis=1), table
        rows = np.load(output, mmap_mode="r")
        return rows.reshape(len(rows), len(keys), -1), pd.read_parquet(table_path(output))
    except PARQUET_ERRORS as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{output} is damaged ({reason}); remove it to begin anew") from error


def provenance_of(path: Path) -> dict[str, Any]:
    """Provenance in an earlier output; empty if the file is something else."""
    if suffix_of(path) == ".npy":
        path = table_path(path)
    if suffix_of(path) == ".parquet":
        return _provenance_of_parquet(path)
    if not h5py.is_hdf5(path):
        return {}
    with h5py.File(path) as file:
        text = file.get(f"uns/geneformer/{PROVENANCE}")
        return {} if text is None else json.loads(text.asstr()[()])


def _provenance_of_parquet(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        metadata = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid:
        return {}
    return json.loads(metadata.get(PROVENANCE.encode(), b"{}"))
