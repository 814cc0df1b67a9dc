"""Names of the files in a cell store, and what the store says of itself."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import read_json

T = TypeVar("T")

# A source's own name ends with a hash.
_OF_PIECE = re.compile(r"\.rows\d+-\d+$")
# Written last: a folder without it is no store yet.
DATASET_INFO = "dataset_info.json"
STORE, LENGTHS, N_GENES, OBS, VOCABULARY = (
    "store.json",
    "lengths.npy",
    "n_genes.npy",
    "obs.parquet",
    "vocabulary",
)
# SHA-256 of the files of numbers, which do not check themselves, and of the obs table, whose pages
# do, but which may be that of another store.
CHECKSUMS = "checksums.json"
# Sources keep a folder each, and the order in which they joined.
SOURCES, SOURCE, ORDER = "sources", "source.json", "order.json"
# What a source says of itself: whether each cell's number of genes is known.
COUNTS_GENES = "n_genes"
DATASET, SPLIT = "cells", "train"
# What processes that build a store tell each other, until it is complete.
SHARES, LOCK = "shares", "lock"
FILE_NAMES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


def read_note(path: Path, kind: type[T], needed: Collection[str] = ()) -> T:
    """Returns what a store has written down in a JSON file.

    Args:
      path: of the file.
      kind: what it holds.
      needed: names that an object must have.

    Raises:
      OSError: it cannot be read.
      InputError: it is damaged.
    """
    reason = "it is cut or changed"
    try:
        content = read_json(path)
        if isinstance(content, kind) and all(name in content for name in needed):
            return content
    except ValueError as error:
        reason = str(error)
    raise InputError(
        f"{path} is damaged ({reason}); restore it from a copy, or tokenise the sources into a new "
        "folder"
    )


def description_of(folder: Path) -> dict[str, Any]:
    """Returns what a growing or complete store says of itself: options, and obs columns.

    Raises:
      InputError: it is damaged.
    """
    description = read_note(folder / STORE, dict, ("options", "obs"))
    if not all(isinstance(description[name], dict) for name in ("options", "obs")):
        raise InputError(f"{folder / STORE} is damaged; restore it from a copy")
    return description


def obs_kinds(folder: Path) -> dict[str, str]:
    """The obs columns of a growing or complete store and their kinds."""
    return description_of(folder)["obs"]


def piece_key(source: str, first: int, stop: int, cells: int) -> str:
    """Name of the folder of some rows of a source; of all of them that of the source itself."""
    return source if (first, stop) == (0, cells) else f"{source}.rows{first}-{stop}"


def source_of(piece: str) -> str:
    """The name of the source that a piece is of."""
    return _OF_PIECE.sub("", piece)


def shard_name(index: int) -> str:
    """Name of a store's shard, as in `FILE_NAMES` for TFDS."""
    return f"{DATASET}-{SPLIT}.array_record-{index:05d}"
