"""Perturbation in files: written part by part, gone on with after a kill, joined at last.

Until a run is whole, its tables lie in the folder OUTPUT.parts, of which any number of processes
may write different parts; see `inference.resume`.
"""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.provenance import write_provenance
from geneformer_jax.common.workdir import is_finished
from geneformer_jax.embedding.states import StateEmbeddings
from geneformer_jax.inference.filters import label_texts
from geneformer_jax.inference.resume.folder import PartsFolder, parts_folder, save_arrays, tidy
from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.layout import (
    BASELINES,
    CELLS,
    EDITS,
    ESTIMATES,
    GENE_MEANS,
    JOINT,
    MEANS_OF_PARTS,
    OBS,
    SHIFTS,
    STATES,
)
from geneformer_jax.perturbation.statistics.aggregate import summarise, with_parts
from geneformer_jax.perturbation.statistics.rank_effect import variance_by_rank
from geneformer_jax.perturbation.statistics.tables import ShiftRows, column_names
from geneformer_jax.perturbation.tables import merge_gene_means, parquet_options, write_table

_PAIRS_AT_ONCE = 4_194_304
_SUMMARISED = ("perturbed", "perturbed_symbol", "measure", "state", "value")
_BY_RANK = ("cell", "rank", "measure", "state", "value")
_PARTS = ("reranking", "removal", "method")


class PerturbationFolder:
    """The tables of one run, unfinished until `finish`.

    Attributes:
      output: folder of the finished run.
      parts: the unfinished ones.
    """

    def __init__(self, output: Path):
        """Names the folder of the finished run; nothing is written yet."""
        self.output, self.parts = output, PartsFolder(parts_folder(output))

    def is_complete(self, configuration: Mapping[str, Any]) -> bool:
        """Whether the output is there already, written with this configuration.

        Raises:
          InputError: something else is there.
        """
        if not is_finished(self.output, configuration, ["cells"]):
            return False
        tidy(self.output, MEANS_OF_PARTS, ESTIMATES)
        return True

    def has_parts(self) -> bool:
        """Whether the tables of the finished run have the parts of shifts."""
        return _PARTS[0] in column_names(self.output / SHIFTS)

    def states(self) -> StateEmbeddings | None:
        """Returns the state embeddings of an earlier beginning, if they are as they were saved."""
        if not self.parts.is_done(STATES):
            return None
        return StateEmbeddings.load(self.parts.folder / STATES)

    def save_states(self, states: StateEmbeddings) -> None:
        """Saves state embeddings, for all shards and beginnings."""
        self.parts.save(STATES, states.save)

    def save_baselines(self, table: pd.DataFrame) -> None:
        """Saves what a comparison of two states says of genes without a model."""
        with atomic_write(self.parts.folder / BASELINES) as aside:
            table.to_parquet(aside, index=False, compression="zstd")

    def write_part(self, part: int, tables: Mapping[str, pa.Table]) -> None:
        """Writes the tables of one part, by the names of their folders; then it counts as done."""
        files = {
            f"{name}/part-{part:06d}.parquet": partial(write_table, table)
            for name, table in tables.items()
        }
        self.parts.write(part, files)

    def write_estimates(self, part: int, estimates: Shifts) -> None:
        """Writes what a screen estimated of a part."""
        save = partial(save_arrays, arrays=estimates._asdict())
        self.parts.write(estimates_of(part), {f"{ESTIMATES}/part-{part:06d}.npz": save})

    def read_estimates(self, part: int) -> Shifts:
        """Returns what a screen estimated of a part."""
        return Shifts(**self.parts.load(f"{ESTIMATES}/part-{part:06d}.npz"))

    def variance_by_rank(self) -> list[dict[str, Any]]:
        """Returns `variance_by_rank` of all parts as records, None for NaN."""
        rows = ShiftRows(self.parts.folder / SHIFTS, _BY_RANK)
        table = variance_by_rank(rows).astype({"explained": object})
        return table.where(table.notna(), None).to_dict("records")

    def finish(
        self,
        parts: int,
        edit: str,
        vocabulary: GeneVocabulary,
        obs: pd.DataFrame,
        provenance: Mapping[str, Any],
        report: Callable[[Path, pd.DataFrame, Mapping[str, Any]], None],
    ) -> None:
        """Joins what the parts hold of the same edits, and gives the folder its final name.

        Args:
          parts: how many there are, all of them made.
          edit: kind of the edits.
          vocabulary: of the genes.
          obs: of the chosen cells, by their ids.
          provenance: see `describe_run`.
          report: writes a report into a folder, called with (folder, summary, provenance).

        Raises:
          InputError: a part's file is not seen here yet.
        """
        folder = self.parts.folder
        names = self.parts.listed_files(range(parts))
        summary = summarise(ShiftRows(folder / SHIFTS, _SUMMARISED))
        _write_edits(folder, summary, vocabulary)
        _write_cells(folder, obs)
        held = column_names(folder / SHIFTS)
        if of_shifts := [name for name in _PARTS if name in held]:
            rows = ShiftRows(folder / SHIFTS, (*_SUMMARISED, *of_shifts))
            summary = with_parts(summary, rows, of_shifts)
        if any(Path(name).parent.name == MEANS_OF_PARTS for name in names):
            _join_means(folder, edit)
        write_provenance(folder, provenance)
        report(folder, summary, provenance)
        self.parts.become(self.output)
        tidy(self.output, MEANS_OF_PARTS, ESTIMATES)


def estimates_of(part: int) -> str:
    """Returns the name under which the estimates of a part are recorded."""
    return f"{ESTIMATES}-{part:06d}"


def _join_means(folder: Path, edit: str) -> None:
    """Joins the means, for as many perturbed genes at a time as fit in memory."""
    source = ds.dataset(folder / MEANS_OF_PARTS, format="parquet")
    sizes = _pairs_per_set(source)
    chunk = np.cumsum(sizes.to_numpy()) // _PAIRS_AT_ONCE
    with atomic_write(folder / GENE_MEANS) as aside:
        writer = None
        for _, names in sizes.index.to_series().groupby(chunk):
            rows = source.to_table(filter=ds.field("perturbed").isin(list(names)))
            table = merge_gene_means([rows], edit)
            if writer is None:
                writer = pq.ParquetWriter(aside, table.schema, **parquet_options(table.schema))
            writer.write_table(table)
        writer.close()


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


def _write_cells(folder: Path, obs: pd.DataFrame) -> None:
    texts = {f"{OBS}{name}": label_texts(obs[name]) for name in obs.columns}
    columns = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    table = {"cell": pa.array(obs.index.astype(str), pa.string()), **columns}
    with atomic_write(folder / CELLS) as aside:
        pq.write_table(pa.table(table), aside, compression="zstd")


def _pairs_per_set(source: ds.Dataset) -> pd.Series:
    sizes: pd.Series | None = None
    for batch in source.to_batches(columns=["perturbed"]):
        own = batch.column(0).to_pandas().value_counts()
        sizes = own if sizes is None else sizes.add(own, fill_value=0)
    return sizes.sort_index()
