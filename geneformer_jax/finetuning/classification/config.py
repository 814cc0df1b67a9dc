"""The configuration of a classification task: typed, checked, and filled from a file."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from geneformer_jax.cells.counts.options import SOMA_OPTIONS, CountOptions
from geneformer_jax.common.config import fill, one_of, require
from geneformer_jax.common.errors import InputError

CONFLICTS = ("refuse", "drop")
GENE, CELL = "gene", "cell"


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """How ids are split into folds and sides.

    Attributes:
      folds: number of folds; each id is tested in one of them. 1 holds out `test_fraction` once.
      test_fraction: of the ids (of the groups, where given), used where folds is 1.
      valid_fraction: of the ids that are not tested, held out for early stopping and search.
      seed: of the shuffle; 0 splits genes as the original does.
    """

    # Of the configuration, and what is split: for messages.
    section: ClassVar[str] = ""
    noun: ClassVar[str] = "ids"

    folds: int = 5
    test_fraction: float = 0.2
    valid_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self):
        checks = {
            "folds": (self.folds >= 1, "ask for at least 1"),
            "test_fraction": (0 < self.test_fraction < 1, "it must be between 0 and 1"),
            "valid_fraction": (0 <= self.valid_fraction < 1, "it must be in [0, 1)"),
        }
        for name, (holds, rule) in checks.items():
            if not holds:
                raise InputError(f"{self.key(name)} is {getattr(self, name)}; {rule}")

    def key(self, name: str) -> str:
        """Returns how messages name a field of the rule."""
        return f"`config.{self.section}.{name}`" if self.section else f"`{name}`"

    @property
    def min_members(self) -> int:
        """Members that a class needs, to have one on each side."""
        return max(self.folds, 3 if self.valid_fraction else 2)


CONTROLS = ("shuffled", "matched", "network")


@dataclasses.dataclass(frozen=True)
class TaskConfig(SplitRule):
    """A classification task and its protocol; on the command line --config.task.NAME=VALUE.

    It is also the rule by which ids are split, see SplitRule.

    Attributes:
      name: short, for titles and files.
      unit: what is classified: "gene" or "cell".
      genes: gene tasks: the class file (see `labels.read_gene_labels`).
      gene_conflicts: how a gene in several classes is treated: "refuse" or "drop".
      label: cell tasks: obs column of the classes.
      classes: cell tasks: the only labels that take part, separated by "|"; all if empty.
      min_fraction: cell tasks: classes with a smaller fraction of the cells are left out.
      drop_small: whether classes that are too small to be split are left out, and counted; else
        they are refused.
      group: cell tasks: obs column (donor, batch) whose cells are never on two sides of a fold.
      filters: only these cells, as "column:value|value" texts.
      max_cells: gene tasks: cells drawn of those with a labelled gene; cell tasks: of all
        cells. 0 takes all.
      split: a given split: a table of ids, folds and sides, or "train=FILE,test=FILE"; the rule
        is not used then.
      counts: files of raw counts of the cells, for baselines on counts; none if empty.
      counts_layer, gene_column, compute_totals, fractional, measurement, obs_filter, organism: how
        they are read, see `CountOptions`; empty for its defaults.
      baselines: whether SVM, random forest and logistic regression run beside the network.
      controls: "shuffled" and "matched" run the baselines with permuted labels, "network" the
        first network too (once each, as it takes long).
      permutations: of each control of the baselines.
      untrained_layers: depths of networks without pretraining that are trained beside.
      published: method -> its published result, shown beside ours.
    """

    section: ClassVar[str] = "task"

    name: str = ""
    unit: str = GENE
    genes: str = ""
    gene_conflicts: str = "refuse"
    label: str = ""
    classes: str = ""
    min_fraction: float = 0.0
    drop_small: bool = False
    group: str = ""
    filters: tuple[str, ...] = ()
    max_cells: int = 0
    split: str = ""
    counts: str = ""
    counts_layer: str = ""
    gene_column: str = ""
    compute_totals: bool = False
    fractional: str = ""
    measurement: str = ""
    obs_filter: str = ""
    organism: str = ""
    baselines: bool = True
    controls: tuple[str, ...] = ("shuffled", "matched")
    permutations: int = 20
    untrained_layers: tuple[int, ...] = ()
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("filters", "controls", "untrained_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "published", dict(self.published))
        self.reading()
        one_of("task.unit", self.unit, (GENE, CELL))
        one_of("task.gene_conflicts", self.gene_conflicts, CONFLICTS)
        for control in self.controls:
            one_of("task.controls", control, CONTROLS)
        require(self.max_cells >= 0, "task.max_cells", self.max_cells, "0 (all) or more")
        require(0 <= self.min_fraction < 1, "task.min_fraction", self.min_fraction, "in [0, 1)")
        require(self.permutations >= 2, "task.permutations", self.permutations, "at least 2")
        for layers in self.untrained_layers:
            require(layers >= 1, "task.untrained_layers", layers, "at least 1 layer each")
        super().__post_init__()

    def reading(self) -> CountOptions:
        """How the counts are read."""
        names = ("counts_layer", "gene_column", "fractional", *SOMA_OPTIONS)
        given = {name: getattr(self, name) or None for name in names}
        return CountOptions(**given, compute_totals=self.compute_totals)

    @property
    def noun(self) -> str:
        """What is split."""
        return f"{self.unit}s"

    def require_labels(self) -> None:
        """Raises InputError if no labels are named."""
        if self.unit == GENE:
            require(bool(self.genes), "task.genes", self.genes, "name the file of gene classes")
            require(
                not self.group, "task.group", self.group, "genes have no donors; leave it empty"
            )
        else:
            require(bool(self.label), "task.label", self.label, "name the obs column of labels")


def task_config(unit: str, **changes: Any) -> ConfigDict:
    """Returns a task's defaults, with changes, as a ConfigDict for a configuration file."""
    return ConfigDict(dataclasses.asdict(TaskConfig(unit=unit, **changes)), convert_dict=False)


def typed_task(config: ConfigDict | Mapping[str, Any]) -> TaskConfig:
    """Turns a ConfigDict (or a dict read back from JSON) into a checked TaskConfig.

    Raises:
      InputError: an unknown key, or a value that cannot be.
    """
    return fill(TaskConfig, config, "task.")
