"""Perturbation in files: written part by part, taken up again after a kill, put together at last.

Until a run is whole it lies in the folder OUTPUT.parts, of which any number of processes may write
different parts. A part counts as done once a record with the checksums of its tables is there.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from geneformer_jax.cells.store.cell_store import checksum
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.command_line import shard_of
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, fsync_tree_entry, remove
from geneformer_jax.common.provenance import FILE_NAME
from geneformer_jax.inference.resume import PLAN, as_json, parts_folder, refuse_other_plan, sha256
from geneformer_jax.perturbation.layout import (
    EDITS,
    GENE_MEANS,
    JOINT,
    MEANS_OF_PARTS,
    SHIFTS,
    STATES,
)
from geneformer_jax.perturbation.statistics.aggregate import summarise
from geneformer_jax.perturbation.statistics.tables import ShiftRows
from geneformer_jax.perturbation.tables import merge_gene_means, parquet_options, write_table

_RECORDS = "records"
_PAIRS_AT_ONCE = 4_194_304
_SUMMARISED = ("perturbed", "perturbed_symbol", "measure", "state", "value")


class PerturbationFolder:
    """The tables of one run, unfinished until `finish`."""

    def __init__(self, output: Path, shard: tuple[int, int] = (0, 1)):
        """Names the folder; nothing is written yet.

        Args:
          output: folder of the finished run.
          shard: (i, n), this process writes every n-th part from the i-th.
        """
        self.output, self.folder, self.shard = output, parts_folder(output), shard

    def is_complete(self, configuration: Mapping[str, Any]) -> bool:
        """Whether the output is there already, written with this configuration.

        Raises:
          InputError: something else is there.
        """
        if not self.output.exists():
            return False
        provenance = self.output / FILE_NAME
        if provenance.is_file():
            kept = json.loads(provenance.read_text()).get("configuration")
            if kept == as_json(configuration):
                self._tidy()
                return True
        raise InputError(
            f"{self.output} is there and was not written by this command; remove it or name "
            "another folder"
        )

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Opens the folder of an interrupted run, or begins a new one.

        Raises:
          InputError: it holds other files, parts of another run, or damaged ones.
        """
        plan = as_json(plan)
        if not (self.folder / PLAN).is_file():
            if self.folder.exists() and not all(map(_is_plan, self.folder.iterdir())):
                raise InputError(
                    f"{self.folder} holds other files; remove it or name another output"
                )
            self._put_in_place(PLAN, lambda path: path.write_text(json.dumps(plan, indent=2)))
        refuse_other_plan(self.folder, plan)
        for record in sorted((self.folder / _RECORDS).glob("*.json")):
            self._verify(record)

    def states(self) -> Path | None:
        """Where state embeddings of an earlier beginning are, if they are."""
        path = self.folder / STATES
        return path if path.is_file() else None

    def keep_states(self, save) -> None:
        """Keeps state embeddings; `save` writes them to a path."""
        self._put_in_place(STATES, save)

    def own(self, parts: int) -> list[int]:
        """Returns the numbers of the parts that are this process's to make."""
        return shard_of(range(parts), self.shard)

    def missing(self, parts: int) -> list[int]:
        """Returns the numbers of the parts that are not done yet."""
        return [part for part in range(parts) if not self._record_of(part).is_file()]

    def write_part(self, part: int, tables: Mapping[str, pa.Table]) -> None:
        """Writes the tables of one part, by the names of their folders; then it counts as done."""
        record = {}
        for name, table in tables.items():
            path = self.folder / name / f"part-{part:06d}.parquet"
            write_table(table, path)
            record[str(path.relative_to(self.folder))] = checksum(path)
        with atomic_write(self._record_of(part)) as aside:
            aside.write_text(json.dumps(record) + "\n")

    def _record_of(self, part: int) -> Path:
        return self.folder / _RECORDS / f"part-{part:06d}.json"

    def _verify(self, record: Path) -> None:
        """Raises InputError if a table is not as its record says."""
        try:
            checksums = json.loads(record.read_text())
        except json.JSONDecodeError:
            raise InputError(f"{record} is damaged; remove it to make these edits again") from None
        for name, kept in checksums.items():
            path = self.folder / name
            if not path.is_file() or checksum(path) != kept:
                raise InputError(
                    f"{path} is damaged or gone; remove {record} to make these edits again"
                )

    def join(self, parts: int, edit: str, vocabulary: GeneVocabulary) -> pd.DataFrame:
        """Joins what the parts hold of the same edits; returns the summary.

        Args:
          parts: their number.
          edit: kind of the edits.
          vocabulary: of the genes.

        Raises:
          InputError: parts are missing.
        """
        if missing := self.missing(parts):
            raise InputError(
                f"{len(missing):,} of {parts:,} parts are not done yet; run all shards to their "
                "end first, and then --finish"
            )
        summary = summarise(ShiftRows(self.folder / SHIFTS, _SUMMARISED))
        _write_edits(self.folder, summary, vocabulary)
        if (self.folder / MEANS_OF_PARTS).is_dir():
            self._join_means(edit)
        return summary

    def finish(self) -> None:
        """Gives the folder its final name."""
        os.replace(self.folder, self.output)
        fsync_tree_entry(self.output.parent)
        self._tidy()

    def _join_means(self, edit: str) -> None:
        """Joins the means, for as many perturbed genes at a time as fit in memory."""
        source = ds.dataset(self.folder / MEANS_OF_PARTS, format="parquet")
        sizes = _pairs_per_set(source)
        chunk = np.cumsum(sizes.to_numpy()) // _PAIRS_AT_ONCE
        with atomic_write(self.folder / GENE_MEANS) as aside:
            writer = None
            for _, names in sizes.index.to_series().groupby(chunk):
                rows = source.to_table(filter=ds.field("perturbed").isin(list(names)))
                table = merge_gene_means([rows], edit)
                if writer is None:
                    options = parquet_options(table.schema)
                    writer = pq.ParquetWriter(aside, table.schema, **options)
                writer.write_table(table)
            writer.close()

    def _put_in_place(self, name: str, write) -> None:
        """Writes a file under a name of this process first: others may write the same one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / f"{name}.{self.shard[0]}"
        with atomic_write(own) as aside:
            write(aside)
        os.replace(own, self.folder / name)

    def _tidy(self) -> None:
        """Removes what served the resumption."""
        for name in (PLAN, _RECORDS, MEANS_OF_PARTS):
            remove(self.output / name)


def check_space(output: Path, needed: int) -> None:
    """Raises InputError if the tables would not fit on the disk."""
    folder = next(each for each in [output, *output.absolute().parents] if each.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the tables will take some {needed / 1e9:,.1f} GB, but {folder} has "
            f"{free / 1e9:,.1f} GB left; keep gene shifts as means or top, or name another output"
        )


def _write_edits(folder: Path, summary: pd.DataFrame, vocabulary: GeneVocabulary) -> None:
    first = summary.drop_duplicates("perturbed")
    genes = [name.split(JOINT) for name in first["perturbed"]]
    symbols = [vocabulary.names_of(vocabulary.tokens_of(names)).tolist() for names in genes]
    table = {
        "perturbed": pa.array(first["perturbed"], pa.string()),
        "perturbed_symbol": pa.array(first["perturbed_symbol"], pa.string()),
        "genes": pa.array(genes, pa.list_(pa.string())),
        "symbols": pa.array(symbols, pa.list_(pa.string())),
        "cells": pa.array(first["n"], pa.int64()),
    }
    with atomic_write(folder / EDITS) as aside:
        pq.write_table(pa.table(table), aside, compression="zstd")


def _pairs_per_set(source: ds.Dataset) -> pd.Series:
    sizes: pd.Series | None = None
    for batch in source.to_batches(columns=["perturbed"]):
        own = batch.column(0).to_pandas().value_counts()
        sizes = own if sizes is None else sizes.add(own, fill_value=0)
    return sizes.sort_index()


def _is_plan(path: Path) -> bool:
    """Whether a file is what processes that begin at the same time leave."""
    return path.name.startswith((PLAN, STATES))


def plan_of(
    command: Mapping[str, Any], identity: Mapping[str, Any], parts: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Returns what all parts of a run must agree in."""
    return {**identity, "command": dict(command), "edits": sha256(np.array(parts, np.int64))}
