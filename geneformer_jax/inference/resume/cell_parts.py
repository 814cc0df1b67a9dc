"""Parts that are ranges of cells."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from geneformer_jax.batches.buckets import BatchShape
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.shares import WHOLE, require_shares
from geneformer_jax.inference.resume.folder import PartsFolder

# Few cells are in about so many parts, that they can be shared; but a part, which ends with a batch
# of each length that is not full, has so many times the cells of those.
_PARTS_TO_SHARE, _BATCHES_IN_PART = 8, 25
_PART_SIZE = "cells in a part"


class PartKeeper(Protocol):
    """What makes and keeps parts; each is the cells from `start` to before `stop`."""

    def open(self, parts: int) -> None:
        """Readies what is kept of so many parts."""
        ...

    def has(self, part: int, start: int, stop: int) -> bool:
        """Whether a part is there, as it was written."""
        ...

    def make(self, part: int, start: int, stop: int, progress: Progress, own: range) -> None:
        """Makes and keeps a part; `own` are those that no other process makes at this time."""
        ...


class CellParts:
    """A folder of parts that are ranges of cells.

    The parts stay as they were begun, whatever devices go on with them.

    Attributes:
      ranges: (first cell, cell behind the last) of each part, once at work.
    """

    def __init__(
        self,
        folder: PartsFolder,
        identity: Mapping[str, Any],
        costs: np.ndarray,
        max_cells: int,
        *,
        offsets: np.ndarray | None = None,
        max_rows: int | None = None,
        prepare: Callable[[Path], None] | None = None,
    ):
        """Describes the parts; nothing is written yet.

        Args:
          folder: of the parts.
          identity: everything that results depend on.
          costs: [cells] what each takes.
          max_cells: of a new run's parts.
          offsets: int64 [cells + 1] first row of each cell; a row for each by default.
          max_rows: of a part of several cells; None for no such limit.
          prepare: writes what else a new folder must hold.
        """
        self._folder, self._identity, self._costs = folder, identity, costs
        self._offsets = np.arange(len(costs) + 1) if offsets is None else offsets
        self._max_cells, self._max_rows, self._prepare = max_cells, max_rows, prepare

    def make(
        self, keeper: PartKeeper, shard: tuple[int, int], progress: Callable[[int], Progress]
    ) -> None:
        """Makes what is missing of a share.

        Args:
          keeper: makes and keeps the parts.
          shard: (i, n), share i of n.
          progress: returns the progress of a number of cells.

        Raises:
          InputError: more shares than cells; the folder holds parts of other cells, of another
            model or of other options; another process is at work on some of them.
        """
        with self._at_work(keeper, shard) as own, progress(self._cells_of(own)) as progress:
            for part in own:
                start, stop = self.ranges[part]
                if keeper.has(part, start, stop):
                    progress.advance(stop - start)
                else:
                    keeper.make(part, start, stop, progress, own)

    @contextlib.contextmanager
    def whole(self, keeper: PartKeeper) -> Iterator[None]:
        """Keeps other processes from the parts, which are all there.

        Raises:
          InputError: parts are missing, which it names; or see `make`.
        """
        with self._at_work(keeper, WHOLE) as parts:
            missing = [part for part in parts if not keeper.has(part, *self.ranges[part])]
            self._folder.require_whole(missing, self._part_costs())
            yield

    @contextlib.contextmanager
    def _at_work(self, keeper: PartKeeper, shard: tuple[int, int]) -> Iterator[range]:
        require_shares(shard, len(self._costs), "cells")
        settings = {_PART_SIZE: self._max_cells}
        with self._folder.at_work(self._identity, settings, self._prepare, shard=shard) as kept:
            self.ranges = part_ranges(self._offsets, kept[_PART_SIZE], self._max_rows)
            keeper.open(len(self.ranges))
            yield self._folder.own(self._part_costs())

    def _cells_of(self, parts: range) -> int:
        return self.ranges[parts[-1]][1] - self.ranges[parts[0]][0] if parts else 0

    def _part_costs(self) -> np.ndarray:
        before = np.concatenate([[0.0], np.cumsum(self._costs)])
        return np.diff(before[np.array(self.ranges).reshape(-1, 2)])[:, 0]


def cells_per_part(mesh: Mesh, by_platform: Mapping[str, int], accelerator: int) -> int:
    """Returns the cells of a part on the devices of a mesh.

    Args:
      mesh: devices.
      by_platform: cells for each device of a platform, such as {"cpu": 8_192}.
      accelerator: cells for each device of another platform.
    """
    return mesh.size * by_platform.get(mesh.devices.flat[0].platform, accelerator)


def shareable_size(size: int, cells: int, shape: BatchShape) -> int:
    """Returns the size of parts of so many cells, smaller than `size` where these are few.

    Args:
      size: cells of a part of many.
      cells: in all.
      shape: of their batches.
    """
    fewest = _BATCHES_IN_PART * sum(shape.cells)
    return min(size, max(fewest, -(-cells // _PARTS_TO_SHARE)))


def part_ranges(
    offsets: np.ndarray, max_cells: int, max_rows: int | None = None
) -> list[tuple[int, int]]:
    """Cuts cells into parts: as many as fit, at least one.

    Args:
      offsets: int64 [cells + 1] first row of each cell, and the number of rows.
      max_cells: of a part.
      max_rows: of a part of several cells; None for no such limit.

    Returns:
      (first cell, cell behind the last) of each part.
    """
    ranges, start, cells = [], 0, len(offsets) - 1
    while start < cells:
        stop = min(start + max_cells, cells)
        if max_rows is not None:
            fitting = int(np.searchsorted(offsets, offsets[start] + max_rows, "right")) - 1
            stop = min(max(fitting, start + 1), stop)
        ranges.append((start, stop))
        start = stop
    return ranges
