"""Cell states, as they are named."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace

import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.inference.filters import label_text, label_texts, split_values


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


def _name(value: object) -> str:
    """Returns the name of a state or column, which may be a number or nothing."""
    if value is None:
        return ""
    return value if isinstance(value, str) else label_text(value)


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
