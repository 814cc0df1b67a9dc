"""The options of a perturbation, as a user gives them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geneformer_jax.common.arguments import (
    describe,
    require_text,
    require_type,
    require_whole,
)
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.log import logger
from geneformer_jax.inference.draw import ORIGINAL_SEED, check_draw
from geneformer_jax.inference.filters import Filters, parse_filters
from geneformer_jax.inference.listed_genes import read_gene_lines, read_genes
from geneformer_jax.perturbation.cell_states import CellStates, read_state_names
from geneformer_jax.perturbation.controls.choice import (
    NEEDS_DELETIONS,
    NEEDS_START,
    NEEDS_STATES,
    RERANKING,
    SELF_DELETION,
    dear_controls,
    is_all,
    is_free,
    refuse,
)
from geneformer_jax.perturbation.engine.edits import DELETE
from geneformer_jax.perturbation.engine.gene_sets import ALL, EACH
from geneformer_jax.perturbation.layout import MODES, SPLIT_POINTS

ORIGINAL, REFILL = "original", "refill"
TRUNCATIONS = (ORIGINAL, REFILL)
RENUMBER, KEEP = "renumber", "keep"
POSITIONS = (RENUMBER, KEEP)
NONE, FULL, TOP, MEANS = "none", "full", "top", "means"
GENE_SHIFTS = (NONE, FULL, TOP, MEANS)
# Flags whose values are those of options of the same name; and those that name states.
_AS_GIVEN = (
    "edit",
    "combine",
    "ranks",
    "quantile",
    "truncation",
    "positions",
    "hidden_layer",
    "classes",
    "gene_shifts",
    "top",
    "max_cells",
    "seed",
    "screen",
    "split_points",
)
# What a screen can estimate.
_SCREENED = {
    "edit": "delete",
    "combine": EACH,
    "anchor": None,
    "combinations": None,
    "truncation": ORIGINAL,
    "positions": RENUMBER,
    "gene_shifts": NONE,
}
_STATES = ("states", "start", "goal", "alternatives")


@dataclass(frozen=True)
class PerturbationOptions:
    """What is perturbed and what is measured; see `perturb_cells`."""

    edit: str = "delete"
    genes: str | Sequence[str] = ALL
    combine: str = EACH
    anchor: str | None = None
    combinations: Sequence[Sequence[str]] | None = None
    ranks: int | None = None
    quantile: float | None = None
    truncation: str = ORIGINAL
    positions: str = RENUMBER
    mode: str | None = None
    hidden_layer: int = -1
    states: CellStates | None = None
    state_embeddings: Path | str | None = None
    classes: bool = False
    gene_shifts: str = NONE
    top: int = 100
    filters: Filters = field(default_factory=dict)
    expressing: Sequence[str] = ()
    max_cells: int | None = None
    seed: int = ORIGINAL_SEED
    screen: bool = False
    split_points: int = SPLIT_POINTS
    settle: int | float | None = None
    # None: where it costs little beside the edits.
    reranking: bool | None = False

    def __post_init__(self):
        if self.states is not None:
            object.__setattr__(self, "states", CellStates.of(self.states))
        self._check_types()
        self._check_screen()
        _one_of("truncation", self.truncation, TRUNCATIONS)
        _one_of("positions", self.positions, POSITIONS)
        _one_of("gene_shifts", self.gene_shifts, GENE_SHIFTS)
        if self.mode is not None:
            _one_of("mode", self.mode, MODES)
        if self.top < 1:
            raise InputError(f"top is {self.top}; keep at least 1 gene of each edit")
        if self.state_embeddings and self.states is None:
            raise InputError(
                "state embeddings were given, but no states; name their column, start and goal"
            )

    def _check_types(self) -> None:
        for name in ("edit", "combine", "truncation", "positions", "mode", "gene_shifts", "anchor"):
            require_text(name, getattr(self, name), "one of its names")
        require_whole("hidden_layer", self.hidden_layer)
        require_whole("top", self.top)
        check_draw(self.max_cells, self.seed)
        if self.ranks is not None:
            require_whole("ranks", self.ranks)
        if self.quantile is not None:
            require_type("quantile", self.quantile, (int, float), "give a fraction, such as 0.25")
        for name in ("genes", "expressing"):
            require_type(name, getattr(self, name), Iterable, "give names of genes")
        if self.combinations is not None:
            remedy = 'give a list of genes for each set, such as [["CD74", "LYZ"]]'
            require_type("combinations", self.combinations, Iterable, remedy)
        for genes in self.combinations or ():
            if isinstance(genes, str) or not isinstance(genes, Iterable):
                raise InputError(
                    f"`combinations` holds {describe(genes)}; give a list of genes for each set"
                )

    def _check_screen(self) -> None:
        require_type("screen", self.screen, bool, "give True or False")
        require_whole("split_points", self.split_points, 2)
        if self.settle is not None:
            _check_settle(self.settle)
        if not self.screen:
            for name, usual in (("split_points", SPLIT_POINTS), ("settle", None)):
                if (value := getattr(self, name)) != usual:
                    raise InputError(f"`{name}` is {value}, but nothing is screened; add `screen`")
            return
        if self.states is None:
            raise InputError(
                "a screen estimates shifts towards cell states, but `states` are missing; name "
                "their column and a goal"
            )
        for name, only in _SCREENED.items():
            if (value := getattr(self, name)) != only:
                raise InputError(
                    f"`{name}` is {describe(value)}, but a screen knows only {describe(only)}; "
                    "change that, or leave `screen` out"
                )

    @property
    def refill(self) -> bool:
        """Whether cells are needed whole, with the genes beyond the cut."""
        return self.truncation == REFILL

    @property
    def keep_positions(self) -> bool:
        """Whether what stands behind a deleted gene keeps its position number."""
        return self.positions == KEEP

    @property
    def gene_rows(self) -> int:
        """Shifts of single genes of each edit: 0 none, -1 all, or this many."""
        return {NONE: 0, TOP: self.top}.get(self.gene_shifts, -1)


def read_options(given: Mapping[str, Any]) -> PerturbationOptions:
    """Reads the options of a command.

    Args:
      given: values of the flags of `perturb` by name: numbers, switches and texts.

    Raises:
      InputError: a text has another form, a file cannot be read, or options are unknown.
    """
    combinations = given["combinations"]
    return PerturbationOptions(
        **{name: given[name] for name in _AS_GIVEN},
        genes=ALL if given["genes"] == ALL else read_genes(given["genes"]),
        anchor=given["anchor"] or None,
        combinations=read_gene_lines(combinations) if combinations else None,
        mode=given["mode"] or None,
        states=read_state_names(*(given[name] for name in _STATES)),
        state_embeddings=given["state_embeddings"] or None,
        filters=parse_filters(given["filter"]),
        expressing=read_genes(given["expressing"]),
        settle=_read_settle(given["settle"]),
    )


def choose_controls(
    controls: str | Sequence[str], options: PerturbationOptions
) -> tuple[PerturbationOptions, list[str]]:
    """Chooses the controls that take further encodings.

    Args:
      controls: names, see `dear_controls`; of "all" those are left out that the run does not allow.
      options: of the run.

    Returns:
      (The options, with the parts of shifts if the control `reranking` is to be made; the controls
      to make of the finished run).

    Raises:
      InputError: the run does not allow a control that was named.
    """
    chosen = []
    for name in dear_controls(controls):
        why = _LACKS[name](options) if name in _LACKS else ""
        if why and not is_all(controls):
            raise refuse(name, why)
        if why:
            logger.info(f"the control {name} is left out: it needs {why}")
        else:
            chosen.append(name)
    parts = RERANKING in chosen
    if is_free(controls) and not lacks_for_reranking(options):
        parts = None
    # The tables of a screen have the parts anyway.
    options = replace(options, reranking=False if options.screen else parts)
    return options, [name for name in chosen if name != RERANKING]


def lacks_for_reranking(options: PerturbationOptions) -> str:
    """Says what a run lacks for the control `reranking`; "" where nothing."""
    return _lacks_deletions(options) if options.states else NEEDS_STATES


def _lacks_for_self_deletion(options: PerturbationOptions) -> str:
    if options.states is None or options.states.start in ("", options.states.goal):
        return NEEDS_START
    return _lacks_deletions(options)


def _lacks_deletions(options: PerturbationOptions) -> str:
    each = options.combine == EACH and options.anchor is None and options.combinations is None
    usual = options.truncation == ORIGINAL and options.positions == RENUMBER
    return "" if options.edit == DELETE and each and usual else NEEDS_DELETIONS


_LACKS = {RERANKING: lacks_for_reranking, SELF_DELETION: _lacks_for_self_deletion}


def _read_settle(text: str) -> int | float | str | None:
    """Reads a whole number of edits or a fraction; a text that is neither is refused later."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


def _check_settle(settle: object) -> None:
    require_type(
        "settle", settle, (int, float), "give a number of edits, or a fraction such as 0.05"
    )
    most = 1 if isinstance(settle, float) else math.inf
    if isinstance(settle, bool) or not 0 < settle <= most:
        raise InputError(
            f"`settle` is {settle}; give a whole number of edits from 1, or a fraction above 0 and "
            "at most 1.0"
        )


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(
            f'there is no {name} "{value}"{did_you_mean(value, known)}; use one of '
            f"{', '.join(known)}"
        )
