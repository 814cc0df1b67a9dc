"""What the finetune door runs: a classification with its protocol, or several targets at once."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd
from flax import traverse_util
from sklearn import metrics

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.provenance import describe_run, write_provenance
from geneformer_jax.common.workdir import claim_workdir
from geneformer_jax.finetuning.classification.config import task_config, typed_task
from geneformer_jax.finetuning.classification.protocol import Network, prepare_task, run_task
from geneformer_jax.finetuning.classification.task import CELL
from geneformer_jax.finetuning.config import (
    FinetuneConfig,
    finetune_config,
    typed_finetune_config,
    with_layers,
)
from geneformer_jax.finetuning.loop import NOT_DECISIVE, finetune_folds
from geneformer_jax.finetuning.multitask import prepare_multitask, typed_multitask
from geneformer_jax.finetuning.prepare import Task, prepare_finetuning
from geneformer_jax.inference.cells import open_cells
from geneformer_jax.model.heads import HeadTask
from geneformer_jax.model.pretrained import RESULT, PretrainedModel, load_model, weights_hash

TASK, TARGETS = "task", "targets"
PRETRAINED = "Geneformer"
_LISTED = ("method", "per", "auc", "auc_sd", "accuracy", "macro_f1")


def untrained_name(layers: int) -> str:
    """Name in tables of a network of so many layers that was trained from scratch."""
    return f"no pretraining, {layers} layer{'s' if layers > 1 else ''}"


@dataclasses.dataclass(frozen=True, eq=False)
class Protocol:
    """A task made ready: labels read and folds dealt out, nothing trained.

    Attributes:
      task: labels, cells and folds.
      outputs: what the head tells, empty for the classes of the task.
      lines: that tell of it.
      section: the configuration it was made from.
      cells: all cells, before some were chosen.
    """

    task: Task
    outputs: tuple[HeadTask, ...]
    lines: list[str]
    section: Any
    cells: EncodedCells

    def describe(self, model: PretrainedModel | None, config: FinetuneConfig) -> list[str]:
        """Returns lines on what would run, having checked all that can be checked."""
        setup = prepare_finetuning(self.task, model, config, self.outputs)
        return [*self.lines, *setup.summary()]

    def run(
        self,
        model: PretrainedModel | None,
        config: FinetuneConfig,
        workdir: Path,
        configuration: Mapping[str, Any],
    ) -> list[str]:
        """Trains and measures all that was asked for; returns lines that report.

        Args:
          model: pretrained weights, None to train from scratch.
          config: how.
          workdir: folder of the run, new or of the same run.
          configuration: all of it, for the story.

        Raises:
          InputError: something does not fit, or the folder is of another run.
        """
        # Refused before long work, and before the folder is claimed.
        prepare_finetuning(self.task, model, config, self.outputs)
        claim_workdir(workdir, run_identity(config, model, self.section))
        if self.outputs:
            return self._run_multitask(model, config, workdir, configuration)
        layers = self.section.untrained_layers
        results = run_task(
            self.section, self.cells, workdir, networks_of(model, config, layers), configuration
        )
        kept = [name for name in _LISTED if name in results]
        return [*results[kept].to_string(index=False, na_rep="").splitlines(), *_where(workdir)]

    def _run_multitask(
        self,
        model: PretrainedModel | None,
        config: FinetuneConfig,
        workdir: Path,
        configuration: Mapping[str, Any],
    ) -> list[str]:
        print("\n".join(self.lines), flush=True)
        self.task.split.write(workdir / "split.parquet")
        folder = workdir / "networks" / PRETRAINED
        table = finetune_folds(self.task, model, config, folder, outputs=self.outputs)
        results = multitask_scores(table, self.outputs)
        for name, each in (("predictions.parquet", table), ("results.csv", results)):
            with atomic_write(workdir / name) as aside:
                each.to_parquet(aside) if name.endswith("parquet") else each.to_csv(aside)
        story = describe_run("finetune", configuration, [], {"left_out": self.task.dropped})
        write_provenance(workdir, story)
        return [*results.to_string().splitlines(), *_where(workdir)]


def _where(workdir: Path) -> list[str]:
    """Lines that say where the results and the models are."""
    folds = sorted(each.parent for each in (workdir / "networks").glob(f"*/fold_*/{RESULT}"))
    return [f"results: {workdir}", *(f"model: {fold}" for fold in folds)]


def prepare_protocol(sections: Mapping[str, Any], cells: EncodedCells) -> Protocol:
    """Reads labels and deals out folds, as the configuration's section says.

    Args:
      sections: of the configuration: "task" or "targets".
      cells: tokenised cells.

    Raises:
      InputError: there is no such section, or labels, split or cells do not do.
    """
    if TASK in sections:
        section = typed_task(sections[TASK])
        task, lines = prepare_task(section, cells)
        return Protocol(task, (), lines, section, cells)
    if TARGETS in sections:
        section = typed_multitask(sections[TARGETS])
        task = prepare_multitask(section, cells)
        return Protocol(task, task.outputs, task.describe(), section, cells)
    raise InputError(
        f"--config has neither a section {TASK} nor {TARGETS}; begin with configs/finetune_cells.py"
    )


def networks_of(
    model: PretrainedModel | None, config: FinetuneConfig, untrained_layers: tuple[int, ...] = ()
) -> dict[str, Network]:
    """Returns the networks that are compared: the model's, and new ones of its width.

    Args:
      model: pretrained weights; None trains one of the shape `config.model`.
      config: how all of them are trained.
      untrained_layers: depths of the new ones.
    """
    first = PRETRAINED if model else untrained_name(config.model["layers"])
    networks = {first: functools.partial(_finetune, model, config)}
    if model:
        config = dataclasses.replace(config, model=dataclasses.asdict(model.config))
    for layers in untrained_layers:
        changed = with_layers(config, layers)
        networks[untrained_name(layers)] = functools.partial(_finetune, None, changed)
    return networks


def _finetune(
    model: PretrainedModel | None, config: FinetuneConfig, task: Task, folder: Path
) -> pd.DataFrame:
    return finetune_folds(task, model, config, folder)


def run_identity(
    config: FinetuneConfig, model: PretrainedModel | None, section: Any
) -> dict[str, Any]:
    """Returns what decides a run's results, by dotted name, as JSON holds it."""
    told = dataclasses.asdict(config)
    for name in NOT_DECISIVE:
        del told[name]
    del told["data"]["workers"], told["data"]["store"]
    told["section"] = {name: str(value) for name, value in dataclasses.asdict(section).items()}
    told["base"] = weights_hash(model.params)[:16] if model else "scratch"
    return traverse_util.flatten_dict(told, sep=".")


