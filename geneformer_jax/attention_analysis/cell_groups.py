"""Groups of cells whose attention is summed apart: the values of an obs column."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.columns import check_columns

NO_VALUE = "no value"


@dataclass(frozen=True, eq=False)
class CellGroups:
    """Groups of cells that are summed apart.

    Attributes:
      names: of the G groups.
      codes: int32 [cells] number of each cell's group; G for cells of no group, which count among
        all cells only.
      skipped: name -> number of cells of groups too small to be summed apart.
      min_cells: cells that a group must have.
    """

    names: tuple[str, ...]
    codes: np.ndarray
    skipped: Mapping[str, int] = field(default_factory=dict)
    min_cells: int = 1

    @property
    def sums(self) -> int:
        """How many sums are kept apart: of the groups, and of the cells of no group if any."""
        return len(self.names) + bool((self.codes == len(self.names)).any())


def group_cells(obs: pd.DataFrame, column: str | None, min_cells: int) -> CellGroups:
    """Groups cells by an obs column; cells without a value form a group of their own.

    Values of fewer than `min_cells` cells are skipped.

    Raises:
      InputError: there is no such column, or no value has as many cells.
    """
    if column is None:
        return CellGroups((), np.zeros(len(obs), np.int32))
    check_columns(obs, [column])
    values = obs[column].astype("object")
    values = values.where(values.notna() & (values.astype(str) != ""), NO_VALUE).astype(str)
    sizes = values.value_counts()
    large = sizes[sizes >= min_cells]
    if large.index.drop(NO_VALUE, errors="ignore").empty:
        _refuse(column, sizes.drop(NO_VALUE, errors="ignore"), min_cells)
    names = sorted(large.index)
    codes = pd.Index(names).get_indexer(values).astype(np.int32)
    codes = np.where(codes < 0, len(names), codes)
    return CellGroups(tuple(names), codes, sizes[sizes < min_cells].to_dict(), min_cells)


def _refuse(column: str, sizes: pd.Series, min_cells: int) -> None:
    """Raises InputError: no value has enough cells."""
    if sizes.empty:
        raise InputError(f'`groupby`: no cell has a value in column "{column}"; name another')
    raise InputError(
        f'`groupby`: no value of column "{column}" has the {min_cells} cells that are needed, the '
        f'most "{sizes.index[0]}" with {sizes.iloc[0]}; merge values, take more cells, or give a '
        "smaller `min_cells`"
    )


def describe_skipped(groups: CellGroups) -> str:
    """Says which groups were skipped, with their sizes; nothing if none was."""
    if not groups.skipped:
        return ""
    sizes = ", ".join(f"{name} ({cells})" for name, cells in groups.skipped.items())
    return (
        f"groups of fewer than `min_cells`={groups.min_cells} cells are not summarised apart, "
        f"their cells count among all cells: {sizes}"
    )
