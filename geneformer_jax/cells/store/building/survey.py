"""Looking at the sources of a store before their counts are read."""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from geneformer_jax.cells.counts.row_pieces import RowPieces
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store import writer as store_writer
from geneformer_jax.cells.store.cell_columns import CellColumns
from geneformer_jax.cells.store.obs_columns import common_kind
from geneformer_jax.cells.store.repeated_ids import RepeatedIds
from geneformer_jax.cells.tokenization.piece_index import IndexedSource, PieceIndex
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import fingerprint, shown, state_of

_KEY_HASH = 12


def source_key(path: Path) -> str:
    """A name for a file's part of a store; changes with its name or content."""
    content = json.dumps(fingerprint(path), sort_keys=True)
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem)[:80]
    return f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:_KEY_HASH]}"


class CellsOfSources:
    """Which ids and obs columns of sources a store keeps, and under which names."""

    def __init__(self, obs: Sequence[str], prefix_cell_ids: bool):
        """Takes obs columns, with "?" behind those that a source may lack, and the prefix."""
        self._optional = {name.removesuffix("?") for name in obs if name.endswith("?")}
        self.names = [name.removesuffix("?") for name in obs]
        self._prefix_cell_ids = prefix_cell_ids

    def of(self, source: CountSource, obs: Sequence[str] = ()) -> CellColumns:
        """The cell ids of a source as they are stored, and its obs columns."""
        prefix = f"{source.path.stem}|" if self._prefix_cell_ids else ""
        return CellColumns(source, obs, prefix, optional=self._optional)


class StoredPieces:
    """The pieces of sources that a store holds already, which are not cut in another way."""

    def __init__(self, folder: Path):
        """Looks at the store, if there is one."""
        self._folder = folder
        self.joined = store_writer.joined_sources(folder)
        self._kept: dict[str, list[str]] = {}
        for key in self.joined:
            self._kept.setdefault(layout.source_of(key), []).append(key)
        for key in store_writer.finished_sources(folder):
            if layout.source_of(key) == key:
                self._kept.setdefault(key, [key])

    def cut(self, key: str, source: CountSource, values: int) -> RowPieces:
        """Returns the pieces of a source: those that the store holds, or else by its values."""
        if key not in self._kept:
            return source.cut(values)
        summaries = [store_writer.source_summary(self._folder, each) for each in self._kept[key]]
        ends = np.cumsum([each["cells_in_file"] for each in summaries])
        return RowPieces(np.array([0, *ends]), np.ones(len(ends), np.int64))

    def add_ids(self, ids: RepeatedIds, surveyed: set[str]) -> None:
        """Adds the ids of the cells whose sources are joined and were not surveyed."""
        for key in self.joined:
            if layout.source_of(key) not in surveyed:
                read = functools.partial(store_writer.stored_cell_ids, self._folder, key)
                ids.add(f"{self._folder} ({key})", read)


def describe_sources(index: PieceIndex) -> Iterator[str]:
    """Yields a line about each surveyed source."""
    for source in index.sources:
        absent = source.facts["absent"]
        lacks = f"; without obs column {', '.join(absent)}" if absent else ""
        yield f"  {shown(source.path)}: {source.cells:,} cells, {source.facts['genes']}{lacks}"


def common_kinds(names: Sequence[str], sources: Sequence[IndexedSource]) -> dict[str, str]:
    """Obs column -> the kind that can hold it in all sources."""
    return {name: common_kind(each.facts["obs"][name] for each in sources) for name in names}


@contextlib.contextmanager
def bad_file(path: str, skip: bool, bad: dict[str, str]) -> Iterator[None]:
    """Notes in `bad` what is wrong with a file, or raises it."""
    try:
        yield
    except InputError as error:
        if not skip:
            raise
        bad[path] = str(error)


def indexed(
    path: Path,
    source: CountSource,
    pieces: RowPieces,
    columns: CellColumns,
    genes: str,
) -> IndexedSource:
    """What is written down of a source: how to find it again, and what the log says of it.

    Args:
      path: of the source.
      source: open.
      pieces: that it is cut into.
      columns: with its obs columns.
      genes: what is said of its genes.
    """
    facts = {
        "key": source_key(path),
        "fingerprint": fingerprint(path),
        "obs": columns.kinds(),
        "absent": list(columns.absent),
        "genes": genes,
    }
    return IndexedSource(path, state_of(path), source.n_cells, pieces, facts)
