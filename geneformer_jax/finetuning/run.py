"""What the finetune command runs: one classification with its protocol, or several outputs."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import anndata as ad
import jax
import pandas as pd
from flax import traverse_util
from ml_collections import ConfigDict

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.store.cell_store import CellStore, EncodedCells
from geneformer_jax.cells.store.shorter_cells import shorten
from geneformer_jax.common.arguments import require_path, require_text, require_type
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.workdir import claim_workdir
from geneformer_jax.finetuning import multitask
from geneformer_jax.finetuning.classification.config import (
    CELL,
    TaskConfig,
    task_config,
    typed_task,
)
from geneformer_jax.finetuning.classification.figures import loss_figure
from geneformer_jax.finetuning.classification.protocol import Network, prepare_task, run_task
from geneformer_jax.finetuning.classification.report import LEARN_LONGER, LOSS, REPORT, verdict
from geneformer_jax.finetuning.config import (
    FinetuneConfig,
    MultitaskConfig,
    finetune_config,
    typed_finetune_config,
    typed_multitask,
    with_layers,
)
from geneformer_jax.finetuning.loop import NOT_DECISIVE, finetune_folds
from geneformer_jax.finetuning.multitask import (
    prepare_multitask,
    write_multitask_results,
)
from geneformer_jax.finetuning.prepare import Task, prepare_finetuning
from geneformer_jax.inference.arguments import check_model
from geneformer_jax.inference.cells import open_cells
from geneformer_jax.interop.adapters import apply_adapter, find_adapter
from geneformer_jax.interop.tokenized_datasets import is_tokenized_dataset
from geneformer_jax.model.config import RANDOM
from geneformer_jax.model.pretrained import (
    FOLD,
    NETWORKS,
    PretrainedModel,
    folds_in,
    load_model,
    require_name_for_checkpoints,
    weights_hash,
)
from geneformer_jax.model.processes import by_first, is_first
from geneformer_jax.reporting.figures import save_figure
from geneformer_jax.training.telemetry import read_metrics

TASK, TARGETS, SEARCH = "task", "targets", "search"
PRETRAINED = "Geneformer"
_LISTED = ("method", "per", "auc", "auc_sd", "accuracy", "macro_f1")


@dataclasses.dataclass(frozen=True, eq=False)
class FinetuneRun:
    """A task with its folds, and how a network is fine-tuned on it; nothing is trained yet.

    Attributes:
      section: the configuration of the task.
      task: its labels, cells and folds.
      model: pretrained; None trains a new network from scratch.
      config: of the fine-tuning.
      configuration: all of it as it was given, for the provenance and the search.
    """

    section: TaskConfig | MultitaskConfig
    task: Task
    model: PretrainedModel | None
    config: FinetuneConfig
    configuration: Mapping[str, Any]

    @classmethod
    def open(
        cls,
        configuration: Mapping[str, Any],
        model: PretrainedModel | None,
        cells: EncodedCells | None = None,
    ) -> "FinetuneRun":
        """Reads labels and splits them into folds, as the configuration says.

        Args:
          configuration: fields of FinetuneConfig, with a section "task" or "targets".
          model: pretrained; None trains a new network of the shape `configuration["model"]`.
          cells: tokenised; by default the store of the configuration.

        Raises:
          InputError: there is no such section, or it does not fit the cells.
        """
        given = dict(configuration)
        sections = {name: given.pop(name, None) for name in (TASK, TARGETS, SEARCH)}
        config = typed_finetune_config(given)
        if cells is None:
            if not config.data.store:
                raise InputError(
                    "`config.data.store` is not set; name a folder written by tokenize"
                )
            cells = _open_store(config.data.store, model)
        positions = config.model["positions"] if model is None else model.config.positions
        cells = shorten(cells, positions)
        if sections[TASK] is not None:
            section = typed_task(sections[TASK])
            task = prepare_task(section, cells)
        elif sections[TARGETS] is not None:
            section = typed_multitask(sections[TARGETS])
            task = prepare_multitask(section, cells)
        else:
            raise InputError(
                f"`config` has neither a section {TASK} nor {TARGETS}; begin with "
                "configs/finetune_cells.py"
            )
        return cls(section, task, model, config, configuration)

    def describe(self) -> list[str]:
        """Describes what would run, a line each, after all checks."""
        setup, folds = self._check(), range(self.task.split.folds)
        return [
            *self.task.summary,
            *setup.summary(),
            *(line for i in folds for line in setup.describe_steps(i, self.task.fold_data(i))),
        ]

    def run(self, workdir: Path) -> list[str]:
        """Trains and evaluates; returns lines that report, of several processes in the first.

        Args:
          workdir: folder of the run; a new one, or that of the same run, which is resumed.

        Raises:
          InputError: model, task and configuration do not fit, or the folder is of another run.
        """
        # Before long work, and before the folder is claimed.
        require_name_for_checkpoints(workdir)
        remedy = self._check().long_warmup(self.task) or LEARN_LONGER
        identity = self._identity()
        if isinstance(self.section, TaskConfig):
            networks = networks_of(self.model, self.config, self.section.untrained_layers)
            results = run_task(
                self.section,
                self.task,
                workdir,
                networks,
                self.configuration,
                identity,
                remedy=remedy,
            )
            if not is_first():
                return []
            kept = [name for name in _LISTED if name in results]
            lines = results[kept].to_string(index=False, na_rep="").splitlines()
            answer = verdict(self.task, results, remedy)
            lines += [f"verdict: {answer}", f"report: {workdir / REPORT}"]
        else:
            section = {"section": dataclasses.asdict(self.section)}
            by_first(lambda: claim_workdir(workdir, identity | section))
            logger.info("\n".join(self.task.summary))
            folder = workdir / NETWORKS / PRETRAINED
            predictions = finetune_folds(self.task, self.model, self.config, folder)
            if not is_first():
                return []
            results = write_multitask_results(self.task, predictions, workdir, self.configuration)
            metrics = {each.name: read_metrics(each) for each in sorted(folder.glob(f"{FOLD}*"))}
            save_figure(loss_figure(metrics), workdir / LOSS)
            lines = results.to_string().splitlines()
            lines.append(f"verdict: {multitask.verdict(self.task, predictions)}")
        return [*lines, f"results: {workdir}", *(f"model: {fold}" for fold in folds_in(workdir))]

    def search(self, workdir: Path, trials: int) -> list[str]:
        """Searches for hyper-parameters in the space of the section "search"; see `Search.run`."""
        require_name_for_checkpoints(workdir)
        if jax.process_count() > 1:
            raise InputError(
                "a search runs in one process, as its trials follow from each other; leave "
                "`processes` out, or give the values to try in runs of their own"
            )
        try:
            from geneformer_jax.finetuning.search import TRIALS, Search, typed_search
        except ModuleNotFoundError as error:
            raise InputError(
                'a search needs Optuna: pip install "geneformer_jax[search]"'
            ) from error
        space = typed_search(self.configuration.get(SEARCH) or {})
        table = Search(self.task, self.model, self.config, space, workdir).run(trials)
        return [*table.to_string(index=False).splitlines(), f"trials: {workdir / TRIALS}"]

    def _check(self) -> Any:
        return prepare_finetuning(self.task, self.model, self.config)

    def _identity(self) -> dict[str, Any]:
        """Returns what the results depend on beside the section of the task, by dotted name."""
        identity = dataclasses.asdict(self.config)
        for name in NOT_DECISIVE:
            del identity[name]
        del identity["data"]["workers"], identity["data"]["store"]
        # As in runs that were begun before there was a choice.
        if self.config.head.initial == RANDOM:
            del identity["head"]["initial"]
        identity["base"] = weights_hash(self.model)[:16] if self.model else "scratch"
        if self.model and self.model.quantization:
            identity["quantize"] = self.model.quantization.kind
        return traverse_util.flatten_dict(identity, sep=".")


def _open_store(store: str, model: PretrainedModel | None) -> EncodedCells:
    """Opens a cell store, or a tokenised dataset with the vocabulary of the model."""
    if model is not None and is_tokenized_dataset(store):
        return open_cells(store, model)
    return CellStore.open(store)


def networks_of(
    model: PretrainedModel | None, config: FinetuneConfig, untrained_layers: tuple[int, ...] = ()
) -> dict[str, Network]:
    """Returns the networks to compare: the model's, and untrained ones of its width.

    Args:
      model: pretrained weights; None trains one of the shape `config.model`.
      config: how all of them are trained.
      untrained_layers: depths of the untrained ones.
    """
    first = PRETRAINED if model else untrained_name(config.model["layers"])
    networks = {first: functools.partial(_finetune, model, config)}
    if model:
        config = dataclasses.replace(config, model=dataclasses.asdict(model.config))
    for layers in untrained_layers:
        changed = with_layers(config, layers)
        networks[untrained_name(layers)] = functools.partial(_finetune, None, changed)
    return networks


def untrained_name(layers: int) -> str:
    """Returns the name in tables of a network that was trained from scratch."""
    return f"no pretraining, {layers} layer{'s' if layers > 1 else ''}"


def _finetune(
    model: PretrainedModel | None, config: FinetuneConfig, task: Task, folder: Path
) -> pd.DataFrame:
    return finetune_folds(task, model, config, folder)


def finetune_cells(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    labels_key: str,
    workdir: Path | str,
    *,
    group_key: str = "",
    config: Mapping[str, Any] | None = None,
    **reading: Unpack[CountArguments],
) -> PretrainedModel:
    """Fine-tunes a cell classifier on an obs column, and tests it on a fifth of the cells.

    Args:
      model: pretrained.
      cells: a cell store, tokenised cells, or counts, which are tokenised for the model.
      labels_key: obs column of the classes.
      workdir: folder for the run, with results.csv, figures and report.html; a new one, or that of
        an interrupted call, which is resumed.
      group_key: obs column (donor, batch) whose cells are never both trained on and tested.
      config: `finetuning.config.finetune_config()`, changed; a section `task` in it may hold
        fields of TaskConfig, as in `config.task = {"drop_small": True}`.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Returns:
      The fine-tuned model, for `predict_cells`.

    Raises:
      InputError: something does not fit.
    """
    check_model(model)
    require_text("labels_key", labels_key, "an obs column")
    require_text("group_key", group_key, "an obs column")
    require_path("workdir", workdir, "a folder for the run")
    if config is not None:
        require_type("config", config, (Mapping, ConfigDict), "give finetune_config(), changed")
    changed = ConfigDict(finetune_config() if config is None else config).to_dict()
    rule = {"folds": 1, "valid_fraction": 0.125, "controls": (), **(changed.get(TASK) or {})}
    task = task_config(CELL, **{**rule, "label": labels_key, "group": group_key})
    configuration = changed | {TASK: task.to_dict()}
    run = FinetuneRun.open(configuration, model, open_cells(cells, model, **reading))
    logger.info("\n".join(run.run(Path(workdir))))
    fold = Path(workdir) / NETWORKS / PRETRAINED / f"{FOLD}0"
    adapter = find_adapter(fold)
    return load_model(fold) if adapter is None else apply_adapter(adapter, model)
