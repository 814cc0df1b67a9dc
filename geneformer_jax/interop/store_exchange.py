"""Cell stores out of tokenised datasets, and tokenised datasets out of cell stores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from geneformer_jax.cells import carried_columns, records, store_writer
from geneformer_jax.cells.cell_store import CellStore
from geneformer_jax.cells.store_building import source_key, summarise
from geneformer_jax.cells.tokenization import check_max_length, default_max_length
from geneformer_jax.cells.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import fingerprint, require_new_folder, write_aside
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import describe_run, write_provenance
from geneformer_jax.interop.dataset_files import (
    dataset_schema,
    write_dataset_folder,
    write_parquet_file,
)
from geneformer_jax.interop.tokenized_datasets import LENGTH, TOKENS, TokenizedDataset

_CELLS_PER_BATCH = 1000
_DOOR = "convert"


def dataset_to_store(
    source: Path | str,
    target: Path | str,
    vocabulary: GeneVocabulary,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Writes a tokenised dataset as a cell store.

    Cells keep their order. Cells without tokens are left out and counted; columns that hold more
    than one value per cell are left out and named.

    Args:
      source: a `.dataset` folder or a parquet file, see `TokenizedDataset`.
      target: folder of the new store.
      vocabulary: the one that the cells were tokenised with.
      max_length: most tokens of a cell; the original's 2,048 (V1) or 4,096 (V2) if None.

    Returns:
      What was kept and what was left out, as in provenance.json.

    Raises:
      InputError: the dataset does not fit the vocabulary or `max_length`, or is damaged; the target
        holds other files.
    """
    max_length = max_length or default_max_length(vocabulary)
    check_max_length(max_length, vocabulary)
    target = require_new_folder(target)
    dataset = TokenizedDataset(source, vocabulary)
    # The store's records have features of these names already.
    taken = [name for name in dataset.obs if name in (records.TOKENS, carried_columns.CELL_ID)]
    obs = dataset.obs.drop(columns=taken)
    kinds = {name: carried_columns.kind_of(obs[name]) for name in obs}
    options = {"max_length": max_length, "vocabulary": vocabulary.hash}
    with write_aside(target) as aside:
        store_writer.begin_store(aside, options, kinds)
        key = source_key(dataset.path)
        with store_writer.write_source(aside, key, kinds) as writer:
            empty = _copy_cells(dataset, obs, writer, max_length)
            story = {"path": str(dataset.path), "fingerprint": fingerprint(dataset.path)}
            story |= {"cells_in_file": len(dataset), "dropped": {"no tokens": empty}}
            writer.finish(story)
        counts = summarise(aside, [key], {})
        counts["columns_left_out"] = dataset.left_out + taken
        configuration = {"source": dataset.path, "target": target, "max_length": max_length}
        run = describe_run(_DOOR, configuration, [dataset.path], counts)
        store_writer.join_sources(aside, [key], vocabulary, run)
    return counts


def _copy_cells(
    dataset: TokenizedDataset, obs: pd.DataFrame, writer: store_writer.SourceWriter, max_length: int
) -> int:
    """Writes the cells that have tokens; returns how many have none."""
    start = empty = 0
    with Progress(len(dataset), "converting", "cells") as progress:
        for encodings in dataset.encodings():
            lengths = encodings.lengths
            longest = int(lengths.argmax())
            if lengths[longest] > max_length:
                raise InputError(
                    f'{dataset.path}: cell "{obs.index[start + longest]}" has '
                    f"{lengths[longest]:,} tokens, more than the maximum length of "
                    f"{max_length:,}; give a larger --max_length"
                )
            filled = lengths > 0
            part = obs.iloc[start : start + len(lengths)][filled]
            writer.write(encodings.without_empty(), part.index.to_numpy(), part)
            start += len(lengths)
            empty += int((~filled).sum())
            progress.advance(len(lengths))
    return empty


def store_to_dataset(folder: Path | str, target: Path | str) -> dict[str, Any]:
    """Writes a cell store as the original's kind of dataset.

    Columns are `input_ids`, `cell_id`, the carried columns, `length`; rows keep the store's order.
    As the original does, tokens are int16 for a V1 vocabulary and int64 for V2.

    Args:
      folder: a cell store.
      target: a new `.dataset` folder as `datasets.save_to_disk` writes them, or a parquet file if
        the name ends in ".parquet". A parquet file keeps its provenance in its schema.

    Returns:
      What was written and what was left out, as in provenance.json.

    Raises:
      InputError: no complete store, or the target exists.
    """
    store = CellStore.open(folder)
    target = Path(target)
    as_parquet = target.suffix == ".parquet"
    if as_parquet and target.exists():
        raise InputError(f"{target} exists and nothing is overwritten; name a new file")
    if not as_parquet:
        require_new_folder(target)
    taken = [name for name in store.obs if name in (TOKENS, LENGTH)]
    cells, tokens = len(store), int(store.lengths.sum(dtype=np.int64))
    counts = {"cells": cells, "tokens": tokens, "columns_left_out": taken}
    run = describe_run(_DOOR, {"source": store.folder, "target": target}, [store.folder], counts)
    with write_aside(target) as aside, Progress(cells, "converting", "cells") as progress:
        rows = _StoreRows(store, store.obs.drop(columns=taken), progress)
        if as_parquet:
            write_parquet_file(aside, rows.schema, rows.read, cells, run)
        else:
            write_dataset_folder(aside, rows.schema, rows.read, cells, tokens)
            write_provenance(aside, run)
    return counts


class _StoreRows:
    """Reads a store as rows of a tokenised dataset."""

    def __init__(self, store: CellStore, obs: pd.DataFrame, progress: Progress):
        self._store, self._obs, self._progress = store, obs, progress
        self._kinds = {name: carried_columns.kind_of(obs[name]) for name in obs}
        self.schema = dataset_schema(_token_type(store.vocabulary), self._kinds)

    def read(self, first: int, last: int) -> Iterator[pa.RecordBatch]:
        for start in range(first, last, _CELLS_PER_BATCH):
            stop = min(start + _CELLS_PER_BATCH, last)
            yield self._batch(np.arange(start, stop))
            self._progress.advance(stop - start)

    def _batch(self, rows: np.ndarray) -> pa.RecordBatch:
        cells, obs = self._store.read(rows), self._obs.iloc[rows]
        lengths = np.array([len(cell) for cell in cells])
        token_type = self.schema.field(TOKENS).type.value_type
        tokens = np.concatenate(cells).astype(token_type.to_pandas_dtype())
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        columns = {
            TOKENS: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(tokens)),
            carried_columns.CELL_ID: obs.index.to_numpy(),
            LENGTH: lengths,
        }
        columns |= {
            name: carried_columns.as_kind(obs[name], kind) for name, kind in self._kinds.items()
        }
        return pa.RecordBatch.from_pydict(columns, schema=self.schema)


def _token_type(vocabulary: GeneVocabulary) -> pa.DataType:
    # 16 signed bits hold the 25,426 tokens of the original's V1, but not of every vocabulary.
    fits = vocabulary.cls_id is None and vocabulary.size <= np.iinfo(np.int16).max
    return pa.int16() if fits else pa.int64()
