"""What a control found: its line in the table of controls, columns, and figures."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.perturbation.controls.within_cells import WithinCells, within_cells
from geneformer_jax.perturbation.layout import SHIFTS
from geneformer_jax.perturbation.statistics.modes.states import vs_null
from geneformer_jax.perturbation.statistics.moments import RunningMoments
from geneformer_jax.perturbation.statistics.tables import STATE_SHIFT, ShiftRows, column_names
from geneformer_jax.reporting.figures import Drawing

ROWS = ("cell", "perturbed", "perturbed_symbol", "rank", "value")


VERSUS_NULL = vs_null.__name__
# By mode, the column that edits are ranked by, and what Sig compares with.
_SHIFTS = {
    "goal_state_shift": "Shift_to_goal_end",
    "aggregate": "Cosine_sim_mean",
    "mixture_model": "Test_avg_shift",
    VERSUS_NULL: "Test_vs_null_avg_shift",
}
_COMPARED_WITH = {
    "goal_state_shift": "the pool of all edits",
    VERSUS_NULL: "the same edits of the null cells",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A statistic of edits, of which controls ask what it is worth.

    Attributes:
      folder: of the perturbation.
      mode: of the statistic.
      measure, goal: what it is of; the goal is "" where the measure has no states.
      start: state of the perturbed cells; "" where there is none.
      chosen_cells: cells that were chosen to be perturbed; 0 where it is not known.
      min_cells: genes in fewer cells are not compared.
      table: of the statistic.
      has_counts: whether differential expression is that of counts, not of ranks.
      group: obs column of donors; "" where none is named.
      donors: donor by id of the cell; None without a column of them.
    """

    folder: Path
    mode: str
    measure: str
    goal: str
    start: str
    chosen_cells: int
    min_cells: int
    table: pd.DataFrame
    has_counts: bool
    group: str
    donors: pd.Series | None

    def rows(self, state: str, *further: str, folder: Path | None = None) -> ShiftRows:
        """Returns the shifts of single genes towards a state, with further columns.

        Args:
          state: that shifts are towards.
          further: columns.
          folder: of another perturbation with the same edits.
        """
        where = {"measure": self.measure, "state": state}
        return ShiftRows(
            (folder or self.folder) / SHIFTS, (*ROWS, *further), where, genes_in_edit=1
        )

    @property
    def has_start(self) -> bool:
        """Whether the perturbed cells are of one state, which is not the goal."""
        return self.start not in ("", self.goal)

    def has_parts(self, folder: Path | None = None) -> bool:
        """Whether the shifts of this run, or of another, are there in their two parts."""
        is_there = "reranking" in column_names((folder or self.folder) / SHIFTS)
        return is_there and self.measure == STATE_SHIFT

    @functools.cached_property
    def within(self) -> WithinCells:
        """Shifts within cells."""
        return within_cells(self.rows(self.goal))

    @property
    def edits(self) -> pd.DataFrame:
        """Ensembl_ID and Gene_name, [edits of `within`]."""
        edits = self.within.edits
        return pd.DataFrame({"Ensembl_ID": edits.names, "Gene_name": edits.symbols})

    @property
    def is_compared(self) -> np.ndarray:
        """bool [edits of `within`], which genes were edited in enough cells."""
        return self.within.centred.counts >= self.min_cells

    @property
    def compared_with(self) -> str:
        """What the statistic itself tests edits against; "" where it tests nothing."""
        return _COMPARED_WITH.get(self.mode, "")

    @property
    def shifts(self) -> np.ndarray:
        """float64 [edits of `within`], what edits are ranked by; NaN where not compared."""
        column = self.table.set_index("Ensembl_ID")[_SHIFTS[self.mode]]
        means = column.reindex(self.within.edits.names).to_numpy(float)
        return np.where(self.is_compared, means, np.nan)

    def means(self, state: str, column: str = "value", folder: Path | None = None) -> np.ndarray:
        """Returns float64 [edits of `within`], means over cells of a column; see `rows`."""
        edits, moments = self.within.edits, RunningMoments()
        for piece in self.rows(state, *({column} - {"value"}), folder=folder):
            numbers = edits.find(piece["perturbed"])
            values = piece[column].to_numpy(np.float64)
            moments.add(numbers[numbers >= 0], values[numbers >= 0])
        return moments.result().dense(len(edits)).means

    def coverage(self) -> np.ndarray:
        """float64 [edits of `within`], fraction of the cells that have the gene within sight."""
        return self.within.seen / max(self.chosen_cells, self.within.cells)


@dataclasses.dataclass(frozen=True, eq=False)
class Finding:
    """What one control found.

    Attributes:
      result: numbers, in a sentence.
      verdict: what they mean, in a few words.
      columns: float [edits], by the columns' names and (index) gene ids.
      headings: what each column says.
      drawings: figures.
    """

    result: str
    verdict: str
    columns: pd.DataFrame
    headings: dict[str, str]
    drawings: Iterator[Drawing]
