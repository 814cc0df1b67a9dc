"""The cell store: a folder of tokenised cells, lengths, obs columns, vocabulary, provenance.

A store is a TFDS dataset in ArrayRecord shards that `tfds.builder_from_directory(folder)` opens
without TensorFlow. Beside the shards lie `lengths.npy`, `n_genes.npy`, `obs.parquet`,
`vocabulary/` and `provenance.json`. `dataset_info.json` is written last: a folder without it is no
store yet.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_data_source import ArrayRecordDataSource

from geneformer_jax.cells.counts.source import cell_index
from geneformer_jax.cells.store.obs_columns import CELL_ID, original_name
from geneformer_jax.cells.store.records import decode_tokens
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress

DATASET_INFO = "dataset_info.json"
STORE, LENGTHS, N_GENES, OBS, VOCABULARY, SOURCES = (
    "store.json",
    "lengths.npy",
    "n_genes.npy",
    "obs.parquet",
    "vocabulary",
    "sources",
)
SOURCE = "source.json"
DATASET, SPLIT = "cells", "train"
FILE_NAMES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


def shard_name(index: int) -> str:
    """Name of a store's shard, as in `FILE_NAMES` for TFDS."""
    return f"{DATASET}-{SPLIT}.array_record-{index:05d}"


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Shard:
    """One file of a store.

    Attributes:
      path: where it is.
      cells: its number of records.
      bytes: its size.
      sha256: its checksum.
      source: the count file whose cells it holds.
    """

    path: Path
    cells: int
    bytes: int
    sha256: str
    source: str


def require_store(folder: Path | str) -> Path:
    """Returns `folder` as a Path if it holds a complete cell store, else raises InputError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name a cell store written by tokenize")
    if not (folder / STORE).is_file():
        raise InputError(
            f"{folder} is no cell store (it has no {STORE}); name a folder written by tokenize"
        )
    if not (folder / DATASET_INFO).is_file():
        raise InputError(
            f"the cell store {folder} is not complete; run the same tokenize command again, or its "
            "--finish if it ran with --shard"
        )
    return folder


class CellStore:
    """A complete cell store, open for reading.

    Opening reads one small file; lengths, obs and shards are opened at their first use. A pickled
    store is only its folder, so that each worker process opens its own files.
    """

    def __init__(self, folder: Path | str):
        """Opens a store; see `open`."""
        self.folder = require_store(folder).resolve()
        self._description = json.loads((self.folder / STORE).read_text())

    @classmethod
    def open(cls, folder: Path | str) -> "CellStore":
        """Opens a store.

        Raises:
          InputError: the folder holds no complete cell store.
        """
        return cls(folder)

    def __reduce__(self):
        return CellStore, (self.folder,)

    def __len__(self) -> int:
        return self._cells

    @cached_property
    def _cells(self) -> int:
        return sum(shard.cells for shard in self.shards)

    @property
    def max_length(self) -> int:
        """Maximal number of tokens of a cell, special tokens included."""
        return self._description["options"]["max_length"]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell; int32 [cells], read-only."""
        return np.load(self.folder / LENGTHS, mmap_mode="r")

    @cached_property
    def n_genes(self) -> np.ndarray | None:
        """Number of genes of each cell, those that were cut off included; int32 [cells], read-only.

        None where only the tokens were known, as in a store converted from a dataset.
        """
        path = self.folder / N_GENES
        return np.load(path, mmap_mode="r") if path.is_file() else None

    @cached_property
    def vocabulary(self) -> GeneVocabulary:
        """The vocabulary of the tokens."""
        return GeneVocabulary.load(self.folder / VOCABULARY)

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The stored obs columns, in store order, indexed by cell id; text is categorical."""
        return read_obs(self.folder / OBS)

    @cached_property
    def cell_ids(self) -> np.ndarray:
        """Ids of the cells, in store order; [cells] str."""
        return read_cell_ids(self.folder / OBS)

    @cached_property
    def shards(self) -> list[Shard]:
        """The store's files, in order."""
        return list(_shards(self.folder))

    @cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource([str(shard.path) for shard in self.shards])

    def read(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Returns the tokens (uint16 arrays) of cells, in the order of `indices`.

        Many indices at once are read much faster than one by one.

        Raises:
          InputError: there is no such cell.
        """
        indices = np.asarray(indices, dtype=np.int64)
        wrong = indices[(indices < 0) | (indices >= len(self))]
        if wrong.size:
            raise InputError(f"cell {wrong[0]} is not in this store of {len(self):,} cells")
        if not indices.size:
            return []
        return [decode_tokens(each) for each in self._records.__getitems__(indices.tolist())]

    def verify(self) -> Iterator[Shard]:
        """Yields each shard after its size and checksum were found right.

        Raises:
          InputError: a shard is missing or not as it was written.
        """
        for shard in self.shards:
            remedy = "restore it from a copy, or tokenise its source into a new folder"
            if not shard.path.is_file():
                raise InputError(f"{shard.path} (cells of {shard.source}) is missing; {remedy}")
            if shard.path.stat().st_size != shard.bytes or checksum(shard.path) != shard.sha256:
                raise InputError(
                    f"{shard.path} (cells of {shard.source}) is not as it was written (checksum or "
                    f"size differs); {remedy}"
                )
            yield shard


def verify_store(folder: Path | str) -> None:
    """Checks size and checksum of every shard of a store, and logs that all are right.

    Raises:
      InputError: no complete store, or a shard is missing or changed.
    """
    store = CellStore.open(folder)
    with Progress(len(store.shards), "verifying", "shards") as progress:
        for _ in store.verify():
            progress.advance(1)
    logger.info(f"{folder}: {len(store.shards)} shards with {len(store):,} cells are as written")


def read_obs(path: Path) -> pd.DataFrame:
    """Reads an obs table; text columns become categorical, the cell ids the index."""
    schema = pq.read_schema(path)
    text = [field.name for field in schema if pa.types.is_string(field.type)]
    categories = [name for name in text if name != CELL_ID]
    table = pq.read_table(path, read_dictionary=categories).to_pandas()
    ids = table.pop(CELL_ID)
    table = table.rename(columns=original_name)
    return table.set_axis(cell_index(ids, table.columns))


def read_cell_ids(path: Path) -> np.ndarray:
    """Reads the cell ids of an obs table; [cells] str (dtype object)."""
    return pq.read_table(path, columns=[CELL_ID])[CELL_ID].to_numpy(zero_copy_only=False)


def _shards(folder: Path) -> Iterator[Shard]:
    index = 0
    for key in json.loads((folder / SOURCES / "order.json").read_text()):
        source = json.loads((folder / SOURCES / key / SOURCE).read_text())
        for shard in source["shards"]:
            yield Shard(folder / shard_name(index), source=source["path"], **shard)
            index += 1


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
