"""Fine-tuning: a pretrained network, or a new one, learns the labels of cells or of genes.

Each fold has a folder: config.json, provenance.json, metrics.jsonl and tensorboard/ as in
pretraining, training/ with what a killed run goes on from, and at last model/ (a checkpoint, or an
adapter) and predictions.parquet.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from flax import traverse_util
from jax.sharding import Mesh

from geneformer_jax.batches.labelled import Cells, LabelledBatches, LabelledCells
from geneformer_jax.common.files import atomic_write, remove
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.workdir import claim_workdir
from geneformer_jax.finetuning.classification.predictions import prediction_table
from geneformer_jax.finetuning.config import FinetuneConfig, StoppingConfig
from geneformer_jax.finetuning.evaluation import compute_outputs, score
from geneformer_jax.finetuning.network import Network, Sides, Task, prepare_network
from geneformer_jax.finetuning.step import Constants, run_rates
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.heads import HeadTask
from geneformer_jax.model.pretrained import (
    RESULT,
    PretrainedModel,
    describe_model,
    save_adapter,
    save_model,
)
from geneformer_jax.training.checkpoint import Checkpoints
from geneformer_jax.training.flops import step_flops
from geneformer_jax.training.loop import PeriodicEvaluation, run_steps
from geneformer_jax.training.state import TrainState
from geneformer_jax.training.telemetry import read_metrics

TRAINING = "training"
PREDICTIONS = "predictions.parquet"
HELD_OUT = "held_out_"
_BEST = "best-"
NOT_DECISIVE = ("mesh", "runtime", "checkpoint", "log_every_steps")


def finetune_folds(
    task: Task,
    model: PretrainedModel | None,
    config: FinetuneConfig,
    workdir: Path,
    *,
    outputs: Sequence[HeadTask] = (),
    folds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Fine-tunes one network for each fold, and predicts the fold's test side with it.

    All folds share the compiled programs. Finished folds are read, not run again; one that was
    killed goes on from its newest checkpoint.

    Args:
      task: labels, cells and folds.
      model: pretrained weights; None trains a new network of the shape `config.model`.
      config: how.
      workdir: fold i is in `workdir`/fold_i.
      outputs: what the head tells, if it is not one classification of `task.classes`.
      folds: only these.

    Returns:
      Predictions, one row a cell, or an occurrence of a test gene in a cell: see
      `predictions.prediction_table`; column `fold` is the fold's number.

    Raises:
      InputError: model, labels, cells, configuration and folder do not fit together.
      Stopped: SIGTERM came; the state is saved. Ends the program with exit status 143.
    """
    network = prepare_network(task, model, config, outputs)
    print("\n".join(network.summary()), flush=True)
    tables = []
    for fold in range(task.split.folds) if folds is None else folds:
        run = FoldRun(network, task.fold_data(fold), fold, workdir / f"fold_{fold}")
        tables.append(finetune_fold(run))
    return pd.concat(tables, ignore_index=True)


