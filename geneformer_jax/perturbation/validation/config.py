"""The options of a validation, as a user gives them."""

from dataclasses import dataclass, field

from geneformer_jax.common.arguments import require_text, require_type, require_whole
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.inference.filters import Filters

EDITS = ("delete", "overexpress")
# Two cells in each half.
LEAST_CELLS = 4
SEED = 42


@dataclass(frozen=True)
class ValidationOptions:
    """What is validated and how; see `validate_perturbations`."""

    perturbation: str
    control: str
    edit: str = "delete"
    mode: str | None = None
    hidden_layer: int = -1
    min_cells: int = 10
    edited_cells: int = 200
    like_rank: int = 3
    filters: Filters = field(default_factory=dict)
    max_cells: int | None = None
    seed: int = SEED

    def __post_init__(self):
        for name, what in (("perturbation", "an obs column"), ("control", "the label of controls")):
            require_type(name, getattr(self, name), str, f"give {what}, a text")
        require_text("edit", self.edit, "its name")
        if self.edit not in EDITS:
            raise InputError(
                f'`edit` is "{self.edit}"{did_you_mean(self.edit, EDITS)}; measured perturbations '
                f"are compared with {' or '.join(EDITS)}"
            )
        require_whole("min_cells", self.min_cells, LEAST_CELLS)
        require_whole("edited_cells", self.edited_cells, 1)
        require_whole("like_rank", self.like_rank, 1)
        require_whole("hidden_layer", self.hidden_layer)
        require_whole("seed", self.seed, 0)
