"""Conversion of tokenised datasets to cell stores and back."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.cells.store import writer as store_writer
from geneformer_jax.cells.store.building.summary import summarise
from geneformer_jax.cells.store.building.survey import source_key
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.obs_columns import CELL_ID, original_name, stored_name
from geneformer_jax.cells.tokenization.tokenizer import (
    NO_GENE,
    check_max_length,
    default_max_length,
)
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, fingerprint, require_new_folder, suffix_of
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import describe_run, without_times, write_provenance
from geneformer_jax.interop import vocabulary_statement
from geneformer_jax.interop.dataset_folders import write_dataset_folder
from geneformer_jax.interop.tokenized_datasets import LENGTH, OWN_COLUMNS, TOKENS, TokenizedDataset

_CELLS_PER_BATCH = 1000
_COMMAND = "convert"
PARQUET_PROVENANCE = "geneformer_jax.provenance"


def dataset_to_store(
    source: Path | str,
    target: Path | str,
    vocabulary: GeneVocabulary,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Writes a tokenised dataset as a cell store.

    Cells keep their order. Cells without genes are left out and counted; columns that hold more
    than one value per cell are left out and named.

    Args:
      source: a `.dataset` folder or a parquet file, see `TokenizedDataset`.
      target: folder of the new store.
      vocabulary: the one that the cells were tokenised with.
      max_length: largest number of tokens of a cell; the original's 2,048 or 4,096 if None.

    Returns:
      What was kept and what was left out, as in provenance.json; `states_vocabulary` is False where
      nothing but `vocabulary` says what the tokens mean.

    Raises:
      InputError: the dataset does not fit the vocabulary or `max_length`, says that it was made
        with another vocabulary, or is damaged; the target holds other files.
    """
    max_length = max_length or default_max_length(vocabulary)
    check_max_length(max_length, vocabulary)
    target = require_new_folder(target)
    dataset = TokenizedDataset(source, vocabulary)
    kinds = dataset.obs_kinds
    options = {"max_length": max_length, "vocabulary": vocabulary.hash}
    with atomic_write(target) as aside:
        store_writer.begin_store(aside, options, kinds)
        key = source_key(dataset.path)
        with store_writer.write_source(aside, key, kinds) as writer:
            empty = _copy_cells(dataset, writer, max_length)
            summary = {"path": str(dataset.path), "fingerprint": fingerprint(dataset.path)}
            summary |= {"cells_in_file": dataset.n_cells, "dropped": {NO_GENE: empty}}
            writer.finish(summary)
        counts = summarise(aside, [key], {})
        counts["columns_left_out"] = dataset.left_out
        counts["states_vocabulary"] = dataset.states_vocabulary
        configuration = {"source": dataset.path, "target": target, "max_length": max_length}
        run = describe_run(_COMMAND, configuration, [dataset.path], counts)
        store_writer.join_sources(aside, [key], vocabulary, run)
    return counts


def _copy_cells(
    dataset: TokenizedDataset, writer: store_writer.SourceWriter, max_length: int
) -> int:
    """Writes the cells that have genes; returns how many have none."""
    empty = 0
    with Progress(dataset.n_cells, "converting", "cells") as progress:
        for encodings, cell_ids, obs in dataset.batches():
            lengths = encodings.lengths
            longest = int(lengths.argmax())
            if lengths[longest] > max_length:
                raise InputError(
                    f'{dataset.path}: cell "{cell_ids[longest]}" has {lengths[longest]:,} tokens, '
                    f"more than the maximum length of {max_length:,}; give a larger `max_length`"
                )
            filled = lengths > dataset.vocabulary.special_per_cell
            writer.write(encodings.kept(filled), cell_ids[filled], obs[filled])
            empty += int((~filled).sum())
            progress.advance(len(lengths))
    return empty


def store_to_dataset(folder: Path | str, target: Path | str) -> dict[str, Any]:
    """Writes a cell store as the original's kind of dataset.

    Columns are `input_ids`, `cell_id`, the obs columns, `length`; rows keep the store's order.
    As the original does, tokens are int16 for a V1 vocabulary and int64 for V2. The vocabulary is
    stated by its hash, and reading with another one is refused.

    Args:
      folder: a cell store.
      target: a new `.dataset` folder as `datasets.save_to_disk` writes them, or a parquet file if
        the name ends in ".parquet". A parquet file keeps its provenance in its schema.

    Returns:
      What was written and what was left out, as in provenance.json.

    Raises:
      InputError: no complete store, the target exists, or a folder is to be written and the
        library `datasets` (an extra) is not installed.
    """
    store = CellStore.open(folder)
    target = Path(target)
    as_parquet = suffix_of(target) == ".parquet"
    if as_parquet and target.exists():
        raise InputError(f"{target} exists and nothing is overwritten; name a new file")
    if not as_parquet:
        require_new_folder(target)
    obs_columns = [field.with_name(_exported(field.name)) for field in store.obs_schema]
    token_type = _token_type(store.vocabulary)
    schema = pa.schema([(TOKENS, pa.list_(token_type)), *obs_columns, (LENGTH, pa.int64())])
    cells, tokens = len(store), int(store.lengths.sum(dtype=np.int64))
    counts = {"cells": cells, "tokens": tokens}
    run = describe_run(_COMMAND, {"source": store.folder, "target": target}, [store.folder], counts)
    with atomic_write(target) as aside, Progress(cells, "converting", "cells") as progress:
        batches = _record_batches(store, schema, progress)
        if as_parquet:
            stated = {vocabulary_statement.NAME: store.vocabulary.hash}
            _write_parquet_file(aside, schema.with_metadata(stated), batches, run)
        else:
            token_bytes = tokens * token_type.bit_width // 8
            stated = vocabulary_statement.statement(store.vocabulary)
            write_dataset_folder(aside, batches, schema, cells, token_bytes, stated)
            write_provenance(aside, run)
    return counts


def _write_parquet_file(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], provenance: Mapping[str, Any]
) -> None:
    described = schema.metadata | {
        PARQUET_PROVENANCE: json.dumps(without_times(provenance), default=str)
    }
    with pq.ParquetWriter(path, schema.with_metadata(described)) as file:
        for batch in batches:
            file.write_batch(batch.replace_schema_metadata(described))


def _record_batches(
    store: CellStore, schema: pa.Schema, progress: Progress
) -> Iterator[pa.RecordBatch]:
    token_type, start = schema.field(TOKENS).type.value_type, 0
    for obs in store.obs_batches(_CELLS_PER_BATCH):
        cells = store.read(np.arange(start, start + obs.num_rows))
        lengths = np.array([len(cell) for cell in cells])
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        tokens = np.concatenate(cells).astype(token_type.to_pandas_dtype())
        columns = dict(zip(map(_exported, obs.schema.names), obs.columns, strict=True))
        columns |= {TOKENS: pa.ListArray.from_arrays(offsets, pa.array(tokens)), LENGTH: lengths}
        start += obs.num_rows
        # Before the batch is handed on: who has all cells does not ask for another batch.
        progress.advance(obs.num_rows)
        yield pa.RecordBatch.from_pydict(columns, schema=schema)


def _exported(stored: str) -> str:
    """Name in a dataset of a column of a store's obs table."""
    return CELL_ID if stored == CELL_ID else stored_name(original_name(stored), OWN_COLUMNS)


def _token_type(vocabulary: GeneVocabulary) -> pa.DataType:
    # 16 signed bits hold the 25,426 tokens of the original's V1, but not of every vocabulary.
    fits = vocabulary.cls_id is None and vocabulary.size <= np.iinfo(np.int16).max
    return pa.int16() if fits else pa.int64()