@dataclasses.dataclass(frozen=True, eq=False)
class FoldRun:
    """One fold of a network's task, made ready; what telemetry asks of a run.

    Attributes:
      network: shared with the other folds.
      sides: labelled cells to learn from, to watch and to predict.
      fold: its number.
      folder: where it is written.
      watcher: told of each evaluation of the validation side, all those that an interrupted run
        made included; what it raises ends the run.
    """

    network: Network
    sides: Sides
    fold: int
    folder: Path
    watcher: Callable[[Mapping[str, Any]], None] = lambda row: None

    @property
    def config(self) -> FinetuneConfig:
        """What was asked for."""
        return self.network.config

    @property
    def store(self) -> Cells:
        """All cells of the task."""
        return self.network.cells

    @property
    def encoder(self) -> EncoderConfig:
        """Shape of the model."""
        return self.network.encoder

    @property
    def mesh(self) -> Mesh:
        """Devices."""
        return self.network.programs.mesh

    @functools.cached_property
    def batches(self) -> LabelledBatches:
        """The training batches of all steps."""
        epoch = self.network.batches(self.sides.train, training=True)
        steps = self.config.steps or self.config.epochs * epoch.plan.steps_per_epoch
        return self.network.batches(self.sides.train, training=True, steps=steps)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return len(self.batches)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training cells."""
        return self.batches.plan.steps_per_epoch

    @property
    def evaluates(self) -> bool:
        """Whether there are validation cells."""
        return len(self.sides.valid.rows) > 0

    def flops(self, cells: np.ndarray) -> float:
        """Returns the floating point operations of a training step on these cells, if all learn."""
        return step_flops(self.encoder, np.asarray(self.store.lengths)[cells], 0)

    def evaluate(self, learning: Params) -> dict[str, float]:
        """Returns the scores of the validation side."""
        network = self.network
        batches = network.batches(self.sides.valid)
        outputs = compute_outputs(
            network.programs, learning, network.staying, batches, self.config.data.workers
        )
        return {HELD_OUT + name: value for name, value in score(network.head, outputs).items()}

    def identity(self) -> dict[str, Any]:
        """Returns what decides the result, by dotted name: all parts of a run must share it."""
        told = dataclasses.asdict(self.config)
        for name in NOT_DECISIVE:
            del told[name]
        del told["data"]["workers"], told["data"]["store"]
        told["base"] = self.network.base[:16]
        told["head"] = json.dumps(dataclasses.asdict(self.network.head))
        told["vocabulary"] = self.store.vocabulary.hash[:16]
        for name in ("train", "valid", "test"):
            told[name] = _labels_hash(getattr(self.sides, name))
        return traverse_util.flatten_dict(told, sep=".")


def _labels_hash(labelled: LabelledCells) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(labelled.rows, np.int64).data)
    digest.update(np.ascontiguousarray(labelled.labels, np.float32).data)
    return digest.hexdigest()[:16]


def finetune_fold(run: FoldRun) -> pd.DataFrame:
    """Fine-tunes and predicts one fold, or goes on where it was left; see `finetune_folds`."""
    story = _story(run)
    claim_workdir(run.folder, run.identity(), story)
    path = run.folder / PREDICTIONS
    if path.is_file():
        print(f"fold {run.fold}: finished before, {path} is read", flush=True)
        return pd.read_parquet(path)
    network = run.network
    description = describe_model(network.encoder, run.store.vocabulary, network.head)
    with (
        jax.set_mesh(run.mesh),
        Checkpoints(run.folder / TRAINING, run.config.checkpoint, description) as checkpoints,
    ):
        state = checkpoints.restore_newest(network.programs.abstract)
        if state is None:
            state = network.programs.start(network.learning)
        learning, step = _train(run, state, checkpoints)
        _save(run, learning, step, run.folder / RESULT, story)
        outputs = compute_outputs(
            network.programs,
            learning,
            network.staying,
            network.batches(run.sides.test),
            run.config.data.workers,
        )
    table = prediction_table(run.store, network.head, outputs, run.fold)
    with atomic_write(path) as aside:
        table.to_parquet(aside, index=False)
    remove(run.folder / TRAINING)
    return table


def _story(run: FoldRun) -> dict[str, Any]:
    counts = {f"{name}_cells": len(getattr(run.sides, name).rows) for name in ("train", "valid")}
    counts |= {"test_cells": len(run.sides.test.rows), "steps": run.steps, "fold": run.fold}
    configuration = dataclasses.asdict(run.config) | {"source": run.network.source}
    folder = getattr(run.store, "folder", None)
    return describe_run("finetune", configuration, [folder] if folder else [], counts)


class Best:
    """The evaluation with the lowest loss so far: kept on disk, and how long ago it was."""

    def __init__(self, run: FoldRun, config: StoppingConfig, first_step: int):
        """Takes up what an interrupted run told up to `first_step`."""
        self._run, self._config = run, config
        self.step, self.loss, self._since = 0, float("inf"), 0
        for row in read_metrics(run.folder):
            if row["step"] <= first_step and f"{HELD_OUT}loss" in row:
                self.is_better(row)

    def is_better(self, row: dict[str, Any]) -> bool:
        """Takes note of an evaluation; returns whether its loss is the lowest so far."""
        self._run.watcher(row)
        better = row[f"{HELD_OUT}loss"] < self.loss
        self._since = 0 if better else self._since + 1
        if better:
            self.step, self.loss = row["step"], row[f"{HELD_OUT}loss"]
        return better

    @property
    def is_hopeless(self) -> bool:
        """Whether the loss has not fallen for as many evaluations as patience allows."""
        return bool(self._config.patience) and self._since >= self._config.patience

    @property
    def path(self) -> Path:
        """Where the weights of the best evaluation are kept."""
        return self._run.folder / f"{_BEST}{self.step}.npz"

    def keep(self, learning: Params) -> None:
        """Writes the weights that learn, and removes those of an earlier evaluation."""
        flat = traverse_util.flatten_dict(jax.device_get(learning), sep="/")
        with atomic_write(self.path) as aside, aside.open("wb") as file:
            np.savez(file, **flat)
        for other in self._run.folder.glob(f"{_BEST}*.npz"):
            if other != self.path:
                remove(other)

    def load(self) -> Params:
        """Returns the weights of the best evaluation."""
        with np.load(self.path) as file:
            return traverse_util.unflatten_dict(dict(file.items()), sep="/")


def _train(run: FoldRun, state: TrainState, checkpoints: Checkpoints) -> tuple[Params, int]:
    """Runs the remaining steps; returns (weights that learnt, the step they are of)."""
    config, network = run.config, run.network
    constants = jax.device_put(
        Constants(network.staying, run_rates(config, run.steps)), network.programs.constants
    )
    best = Best(run, config.stopping, int(state.step))

    def keep_best(state: TrainState, row: dict[str, Any]) -> None:
        if best.is_better(row) and config.stopping.best:
            # A killed run begins no earlier than here, so that older weights may go.
            checkpoints.save(row["step"], state)
            checkpoints.wait()
            best.keep(state.params)

    every_steps = config.stopping.every_steps or run.steps_per_epoch
    evaluation = PeriodicEvaluation(run.evaluate, every_steps, keep_best, lambda: best.is_hopeless)
    state = run_steps(
        run,
        lambda state, batch: network.programs.step(state, batch, constants),
        state,
        checkpoints,
        run.folder,
        description=f"fine-tune fold {run.fold}",
        evaluation=evaluation if run.evaluates else None,
    )
    if config.stopping.best and run.evaluates:
        return best.load(), best.step
    return state.params, int(state.step)


def _save(run: FoldRun, learning: Params, step: int, target: Path, story: dict[str, Any]) -> None:
    """Writes the model that the fold ends with, whole or as an adapter."""
    if target.is_dir():
        return
    network, lora = run.network, run.config.tuning.lora
    if lora is None:
        save_model(network.model(learning, step), target, story)
        return
    model = network.model(learning, step)
    save_adapter(learning, lora, model, network.base, target, story)
