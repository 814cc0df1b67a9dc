"""What a statistic is asked for, and what it returns."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from geneformer_jax.perturbation.statistics import shifts as statistics
from geneformer_jax.reporting.figures import Drawing

# Edits in fewer cells are not compared, and are not shown first.
MIN_CELLS = 10


@dataclasses.dataclass(frozen=True)
class StatisticOptions:
    """What `perturbation_statistics` was asked for; see its docstring."""

    null: str = ""
    goal: str = ""
    alternatives: tuple[str, ...] | None = None
    measure: str = ""
    state: str = ""
    anchor: str = ""
    without_own: bool = False
    background: int = statistics.BACKGROUND
    seed: int = statistics.SEED
    set_size: int = 0
    min_cells: int = MIN_CELLS
    group: str = ""


class Controls(NamedTuple):
    """What controls beside a statistic found; see the package `controls`.

    Attributes:
      table: control, what it asks, result, verdict.
      verdict: what they come to, in a sentence; "" without.
      headings: what their columns say.
      drawings: called when the tables have been read to their end.
    """

    table: pd.DataFrame
    verdict: str
    headings: Mapping[str, str]
    drawings: Callable[[], Iterator[Drawing]]


class StatisticResult(NamedTuple):
    """The result of one statistic.

    Attributes:
      tables: name -> pieces of the table; the first has the mode's name.
      drawings: called when the tables have been read to their end.
      text: one or two sentences on how to read the table.
      used: the resolved options.
      controls: set beside it, None without.
    """

    tables: dict[str, Iterable[pd.DataFrame]]
    drawings: Callable[[], Iterator[Drawing]]
    text: str
    used: dict[str, Any]
    controls: Controls | None = None
