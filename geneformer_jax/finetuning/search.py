"""Search for hyper-parameters by Optuna: trials that resume, are pruned early, and make one table.

A trial fine-tunes the first fold of a task with values drawn from the space, and is judged by the
fold's validation side. Trials that differ in traced hyperparameters only share their compiled
programs.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from geneformer_jax.common.config import fill
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.log import logger
from geneformer_jax.common.tables import write_csv
from geneformer_jax.common.workdir import claim_workdir
from geneformer_jax.finetuning.config import FinetuneConfig, SearchConfig
from geneformer_jax.finetuning.loop import FoldRun, finetune_fold
from geneformer_jax.finetuning.prepare import Task, prepare_finetuning
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.training.telemetry import HELD_OUT, read_metrics

TRIALS = "trials.csv"
_JOURNAL = "study.log"
_FOLDER = "folder"
_KINDS = {"uniform": 2, "log": 2, "int": 2}


def typed_search(section: Mapping[str, Any]) -> SearchConfig:
    """Turns a configuration's section into a checked SearchConfig; InputError on an unknown key."""
    return fill(SearchConfig, section, "search.")


class Dimension:
    """One value of the space."""

    def __init__(self, text: str, config: Mapping[str, Any]):
        """Reads "KEY: KIND ...".

        Raises:
          InputError: it cannot be read, or there is no such key.
        """
        self.key, _, rule = (part.strip() for part in text.partition(":"))
        known = _flat(config)
        if self.key not in known:
            raise InputError(
                f'`config.search.space` names "{self.key}", which is no key of the configuration'
                f"{did_you_mean(self.key, known)}"
            )
        words = rule.split()
        if rule.startswith("one of "):
            kind = type(known[self.key])
            self._kind = "choice"
            self._values = [
                _as(kind, each, text) for each in rule.removeprefix("one of ").split(",")
            ]
            return
        if not words or words[0] not in _KINDS or len(words) != 3:
            raise InputError(
                f'`config.search.space` has "{text}"; write KEY: uniform LOW HIGH, log LOW HIGH, '
                "int LOW HIGH or one of A, B"
            )
        self._kind = words[0]
        number = int if self._kind == "int" else float
        self._values = [_as(number, word, text) for word in words[1:]]
        low, high = self._values
        if low >= high or (self._kind == "log" and low <= 0):
            raise InputError(
                f'`config.search.space` has "{text}"; the range must rise, and be above 0 for log'
            )

    def draw(self, trial: optuna.Trial) -> Any:
        """Returns the trial's value."""
        match self._kind:
            case "choice":
                return trial.suggest_categorical(self.key, self._values)
            case "int":
                return trial.suggest_int(self.key, *self._values)
        return trial.suggest_float(self.key, *self._values, log=self._kind == "log")


def _as(kind: type, word: str, text: str) -> Any:
    word = word.strip()
    try:
        return word == "True" if kind is bool else kind(word)
    except ValueError:
        raise InputError(
            f'`config.search.space` has "{text}", where "{word}" does not fit'
        ) from None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def with_values(config: FinetuneConfig, values: Mapping[str, Any]) -> FinetuneConfig:
    """Returns the configuration with other values, by dotted name; checked as from a file."""
    values_of = dataclasses.asdict(config)
    for key, value in values.items():
        *sections, name = key.split(".")
        node = values_of
        for section in sections:
            node = node[section]
        node[name] = value
    return fill(FinetuneConfig, values_of)


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A search on the first fold of a task.

    Attributes:
      task, model, config: as `finetune_folds` takes them.
      search: the space, and the metric.
      workdir: folder of the search, new or of the same search.
    """

    task: Task
    model: PretrainedModel | None
    config: FinetuneConfig
    search: SearchConfig
    workdir: Path

    def run(self, trials: int) -> pd.DataFrame:
        """Runs trials until there are `trials` in all, those of earlier calls included.

        An interrupted trial is resumed in its folder. Writes trials.csv after each.

        Returns:
          One row per trial: number, state, value, the drawn values, steps; best first.

        Raises:
          InputError: the space cannot be parsed, there are no validation cells, or the folder is of
            another search.
        """
        dimensions = [
            Dimension(text, dataclasses.asdict(self.config)) for text in self.search.space
        ]
        if not len(self.task.fold_data(0).valid.rows):
            raise InputError(
                "a search judges trials by a validation side, but there is none; set "
                "`config.task.valid_fraction` (or `config.targets.valid_fraction`) above 0"
            )
        prepare_finetuning(self.task, self.model, self.config)
        identity = {"search": json.loads(json.dumps(dataclasses.asdict(self.search)))}
        identity["config"] = json.loads(json.dumps(dataclasses.asdict(self.config)))
        claim_workdir(self.workdir, identity)
        study = self._study()
        self._take_up(study)
        done = self._write(study)
        while len(done) < trials:
            trial = study.ask()
            self._run_trial(study, trial, dimensions)
            done = self._write(study)
        return done

    def _study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        backend = optuna.storages.journal.JournalFileBackend(str(self.workdir / _JOURNAL))
        return optuna.create_study(
            study_name="search",
            storage=optuna.storages.JournalStorage(backend),
            sampler=optuna.samplers.TPESampler(seed=self.search.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=self.search.pruning_after),
            direction="minimize" if self.search.metric == "loss" else "maximize",
            load_if_exists=True,
        )

    def _take_up(self, study: optuna.Study) -> None:
        """Queues the trial that was interrupted, with its folder, before new ones."""
        running = optuna.trial.TrialState.RUNNING
        for trial in study.get_trials(deepcopy=False, states=(running,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if trial.params:
                folder = trial.user_attrs.get(_FOLDER, trial.number)
                study.enqueue_trial(trial.params, user_attrs={_FOLDER: folder})

    def _run_trial(
        self, study: optuna.Study, trial: optuna.Trial, dimensions: list[Dimension]
    ) -> None:
        values = {dimension.key: dimension.draw(trial) for dimension in dimensions}
        logger.info("trial %s: %s", trial.number, values)
        config = with_values(self.config, values)
        setup = prepare_finetuning(self.task, self.model, config)
        folder = self.workdir / f"trial_{trial.user_attrs.get(_FOLDER, trial.number)}"
        metric = HELD_OUT + self.search.metric

        def report(row: Mapping[str, Any]) -> None:
            if metric not in row:
                known = [name.removeprefix(HELD_OUT) for name in row if name.startswith(HELD_OUT)]
                raise InputError(
                    f'`config.search.metric` is "{self.search.metric}", but the scores are '
                    f"{', '.join(known)}"
                )
            trial.report(row[metric], row["step"])
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            finetune_fold(FoldRun(setup, self.task.fold_data(0), 0, folder, report))
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
        rows = [row[metric] for row in read_metrics(folder) if metric in row]
        best = min if self.search.metric == "loss" else max
        study.tell(trial, best(rows) if config.stopping.best else rows[-1])

    def _write(self, study: optuna.Study) -> pd.DataFrame:
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        rows = [
            {
                "trial": trial.user_attrs.get(_FOLDER, trial.number),
                "state": trial.state.name.lower(),
                self.search.metric: trial.value,
                "steps": max(trial.intermediate_values, default=0),
                **trial.params,
            }
            for trial in study.get_trials(deepcopy=False, states=states)
        ]
        table = pd.DataFrame(rows)
        if len(table):
            rising = self.search.metric == "loss"
            table = table.sort_values(["state", self.search.metric], ascending=[True, rising])
            with atomic_write(self.workdir / TRIALS) as aside:
                write_csv(table, aside)
        return table.reset_index(drop=True)
