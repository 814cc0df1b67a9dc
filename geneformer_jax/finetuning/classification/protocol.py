"""The paper's classification protocol: one task, every method on the same folds, one report.

For genes (the paper's tasks) or cells: networks, given as functions of the task, beside support
vector machine, random forest and logistic regression on rank and on count features, beside controls
with permuted labels.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.formats.paths import expand_paths
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.finetuning.classification.baselines import (
    COMMONEST,
    COUNTS,
    ESTIMATORS,
    MAX_LEARNED_CELLS,
    RANKS,
    baseline_predictions,
    commonest_predictions,
    count_matrix,
    features_of,
    rank_features,
)
from geneformer_jax.finetuning.classification.config import CELL, GENE, TaskConfig
from geneformer_jax.finetuning.classification.controls import (
    CONTROL_COLUMNS,
    MATCHED,
    SHUFFLED,
    permuted_aucs,
    permuted_labels,
    summarise_control,
)
from geneformer_jax.finetuning.classification.folder import TaskFolder
from geneformer_jax.finetuning.classification.given_split import given_split
from geneformer_jax.finetuning.classification.labels import (
    NOWHERE,
    TOO_SMALL,
    Labels,
    read_cell_labels,
    read_gene_labels,
)
from geneformer_jax.finetuning.classification.metrics import fold_roc
from geneformer_jax.finetuning.classification.report import (
    LEARN_LONGER,
    read_results,
    results_table,
    write_results,
)
from geneformer_jax.finetuning.classification.splits import (
    Split,
    describe_sizes,
    make_split,
    small_classes,
)
from geneformer_jax.finetuning.classification.task import ClassificationTask, labelled_cells
from geneformer_jax.inference.cells import select_cells
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.inference.filters import parse_filters
from geneformer_jax.model.processes import is_first

# Columns of obs that name a person or a measurement, whose cells resemble each other.
DONOR_COLUMNS = (
    "donor",
    "donor_id",
    "patient",
    "patient_id",
    "individual",
    "subject",
    "subject_id",
    "sample",
    "sample_id",
    "batch",
)

# (task, a folder of its own) -> predictions.
Network = Callable[[ClassificationTask, Path], pd.DataFrame]


def run_task(
    config: TaskConfig,
    task: ClassificationTask,
    output: Path | str,
    networks: Mapping[str, Network],
    configuration: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    estimators: Sequence[str] = ESTIMATORS,
    remedy: str = LEARN_LONGER,
) -> pd.DataFrame:
    """Runs a task's whole protocol; a second call with the same arguments resumes or reads it.

    Writes to `output`: split.parquet, labels.csv, predictions/METHOD.parquet, results.csv,
    folds.csv, controls.csv, figures, report.html and, last, provenance.json.

    Args:
      config: of the task.
      task: from `prepare_task`.
      output: folder; new, or that of an interrupted run of the same task.
      networks: name -> function that trains and tests in every fold of the task (see
        `ClassificationTask.fold_data`) and returns predictions; each has a folder of its own below
        `output`. Figures show the first in detail.
      configuration: the whole one, for provenance.json.
      identity: what the networks' results depend on beside the task.
      estimators: kinds of baselines.
      remedy: what the report advises where the first network has not learned, see `verdict`.

    Returns:
      The table of results, one row per method (see `report.results_table`); in a run of several
      processes the first has it, and the others an empty one.

    Raises:
      InputError: there is nothing to run, or `output` holds another task.
    """
    if not networks and not config.baselines:
        raise InputError("there is neither a network nor a baseline to run; switch baselines on")
    logger.info("\n".join(task.summary))
    run = _Run(config, task, TaskFolder(Path(output), config, task, identity), networks, estimators)
    if run.folder.finished:
        return read_results(run.folder)
    predictions = run.network_predictions()
    if not is_first():
        # What is left takes no other process.
        return pd.DataFrame()
    predictions |= run.baseline_predictions()
    predictions[COMMONEST] = commonest_predictions(task)
    controls = run.controls(predictions)
    results = results_table(task, predictions, config.published)
    facts = dict(configuration or {})
    write_results(run.folder, task, predictions, results, controls, facts, remedy)
    return results


def prepare_task(config: TaskConfig, cells: EncodedCells) -> ClassificationTask:
    """Reads labels, selects cells and splits them into folds.

    Raises:
      InputError: labels or split do not fit the cells, or cannot be learned.
    """
    config.require_labels()
    if config.filters:
        cells = select_cells(cells, parse_filters(config.filters))
    if config.unit == GENE:
        labels = read_gene_labels(config.genes, cells.vocabulary, config.gene_conflicts)
        cells, absent = labelled_cells(cells, labels.of, config.max_cells)
        # A gene without a cell can neither be learned nor tested by a network.
        labels = labels.without(absent, NOWHERE)
        groups = None
    else:
        if config.max_cells:
            cells = select_cells(cells, max_cells=config.max_cells)
        labels = _cell_labels(config, cells.obs)
        groups = _groups(config.group, cells.obs, labels.of.index)
    if config.drop_small:
        labels = _without_small_classes(config, labels, groups)
    groups = _of(groups, labels)
    split, rule = _split(config, labels.of, groups)
    task = ClassificationTask(
        config.name or config.unit,
        config.unit,
        labels.classes,
        labels.of,
        split,
        cells,
        groups,
        config.max_cells,
        rule,
    )
    return dataclasses.replace(task, summary=tuple(_summary(config, task, labels)))


def _cell_labels(config: TaskConfig, obs: pd.DataFrame) -> Labels:
    wanted = [name.strip() for name in config.classes.split("|") if name.strip()]
    return read_cell_labels(obs, config.label, config.min_fraction, wanted=wanted)


def _without_small_classes(config: TaskConfig, labels: Labels, groups: pd.Series | None) -> Labels:
    """Leaves out classes until none is too small to be split."""
    while small := small_classes(labels.of, config, _of(groups, labels)):
        labels = labels.without_classes(small, f"{TOO_SMALL} ({describe_sizes(small)})")
    return labels


def _of(groups: pd.Series | None, labels: Labels) -> pd.Series | None:
    return None if groups is None else groups[labels.of.index]


def _groups(column: str, obs: pd.DataFrame, ids: pd.Index) -> pd.Series | None:
    if not column:
        return None
    check_columns(obs, [column])
    return pd.Series(obs[column].to_numpy(object), obs.index.astype(str), name=column)[ids]


def _split(config: TaskConfig, labels: pd.Series, groups: pd.Series | None) -> tuple[Split, Any]:
    if not config.split:
        return make_split(labels, config, groups), config
    if "=" not in config.split:
        return given_split(config.split, labels, groups), None
    sides = dict(part.strip().partition("=")[::2] for part in config.split.split(","))
    return given_split(sides, labels, groups), None


def _summary(config: TaskConfig, task: ClassificationTask, labels: Labels) -> list[str]:
    lines = labels.describe(task.unit)
    lines += [f"{count:,} cells left out, {why}" for why, count in _dropped(task).items()]
    folds = f"{task.split.folds} folds" if task.split.folds > 1 else "one split"
    lines.append(f"{len(task.cells.lengths):,} cells, {folds} by {task.unit}")
    if config.group:
        lines[-1] += f", no {config.group} on two sides of a fold"
    if task.unit == CELL and config.baselines and len(task.labels) > MAX_LEARNED_CELLS:
        lines.append(f"baselines learn from at most {MAX_LEARNED_CELLS:,} cells, drawn at random")
    if task.unit == CELL:
        lines += leak_warnings(task.cells.obs, task.split, config.group)
    return lines


def _dropped(task: ClassificationTask) -> Mapping[str, int]:
    return {why: count for why, count in getattr(task.cells, "dropped", {}).items() if count}


def leak_warnings(obs: pd.DataFrame, split: Split, group: str = "") -> list[str]:
    """Returns a line for each donor-like obs column whose cells stand on both sides of a fold.

    Cells of one donor resemble each other: with some of them trained on, the others are easier to
    classify than cells of a new donor.

    Args:
      obs: [cells] indexed by cell id.
      split: of cells.
      group: the column that the split holds out whole, of which no warning is given; "" for none.
    """
    lines = []
    for column in obs.columns:
        if column == group or str(column).lower() not in DONOR_COLUMNS:
            continue
        first = split.table[split.table["fold"] == 0]
        values = obs[column].astype("object").reindex(first["id"]).to_numpy()
        tested = (first["side"] == "test").to_numpy()
        shared = set(pd.Series(values[tested]).dropna()) & set(pd.Series(values[~tested]).dropna())
        if shared and pd.Series(values).nunique() > 1:
            lines.append(
                f'warning: {len(shared)} values of "{column}" stand on both sides of the split, so '
                f"scores need not hold for a new {column}; to hold whole ones out, set "
                f"`config.task.group`={column}"
            )
    return lines


def method_name(kind: str, features: str) -> str:
    """Name of a baseline in tables."""
    return f"{kind}, {features}"


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of a task's protocol, into one folder."""

    config: TaskConfig
    task: ClassificationTask
    folder: TaskFolder
    networks: Mapping[str, Network]
    estimators: Sequence[str]

    def network_predictions(self) -> dict[str, pd.DataFrame]:
        """Predictions of each network; its control is made beside, which all processes make."""
        predictions = {
            name: self.folder.table_of_all(
                f"predictions/{name}",
                functools.partial(network, self.task, self.folder.network(name)),
            )
            for name, network in self.networks.items()
        }
        if self._has_network_control:
            _ = self._permuted_predictions
        return predictions

    def baseline_predictions(self) -> dict[str, pd.DataFrame]:
        """Predictions of each baseline."""
        predictions = {}
        with Progress(len(self._baselines), "baselines", "classifiers") as progress:
            for name, predict in self._baselines.items():
                predictions[name] = self.folder.table(
                    f"predictions/{name}", functools.partial(predict, self.task)
                )
                progress.advance(1)
        return predictions

    def controls(self, predictions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """Table of `summarise_control`s, one row per method and control."""
        kinds = [SHUFFLED] if "shuffled" in self.config.controls else []
        if "matched" in self.config.controls and self.task.unit == GENE:
            kinds.append(MATCHED)
        wanted = [(name, kind) for name in self._baselines for kind in kinds]
        rows = []
        with Progress(len(wanted), "permuted labels", "controls") as progress:
            for name, kind in wanted:
                rows.append(self._control(name, kind, predictions[name]))
                progress.advance(1)
        if self._has_network_control:
            rows.append(self._network_control())
        return pd.DataFrame(rows, columns=CONTROL_COLUMNS)

    @functools.cached_property
    def _baselines(self) -> dict[str, Callable[[ClassificationTask], pd.DataFrame]]:
        """Name -> function from a task to its predictions."""
        if not self.config.baselines:
            return {}
        features = {RANKS: rank_features(self.task)}
        if self.config.counts:
            options = self.config.reading()
            sources = [open_counts(path, options) for path in expand_paths(self.config.counts)]
            counts = count_matrix(self.task.cells, sources)
            features[COUNTS] = features_of(self.task, COUNTS, counts)
        return {
            method_name(kind, name): functools.partial(
                baseline_predictions, features=matrix, kind=kind
            )
            for name, matrix in features.items()
            for kind in self.estimators
        }

    def _control(self, name: str, kind: str, predictions: pd.DataFrame) -> dict[str, Any]:
        aucs = self.folder.table(
            f"controls/{name}, {kind}",
            functools.partial(
                permuted_aucs, self.task, self._baselines[name], kind, self.config.permutations
            ),
        )
        return summarise_control(name, kind, aucs, fold_roc(predictions).plain_auc)

    @property
    def _has_network_control(self) -> bool:
        return "network" in self.config.controls and bool(self.networks)

    def _network_control(self) -> dict[str, Any]:
        """The first network with labels shuffled once; its folds take the place of permutations."""
        aucs = pd.DataFrame({"auc": fold_roc(self._permuted_predictions).aucs})
        name = next(iter(self.networks))
        return summarise_control(name, f"{SHUFFLED} once, by fold", aucs, np.nan)

    @functools.cached_property
    def _permuted_predictions(self) -> pd.DataFrame:
        name, network = next(iter(self.networks.items()))
        labels = permuted_labels(self.task, np.random.default_rng(0))
        permuted = self.task.with_labels(labels)
        return self.folder.table_of_all(
            f"controls/{name}",
            functools.partial(network, permuted, self.folder.network(f"{name}, {SHUFFLED}")),
        )
