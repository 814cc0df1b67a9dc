"""The cell store: a folder of tokenised cells, lengths, obs columns, vocabulary, provenance.

A store is a TFDS dataset in ArrayRecord shards that `tfds.builder_from_directory(folder)` opens
without TensorFlow. Beside the shards lie `lengths.npy`, `n_genes.npy`, `obs.parquet`,
`checksums.json` of these, `vocabulary/` and `provenance.json`. `dataset_info.json` is written last:
a folder without it is no store yet.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from geneformer_jax.cells.links import require_own_content
from geneformer_jax.cells.store import tables
from geneformer_jax.cells.store.layout import (
    DATASET_INFO,
    LENGTHS,
    N_GENES,
    OBS,
    STORE,
    VOCABULARY,
)
from geneformer_jax.cells.store.records import decode_tokens
from geneformer_jax.cells.store.shards import RecordReader, Shard, check_shards, list_shards
from geneformer_jax.cells.tokenization.indices import require_indices
from geneformer_jax.cells.tokenization.rank_encoding import describe_lengths
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.arguments import require_path
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import read_json
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress


def require_store(folder: Path | str) -> Path:
    """Returns `folder` as a Path if it holds a complete cell store, else raises InputError."""
    require_path("folder", folder, "a cell store")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name a cell store written by tokenize")
    if not (folder / STORE).is_file() and (folder / "state.json").is_file():
        raise InputError(
            f"{folder} is a tokenised dataset of the original, but a cell store is needed here; "
            f"make one: convert --source={folder} --target=STORE --vocabulary=VOCABULARY"
        )
    if not (folder / STORE).is_file():
        raise InputError(
            f"{folder} is no cell store (it has no {STORE}); name a folder written by tokenize"
        )
    if not (folder / DATASET_INFO).is_file():
        raise InputError(
            f"the cell store {folder} is not complete; run the same tokenize command again, or its "
            "`finish` if it ran with `shard`"
        )
    return folder


class CellStore:
    """A complete cell store, open for reading.

    Opening compares sizes and numbers of records with what was written down, and reads no cell;
    lengths, obs and shards are read at their first use. A pickled store is only its folder, so that
    each worker process opens its own files.
    """

    def __init__(self, folder: Path | str):
        """Names a store, whose shards are not looked at yet; see `open`."""
        self.folder = require_store(folder).resolve()
        path = self.folder / STORE
        try:
            self._max_length = index(read_json(path)["options"]["max_length"])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); restore it from a copy") from error

    @classmethod
    def open(cls, folder: Path | str) -> "CellStore":
        """Opens a store.

        Raises:
          InputError: the folder holds no complete cell store, or links to what lies elsewhere, or
            a shard is missing, cut or damaged.
        """
        store = cls(folder)
        require_own_content(store.folder)
        check_shards(store.shards)
        return store

    def __reduce__(self):
        return CellStore, (self.folder,)

    def __repr__(self) -> str:
        return f"CellStore({describe_lengths(self.lengths)}, {str(self.folder)!r})"

    def __len__(self) -> int:
        return self._cells

    @cached_property
    def _cells(self) -> int:
        return sum(shard.cells for shard in self.shards)

    @property
    def max_length(self) -> int:
        """Maximal number of tokens of a cell, special tokens included."""
        return self._max_length

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell; int32 [cells], read-only."""
        return tables.read_numbers(self.folder / LENGTHS, len(self))

    @cached_property
    def n_genes(self) -> np.ndarray | None:
        """Number of genes of each cell, those that were cut off included; int32 [cells], read-only.

        None where only the tokens were known, as in a store converted from a dataset.
        """
        path = self.folder / N_GENES
        return tables.read_numbers(path, len(self)) if tables.has_numbers(path) else None

    @cached_property
    def vocabulary(self) -> GeneVocabulary:
        """The vocabulary of the tokens."""
        return GeneVocabulary.load(self.folder / VOCABULARY)

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The stored obs columns, in store order, indexed by cell id; text is categorical."""
        return tables.read_obs(self.folder / OBS, len(self))

    @cached_property
    def cell_ids(self) -> np.ndarray:
        """Ids of the cells, in store order; [cells] str."""
        return tables.read_cell_ids(self.folder / OBS, len(self))

    @property
    def obs_schema(self) -> pa.Schema:
        """Stored names and types of the obs table's columns, the cell id first."""
        return tables.obs_schema(self.folder / OBS)

    def obs_batches(
        self, rows: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yields the obs table by its columns' stored names, at most `rows` cells at a time."""
        return tables.obs_batches(self.folder / OBS, rows, columns)

    @cached_property
    def shards(self) -> list[Shard]:
        """The store's files, in order."""
        return list_shards(self.folder)

    @cached_property
    def _records(self) -> RecordReader:
        return RecordReader(self.shards)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Returns the tokens (uint16 arrays) of cells, in the order of `indices`.

        Many indices at once are read much faster than one by one.

        Raises:
          InputError: there is no such cell, or a file of the store is damaged.
        """
        indices = require_indices("indices", indices, len(self))
        if not indices.size:
            return []
        records = self._records.read(indices)
        tokens = [self._decode(*each) for each in zip(records, indices, strict=True)]
        lengths = np.fromiter(map(len, tokens), np.int32, len(tokens))
        wrong = indices[lengths != self.lengths[indices]]
        if wrong.size:
            raise InputError(
                f"{self.folder / LENGTHS} does not state the length of cell {wrong[0]}; restore "
                "the store from a copy, or tokenise its sources into a new folder"
            )
        return tokens

    def _decode(self, record: bytes, index: int) -> np.ndarray:
        try:
            return decode_tokens(record)
        except (ValueError, IndexError) as error:
            raise self._records.shard_of(index).damaged("holds records without tokens") from error

    def verify(self) -> Iterator[Shard]:
        """Yields each shard after its size and checksum were found right.

        Raises:
          InputError: a shard is missing or not as it was written.
        """
        for shard in self.shards:
            shard.check_content()
            yield shard


def verify_store(folder: Path | str) -> None:
    """Checks size and checksum of every shard of a store, and logs that all are right.

    Raises:
      InputError: no complete store, or a shard is missing or changed.
    """
    store = CellStore(folder)
    with Progress(len(store.shards), "verifying", "shards") as progress:
        for _ in store.verify():
            progress.advance(1)
    logger.info(f"{folder}: {len(store.shards)} shards with {len(store):,} cells are as written")


class EncodedCells(Protocol):
    """Tokenised cells: a CellStore, TokenizedCells in memory, or ChosenCells of either.

    Attributes:
      lengths: int32 [cells] tokens of each cell.
      obs: [cells] per-cell columns, indexed by cell id.
      vocabulary: of the tokens.
    """

    lengths: np.ndarray
    obs: pd.DataFrame
    vocabulary: GeneVocabulary

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens of cells."""