def multitask_scores(table: pd.DataFrame, outputs: tuple[HeadTask, ...]) -> pd.DataFrame:
    """Returns accuracy and macro F1 of each class target, R2 and mean error of each number.

    One row per target and fold, and one, "all", over the cells of all folds.
    """
    rows = []
    for output in outputs:
        own = table[table["task"] == output.name] if "task" in table else table
        for fold, each in [*own.groupby("fold"), ("all", own)]:
            rows.append({"target": output.name, "fold": fold, **_scores(each, output)})
    return pd.DataFrame(rows).set_index(["target", "fold"])


def _scores(table: pd.DataFrame, output: HeadTask) -> dict[str, float]:
    if output.regression:
        known = table[table["value"].notna()]
        both = known["value"], known["predicted_value"]
        return {
            "cells": len(known),
            "r2": metrics.r2_score(*both),
            "mean_absolute_error": metrics.mean_absolute_error(*both),
        }
    known = table[table["label"] != ""]
    both = known["label"], known["predicted"]
    return {
        "cells": len(known),
        "accuracy": metrics.accuracy_score(*both),
        "macro_f1": metrics.f1_score(*both, average="macro"),
    }


def finetune_cells(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    label: str,
    workdir: Path | str,
    *,
    group: str = "",
    config: Mapping[str, Any] | None = None,
) -> PretrainedModel:
    """Fine-tunes a cell classifier on an obs column, and measures it on a fifth of the cells.

    Args:
      model: pretrained.
      cells: see `cell_selection.open_cells`.
      label: obs column of the classes.
      workdir: folder for the run: results.csv, figures and report.html in it; new, or that of an
        interrupted call.
      group: obs column (donor, batch) of which no value is both learned from and tested.
      config: `training.finetune_config.finetune_config()`, changed; its defaults are the paper's.

    Returns:
      The fine-tuned model, which `predict_cells` applies.

    Raises:
      InputError: something does not fit.
    """
    section = task_config(
        CELL, label=label, group=group, folds=1, valid_fraction=0.125, baselines=False, controls=()
    )
    config = finetune_config() if config is None else config
    protocol = prepare_protocol({TASK: section}, open_cells(cells, model))
    typed = typed_finetune_config(config)
    print("\n".join(protocol.run(model, typed, Path(workdir), dict(config))), flush=True)
    return load_model(Path(workdir) / "networks" / PRETRAINED / "fold_0")
