"""Cell states, and the embeddings towards which shifts are measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.store.shorter_cells import shorten
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.embedding.embedder import Embedded, Embedder
from geneformer_jax.embedding.states import MEAN, StateEmbeddings, state_embeddings
from geneformer_jax.inference.cells import ChosenCells, select_cells
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.inference.filters import label_text, label_texts, split_values
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime


class ListedStates(str):
    """States separated by commas, as in a command; where each ends, the cells' column tells."""


@dataclass(frozen=True)
class CellStates:
    """Cell states to measure shifts towards.

    Attributes:
      column: obs column that names them.
      goal: state that cells should come nearer to.
      start: state whose cells are perturbed; "" perturbs the cells of all states.
      alternatives: further states.
    """

    column: str
    _: KW_ONLY
    goal: str
    start: str = ""
    alternatives: tuple[str, ...] = ()

    def __post_init__(self):
        several = self.alternatives
        is_one = isinstance(several, str) or not isinstance(several, Iterable)
        several = [several] if is_one else several
        object.__setattr__(self, "alternatives", tuple(map(_name, several)))
        for each in ("column", "goal", "start"):
            object.__setattr__(self, each, _name(getattr(self, each)))
        if not self.column or not self.goal:
            raise InputError(
                "states need an obs column and a goal; name both, and a start and alternatives "
                "where there are any"
            )
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(
                f'state "{twice}" is named twice; start, goal and alternatives must differ'
            )

    @classmethod
    def of(cls, states: object) -> "CellStates":
        """Returns states that may be given as a dict of the attributes.

        Raises:
          InputError: they are something else, or a name is missing or unknown.
        """
        if isinstance(states, cls):
            return states
        known = {field.name for field in fields(cls)}
        if isinstance(states, Mapping) and {"column", "goal"} <= set(states) <= known:
            return cls(**states)
        raise InputError(
            f"`states` is {states!r}, but must be a CellStates, such as "
            'CellStates("disease", goal="healthy", start="dilated"), or a dict of its column, goal '
            "and, if wanted, start and alternatives"
        )

    @property
    def names(self) -> list[str]:
        """Start, goal and alternatives."""
        return [*([self.start] if self.start else []), self.goal, *self.alternatives]

    def named_in(self, obs: pd.DataFrame) -> "CellStates":
        """Returns the states with listed alternatives as the names that a column has."""
        if not any(isinstance(each, ListedStates) for each in self.alternatives):
            return self
        check_columns(obs, [self.column])
        known = set(label_texts(obs[self.column].drop_duplicates()).dropna())
        named = []
        for each in self.alternatives:
            is_list = isinstance(each, ListedStates)
            named += split_values(each, known, ",") if is_list else [each]
        return replace(self, alternatives=tuple(named))

    def check(self, cells: EncodedCells) -> None:
        """Raises InputError if the column or a state does not occur."""
        for name in self.names:
            select_cells(cells, {self.column: [name]})

    def start_cells(self, cells: EncodedCells) -> EncodedCells:
        """Returns the cells of the start state, or all."""
        return select_cells(cells, {self.column: [self.start]}) if self.start else cells


def _name(value: object) -> str:
    """Returns the name of a state or column, which may be a number or nothing."""
    if value is None:
        return ""
    return value if isinstance(value, str) else label_text(value)


def compute_states(
    model: PretrainedModel,
    cells: EncodedCells,
    states: CellStates,
    mode: str,
    hidden_layer: int,
    runtime: Runtime,
    devices: Sequence[jax.Device],
) -> StateEmbeddings:
    """Embeds the cells of the states; exact means, as the original's exact_mean."""
    own = select_cells(cells, {states.column: states.names})
    own = ChosenCells(shorten(own, model.config.positions), np.arange(len(own.rows)), own.dropped)
    embedder = Embedder(model, own, mode, hidden_layer, runtime, devices=list(devices))
    with embedder.progress("embed the states") as progress:
        rows = embedder.rows(0, len(own.rows), progress)
    embedded = Embedded(rows, embedder.table(), embedder.layers, embedder.facts())
    return state_embeddings(embedded, states.column)


def read_states(
    path: Path | str, states: CellStates, model: PretrainedModel, mode: str, hidden_layer: int
) -> StateEmbeddings:
    """Reads given state embeddings.

    Raises:
      InputError: they are of another model, column, mode or hidden layer, or lack a state.
    """
    given = StateEmbeddings.load(path)
    wanted = {"vocabulary_hash": model.vocabulary.hash, "mode": mode}
    for name, value in wanted.items():
        if given.facts.get(name) != value:
            raise InputError(
                f"{path} has state embeddings of {name} {given.facts.get(name)}, but {value} is "
                "needed; write them anew with embed --states, or leave them out to compute them"
            )
    if given.column != states.column:
        raise InputError(
            f'{path} has states of column "{given.column}", not "{states.column}"; name that one'
        )
    vectors = given.vectors(MEAN, hidden_layer)
    for name in states.names:
        if name not in vectors:
            raise InputError(
                f'{path} has no state "{name}"{did_you_mean(name, vectors)}; it has '
                f"{', '.join(vectors)}"
            )
    if (width := len(next(iter(vectors.values())))) != model.config.width:
        raise InputError(
            f"{path} has embeddings of width {width}, but the model has {model.config.width}; "
            "write them with this model"
        )
    return given


def unit_vectors(given: StateEmbeddings, states: CellStates, hidden_layer: int) -> np.ndarray:
    """Returns the states' mean embeddings at unit length, float32 [states, D]."""
    vectors = given.vectors(MEAN, hidden_layer)
    chosen = np.stack([vectors[name] for name in states.names]).astype(np.float64)
    return (chosen / np.linalg.norm(chosen, axis=1, keepdims=True)).astype(np.float32)


def read_state_names(
    column: str, start: str, goal: str, alternatives: Sequence[str]
) -> CellStates | None:
    """Reads the texts of a command into states; None where no column is named.

    Raises:
      InputError: states are named without their column.
    """
    if column:
        listed = tuple(map(ListedStates, alternatives))
        return CellStates(column, goal=goal, start=start, alternatives=listed)
    for name, value in (("start", start), ("goal", goal), ("alternatives", alternatives)):
        if value:
            raise InputError(f"`{name}` is given, but not its obs column; name it by `states`")
    return None
