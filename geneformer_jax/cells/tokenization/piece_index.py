"""Which pieces the sources of a corpus are cut into, written down once for all processes.

The first process opens every source and writes the index; the others take it, and only look
whether the sources are still of the size and time that they had.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geneformer_jax.cells.counts.row_pieces import RowPieces
from geneformer_jax.common.files import atomic_write, require_unchanged, shown, state_of
from geneformer_jax.common.shares import own_share, require_shares, shares_of
from geneformer_jax.common.workdir import one_at_a_time

_HASH = 12


@dataclass(frozen=True)
class IndexedSource:
    """What is known of a source before its counts are read.

    Attributes:
      path: where it is.
      state: see `state_of`.
      cells: their number.
      pieces: that its cells are cut into.
      facts: what else a command wants to know of it, as JSON keeps it.
    """

    path: Path
    state: str
    cells: int
    pieces: RowPieces
    facts: Mapping[str, Any]

    def require_unchanged(self) -> None:
        """Raises InputError if it is not as it was when it was indexed."""
        require_unchanged({self.path: self.state})


class Piece(NamedTuple):
    """Some consecutive cells of a source.

    Attributes:
      source: its number in the index.
      first, stop: rows of the source, from `first` to `stop`.
    """

    source: int
    first: int
    stop: int

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.stop - self.first


@dataclass(frozen=True)
class PieceIndex:
    """The pieces of all sources, in order.

    Attributes:
      sources: that can be used.
      facts: what else a command wants to know of all of them, as JSON keeps it.
    """

    sources: Sequence[IndexedSource]
    facts: Mapping[str, Any]

    @cached_property
    def pieces(self) -> list[Piece]:
        """All pieces, source after source."""
        return [piece for number in range(len(self.sources)) for piece in self.pieces_of(number)]

    def pieces_of(self, source: int) -> list[Piece]:
        """The pieces of one source, in order."""
        bounds = self.sources[source].pieces.bounds.tolist()
        return [Piece(source, *ends) for ends in itertools.pairwise(bounds)]

    @property
    def values(self) -> int:
        """About how many values all pieces hold."""
        return sum(int(source.pieces.sizes.sum()) for source in self.sources)

    @cached_property
    def _costs(self) -> np.ndarray:
        # No piece is free, and an estimate may be 0.
        sizes = [source.pieces.sizes for source in self.sources]
        return np.concatenate(sizes).clip(min=1)

    def share(self, shard: tuple[int, int]) -> list[Piece]:
        """Returns the pieces of share i of n, which all hold about as many values.

        Raises:
          InputError: there are more shares than cells.
        """
        require_shares(shard, sum(source.cells for source in self.sources), "cells")
        own = own_share(self._costs, shard)
        return self.pieces[own.start : own.stop]

    def describe_share(self, shard: tuple[int, int]) -> str:
        """What a share is made of, for a line of the log."""
        own, pieces = self.share(shard), f"{len(self.pieces):,} piece{'s' * (len(self.pieces) > 1)}"
        name = f"shard {shard[0]}/{shard[1]}"
        if not own:
            return f"{name} is empty: {pieces} in all"
        cells = sum(piece.cells for piece in own)
        return f"{name}: {len(own):,} of {pieces}, {cells:,} cells"

    def share_with(self, piece: Piece, shares: int) -> int:
        """Returns which of so many shares has a piece."""
        return int(shares_of(self._costs, shares)[self.pieces.index(piece)])

    def describe_piece(self, piece: Piece) -> str:
        """Names a piece for messages; of a source that is not cut, its path alone."""
        source = self.sources[piece.source]
        if piece.cells == source.cells:
            return shown(source.path)
        return f"rows {piece.first:,} to {piece.stop - 1:,} of {shown(source.path)}"

    def save(self, path: Path) -> None:
        """Writes the index as a file of JSON, whole or not at all."""
        sources = [
            {
                "path": str(source.path),
                "state": source.state,
                "cells": source.cells,
                "bounds": source.pieces.bounds.tolist(),
                "sizes": source.pieces.sizes.tolist(),
                "facts": source.facts,
            }
            for source in self.sources
        ]
        # Where files cannot be locked several processes may write it.
        with atomic_write(path, str(os.getpid())) as aside:
            aside.write_text(json.dumps({"facts": self.facts, "sources": sources}))

    @classmethod
    def load(cls, path: Path) -> "PieceIndex":
        """Reads what `save` wrote."""
        content = json.loads(path.read_text())
        sources = [
            IndexedSource(
                Path(each["path"]),
                each["state"],
                each["cells"],
                RowPieces(np.array(each["bounds"]), np.array(each["sizes"])),
                each["facts"],
            )
            for each in content["sources"]
        ]
        return cls(sources, content["facts"])


class KeptIndex(NamedTuple):
    """An index of some sources in a folder.

    Attributes:
      index: of the pieces.
      is_new: whether this process made it.
    """

    index: PieceIndex
    is_new: bool


def keep_index(
    folder: Path,
    lock: Path,
    paths: Sequence[Path],
    identity: Mapping[str, Any],
    make: Callable[[], PieceIndex],
) -> KeptIndex:
    """Takes the index of sources, which the first process makes while others wait.

    Args:
      folder: of indexes.
      lock: path of a file to keep others waiting; it is gone afterwards.
      paths: of the sources.
      identity: what else the index depends on, as JSON keeps it.
      make: makes the index and the folder.
    """
    content = json.dumps([[str(path), state_of(path)] for path in paths] + [identity], default=str)
    file = folder / f"index-{hashlib.sha256(content.encode()).hexdigest()[:_HASH]}.json"
    if file.is_file():
        # A process that was killed behind its last word has left it.
        lock.unlink(missing_ok=True)
        return KeptIndex(PieceIndex.load(file), is_new=False)
    with one_at_a_time(lock):
        if file.is_file():
            return KeptIndex(PieceIndex.load(file), is_new=False)
        index = make()
        index.save(file)
    return KeptIndex(index, is_new=True)
