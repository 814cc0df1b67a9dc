"""Cell ids must be distinct within a store, across all of its files."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError

# As Python objects, ids take some 70 bytes more each.
_BLOCK = 1 << 16


def hash_ids(ids: np.ndarray) -> np.ndarray:
    """Returns uint64 [cells], a hash of each id: eight bytes a cell, so that millions fit."""
    blocks = [ids[first : first + _BLOCK] for first in range(0, len(ids), _BLOCK)]
    hashes = [pd.util.hash_array(np.asarray(each, object), categorize=False) for each in blocks]
    return np.concatenate([np.empty(0, np.uint64), *hashes])


def refuse_repeated_ids(
    hashes: Sequence[np.ndarray], names: Sequence[str], read_ids: Callable[[int], np.ndarray]
) -> None:
    """Raises InputError if a cell id occurs twice, in one file or in two.

    Args:
      hashes: of the cell ids of each file, see `hash_ids`.
      names: of the files.
      read_ids: number of a file -> its cell ids; called only for files with equal hashes.
    """
    everything = np.concatenate([np.empty(0, np.uint64), *hashes])
    everything.sort()
    if not np.any(everything[1:] == everything[:-1]):
        return
    starts = np.cumsum([0, *map(len, hashes)])
    everything = np.concatenate(hashes)
    rank = np.argsort(everything, kind="stable")
    for pair in np.flatnonzero(np.diff(everything[rank]) == 0):
        cells = rank[pair : pair + 2]
        files = np.searchsorted(starts, cells, side="right") - 1
        first, second = (
            read_ids(file)[cell - starts[file]] for file, cell in zip(files, cells, strict=True)
        )
        if first != second:
            continue
        one, other = (names[file] for file in files)
        where = f"twice in {one}" if files[0] == files[1] else f"in {one} and in {other}"
        raise InputError(
            f'the cell id "{first}" is {where}, but the ids of a store must be distinct; make them '
            "so in the files, or use --prefix_cell_ids where files share barcodes"
        )
