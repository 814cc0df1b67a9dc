"""Parts that are ranges of cells."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from geneformer_jax.common.shares import WHOLE, require_shares
from geneformer_jax.inference.resume.folder import PartsFolder

# Few cells are in about so many parts, that they can be shared; a part has no fewer than this
# fraction of its usual size, as it ends with batches that are not full.
_PARTS_TO_SHARE = 8
_PART_SIZE = "cells in a part"


class CellParts:
    """A folder of parts that are ranges of cells.

    The parts stay as they were begun, whatever devices go on with them.

    Attributes:
      folder: of the parts.
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
        self.folder, self._identity, self._costs = folder, identity, costs
        self._offsets = np.arange(len(costs) + 1) if offsets is None else offsets
        self._max_cells, self._max_rows, self._prepare = max_cells, max_rows, prepare

    @contextlib.contextmanager
    def at_work(self, shard: tuple[int, int] = WHOLE) -> Iterator[range]:
        """Locks a share of the parts, begins them if need be, and yields their numbers.

        Raises:
          InputError: more shares than cells; the folder holds parts of other cells, of another
            model or of other options; another process is at work on some of them.
        """
        require_shares(shard, len(self._costs), "cells")
        settings = {_PART_SIZE: self._max_cells}
        with self.folder.at_work(self._identity, settings, self._prepare, shard=shard) as kept:
            self.ranges = part_ranges(self._offsets, kept[_PART_SIZE], self._max_rows)
            yield self.folder.own(self._part_costs())

    def cells_of(self, parts: range) -> int:
        """Returns the number of cells of parts that follow each other."""
        return self.ranges[parts[-1]][1] - self.ranges[parts[0]][0] if parts else 0

    def require_whole(self, missing: list[int]) -> None:
        """Raises InputError if parts are missing; see `PartsFolder.require_whole`."""
        self.folder.require_whole(missing, self._part_costs())

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


def shareable_size(size: int, cells: int) -> int:
    """Returns the size of parts of so many cells, smaller than `size` where these are few."""
    return min(size, max(size // _PARTS_TO_SHARE, -(-cells // _PARTS_TO_SHARE)))


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
