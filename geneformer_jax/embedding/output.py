"""Embeddings in files: written as they come, taken up again after a kill, put together at last.

Until an output is whole its rows lie in the folder OUTPUT.parts, in one array that the parts fill:
a part of the cells counts as done once a record with the checksum of its rows stands beside it. A
run that is given again checks the records and computes what is missing, in the same batches as if
it had never been stopped, so the result is the same.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, remove
from geneformer_jax.embedding.embedder import Embedded, Embedder
from geneformer_jax.embedding.gene_means import GeneTotals
from geneformer_jax.inference.resume import (
    PLAN,
    as_json,
    identity_of,
    parts_folder,
    refuse_other_plan,
    sha256,
)

SUFFIXES = (".h5ad", ".parquet", ".npy")
PROVENANCE = "provenance"
# A part ends with batches that are not full, so it holds many more cells than a batch: some minutes
# of work on a CPU, half a minute on an accelerator.
_CELLS_PER_PART = {"cpu": 8_192}
_CELLS_PER_ACCELERATOR_PART = 131_072
# Every occurrence of a gene is a row: some hundred megabytes in a part.
_ROWS_PER_PART = 262_144
_ROWS_PER_GROUP = 16_384
_ROWS, _TOTALS = "rows.npy", "totals.npz"
_PART_SIZE = "cells in a part"


class Parts:
    """The unfinished embeddings of one output."""

    def __init__(self, output: Path, embedder: Embedder, identity: Mapping[str, Any]):
        """Opens the parts of an interrupted run, or begins new ones.

        Args:
          output: the file that will be written at last.
          embedder: of the cells.
          identity: everything beside the cells that the embeddings depend on.

        Raises:
          InputError: the folder holds parts of other cells, of another model or of other options.
        """
        self.folder = parts_folder(output)
        self._embedder = embedder
        plan = _plan(embedder, identity)
        kept = self.folder / PLAN
        if kept.is_file():
            # The parts stay as they were begun, whatever devices go on with them.
            refuse_other_plan(self.folder, plan, apart_from=[_PART_SIZE])
        else:
            self._begin({_PART_SIZE: _cells_per_part(embedder), **plan})
        self.ranges = list(_ranges(embedder, json.loads(kept.read_text())[_PART_SIZE]))

    def embed(self) -> Embedded:
        """Embeds what is missing; returns all rows, those of modes other than "gene" on disk."""
        embedder = self._embedder
        if embedder.pass_.mode == "gene":
            return embedder.gene_table(self._gene_totals())
        rows = self._rows()
        with embedder.progress() as progress:
            for part, (start, stop) in enumerate(self.ranges):
                first, last = embedder.offsets[[start, stop]]
                if self._is_done(part, rows[first:last]):
                    progress.advance(stop - start)
                    continue
                rows[first:last] = embedder.rows(start, stop, progress)
                rows.flush()
                self._record(part, rows[first:last])
        return Embedded(rows, embedder.table(), embedder.layers, embedder.facts())

    def remove(self) -> None:
        """Removes the folder, once the output is written."""
        remove(self.folder)

    def _begin(self, plan: Mapping[str, Any]) -> None:
        embedder = self._embedder
        if self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} holds other files; remove it or name another output")
        with atomic_write(self.folder) as aside:
            aside.mkdir()
            (aside / PLAN).write_text(json.dumps(plan, indent=2) + "\n")
            if embedder.pass_.mode != "gene":
                rows = aside / _ROWS
                np.lib.format.open_memmap(rows, "w+", np.float32, self._shape()).flush()

    def _rows(self) -> np.ndarray:
        path = self.folder / _ROWS
        damaged = InputError(f"{path} is damaged; remove {self.folder} to begin anew")
        try:
            rows = np.load(path, mmap_mode="r+")
        except (ValueError, EOFError):
            raise damaged from None
        if rows.shape != self._shape() or rows.dtype != np.float32:
            raise damaged
        return rows

    def _shape(self) -> tuple[int, int, int]:
        embedder = self._embedder
        return int(embedder.offsets[-1]), len(embedder.layers), _width(embedder)

    def _record_of(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.sha256"

    def _record(self, part: int, rows: np.ndarray) -> None:
        with atomic_write(self._record_of(part)) as aside:
            aside.write_text(sha256(rows) + "\n")

    def _is_done(self, part: int, rows: np.ndarray) -> bool:
        record = self._record_of(part)
        if not record.is_file():
            return False
        return record.read_text().strip() == sha256(rows)

    def _gene_totals(self) -> GeneTotals:
        """Gathers the genes part by part, keeping the totals so far."""
        embedder = self._embedder
        totals, done = self._kept_totals()
        with embedder.progress() as progress:
            progress.advance(self.ranges[done - 1][1] if done else 0)
            for part, (start, stop) in enumerate(self.ranges[done:], done):
                totals = totals.merged(embedder.genes(start, stop, progress))
                with atomic_write(self.folder / _TOTALS) as aside, aside.open("wb") as file:
                    np.savez(file, done=part + 1, **totals._asdict())
        return totals

    def _kept_totals(self) -> tuple[GeneTotals, int]:
        """Returns (totals, number of parts in them)."""
        path, embedder = self.folder / _TOTALS, self._embedder
        if not path.is_file():
            size = embedder.model.config.vocabulary_size
            return GeneTotals.empty(len(embedder.layers), size, _width(embedder)), 0
        try:
            # Zip files carry checksums of their own.
            with np.load(path) as kept:
                return GeneTotals(*(kept[name] for name in GeneTotals._fields)), int(kept["done"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise InputError(f"{path} is damaged; remove {self.folder} to begin anew") from None


def check_output(output: Path, configuration: Mapping[str, Any]) -> None:
    """Refuses an output of another format, or in the place of a file of someone else.

    Raises:
      InputError: see above. A file that the same command wrote may be written again.
    """
    if output.suffix not in SUFFIXES:
        raise InputError(f"--output={output} must end in {', '.join(SUFFIXES)}")
    written = [output, table_path(output)] if output.suffix == ".npy" else [output]
    for path in written:
        if path.exists() and _story_of(path).get("configuration") != as_json(configuration):
            raise InputError(
                f"{path} is there and was not written by this command; remove it or name another "
                "file"
            )


def table_path(output: Path) -> Path:
    """Where the table of rows of an .npy output lies."""
    return output.with_suffix(".rows.parquet")


def write_output(embedded: Embedded, output: Path, story: str, **obsm: np.ndarray) -> None:
    """Writes embeddings with their story, whole or not at all.

    `.h5ad`: AnnData, put together in memory. `.parquet`: the table with one column of float32 lists
    for each layer, a few rows at a time. `.npy`: float32 [rows, D], or [rows, K, D] for several
    layers, with its table in NAME.rows.parquet.

    Args:
      embedded: what to write.
      output: ends in one of SUFFIXES.
      story: JSON text of the provenance; the file carries it.
      obsm: further arrays [rows, ...] for an .h5ad.
    """
    if output.suffix == ".h5ad":
        adata = embedded.to_anndata()
        adata.obsm.update(obsm)
        adata.uns["geneformer"][PROVENANCE] = story
        with atomic_write(output) as aside:
            adata.write_h5ad(aside)
    elif output.suffix == ".parquet":
        with atomic_write(output) as aside:
            _write_parquet(embedded.table, embedded.by_key(), aside, story)
    else:
        with atomic_write(table_path(output)) as aside:
            _write_parquet(embedded.table, {}, aside, story)
        with atomic_write(output) as aside:
            _write_npy(embedded.rows, aside)


def _write_parquet(
    table: pd.DataFrame, columns: Mapping[str, np.ndarray], path: Path, story: str
) -> None:
    of_table = pa.Schema.from_pandas(table)
    fields = [
        pa.field(name, pa.list_(pa.float32(), rows.shape[1])) for name, rows in columns.items()
    ]
    schema = pa.schema([*of_table, *fields], {**of_table.metadata, PROVENANCE: story})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(table), _ROWS_PER_GROUP):
            chunk = slice(start, start + _ROWS_PER_GROUP)
            group = pa.Table.from_pandas(table.iloc[chunk], of_table)
            for field, rows in zip(fields, columns.values(), strict=True):
                part = np.ascontiguousarray(rows[chunk]).ravel()
                group = group.append_column(
                    field, pa.FixedSizeListArray.from_arrays(part, field.type.list_size)
                )
            writer.write_table(group.replace_schema_metadata(schema.metadata))


def _write_npy(rows: np.ndarray, path: Path) -> None:
    several = rows.shape[1] > 1
    shape = rows.shape if several else (rows.shape[0], rows.shape[2])
    copy = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for start in range(0, len(rows), _ROWS_PER_GROUP):
        chunk = slice(start, start + _ROWS_PER_GROUP)
        copy[chunk] = rows[chunk] if several else rows[chunk, 0]
    copy.flush()


def _story_of(path: Path) -> dict[str, Any]:
    """Provenance in an earlier output; empty if the file is something else."""
    if path.suffix == ".npy":
        path = table_path(path)
    if path.suffix == ".parquet":
        return _story_of_parquet(path)
    if not h5py.is_hdf5(path):
        return {}
    with h5py.File(path) as file:
        story = file.get(f"uns/geneformer/{PROVENANCE}")
        return {} if story is None else json.loads(story.asstr()[()])


def _story_of_parquet(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        metadata = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid:
        return {}
    return json.loads(metadata.get(PROVENANCE.encode(), b"{}"))


def _cells_per_part(embedder: Embedder) -> int:
    mesh = embedder.pass_.mesh
    platform = mesh.devices.flat[0].platform
    return mesh.size * _CELLS_PER_PART.get(platform, _CELLS_PER_ACCELERATOR_PART)


def _ranges(embedder: Embedder, most: int) -> Iterator[tuple[int, int]]:
    """Yields the cells of each part: as many as fit, at least one."""
    start, cells = 0, len(embedder.offsets) - 1
    while start < cells:
        fitting = (
            np.searchsorted(embedder.offsets, embedder.offsets[start] + _ROWS_PER_PART, "right") - 1
        )
        stop = min(max(int(fitting), start + 1), start + most)
        yield start, stop
        start = stop


def _plan(embedder: Embedder, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What the parts must agree in. Devices may change: they only round differently."""
    facts = embedder.facts()
    plan = {
        **{name: facts[name] for name in ("mode", "layer", "precision", "attention")},
        **identity_of(embedder.model, embedder.cells),
        **identity,
    }
    return as_json(plan)


def _width(embedder: Embedder) -> int:
    return embedder.model.config.width
