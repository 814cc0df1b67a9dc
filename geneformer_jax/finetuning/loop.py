"""Fine-tuning: a pretrained network, or a new one, learns the labels of cells or of genes.

Each fold has a folder: config.json, provenance.json, metrics.jsonl and tensorboard/ as in
pretraining, training/ with checkpoints to resume from, and at last model/ (a checkpoint, or an
adapter) and predictions.parquet.
"""

import contextlib
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

from geneformer_jax.batches.labelled import LabelledBatches, LabelledCells
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.files import remove
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.workdir import claim_workdir, sole_run
from geneformer_jax.finetuning.classification.predictions import prediction_table
from geneformer_jax.finetuning.classification.task import FoldData
from geneformer_jax.finetuning.config import BALANCED, FinetuneConfig
from geneformer_jax.finetuning.network.evaluation import compute_outputs, score
from geneformer_jax.finetuning.network.probe import probe_head
from geneformer_jax.finetuning.network.step import Constants, traced_hyperparams
from geneformer_jax.finetuning.prepare import FinetuneSetup, Task, prepare_finetuning
from geneformer_jax.finetuning.stopping import EarlyStopping
from geneformer_jax.inference.resume.folder import PartsFolder
from geneformer_jax.interop.adapters import save_adapter
from geneformer_jax.model.config import PROBE, RANDOM, EncoderConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.pretrained import (
    FOLD,
    RESULT,
    PretrainedModel,
    describe_model,
    save_model,
)
from geneformer_jax.model.processes import by_first, is_first, of_first, put_whole, whole_on_host
from geneformer_jax.training.checkpoint import Checkpoints
from geneformer_jax.training.flops import step_flops
from geneformer_jax.training.loop import PeriodicEvaluation, run_steps
from geneformer_jax.training.state import TrainState
from geneformer_jax.training.telemetry import HELD_OUT

TRAINING = "training"
PREDICTIONS = "predictions.parquet"
_PART = "predictions"
NOT_DECISIVE = ("mesh", "runtime", "checkpoint", "log_every_steps", "track")


def finetune_folds(
    task: Task,
    model: PretrainedModel | None,
    config: FinetuneConfig,
    workdir: Path,
    *,
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
      folds: only these.

    Returns:
      Predictions, one row a cell, or an occurrence of a test gene in a cell: see
      `predictions.prediction_table`; column `fold` is the fold's number.

    Raises:
      InputError: model, labels, cells, configuration and folder do not fit together.
      Stopped: SIGTERM came; the state is saved. Ends the program with exit status 143.
    """
    setup = prepare_finetuning(task, model, config)
    logger.info("\n".join(setup.summary()))
    tables = []
    for fold in range(task.split.folds) if folds is None else folds:
        run = FoldRun(setup, task.fold_data(fold), fold, workdir / f"{FOLD}{fold}")
        tables.append(finetune_fold(run))
    return pd.concat(tables, ignore_index=True)


@dataclasses.dataclass(frozen=True, eq=False)
class FoldRun:
    """One fold of a task; also what telemetry needs of a run.

    Attributes:
      setup: shared with the other folds.
      data: labelled cells to train on, to validate with and to predict.
      fold: its number.
      folder: where it is written.
      callback: called with the scores of each evaluation of the validation side, those of an
        interrupted run included; what it raises ends the run.
    """

    setup: FinetuneSetup
    data: FoldData
    fold: int
    folder: Path
    callback: Callable[[Mapping[str, Any]], None] = lambda row: None

    @property
    def config(self) -> FinetuneConfig:
        """How the fold is fine-tuned."""
        return self.setup.config

    @property
    def store(self) -> EncodedCells:
        """All cells of the task."""
        return self.setup.cells

    @property
    def encoder(self) -> EncoderConfig:
        """Shape of the model."""
        return self.setup.encoder

    @property
    def mesh(self) -> Mesh:
        """Devices."""
        return self.setup.compiled.mesh

    @functools.cached_property
    def batches(self) -> LabelledBatches:
        """The training batches of all steps."""
        steps, _ = self.setup.steps(self.data.train)
        return self.setup.batches(self.data.train, training=True, steps=steps)

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
        return len(self.data.valid.rows) > 0

    def flops(self, cells: np.ndarray) -> float:
        """Returns the floating point operations of a step on these cells, all weights trained."""
        return step_flops(self.encoder, np.asarray(self.store.lengths)[cells], 0)

    def evaluate(self, trainable: Params) -> dict[str, float]:
        """Returns the scores of the validation side."""
        setup = self.setup
        batches = setup.batches(self.data.valid)
        outputs = compute_outputs(
            setup.compiled, trainable, setup.frozen, batches, self.config.data.workers
        )
        scores = score(setup.head, outputs)
        values = of_first(np.array(list(scores.values()), np.float64)).tolist()
        return {HELD_OUT + name: value for name, value in zip(scores, values, strict=True)}

    def identity(self) -> dict[str, Any]:
        """Returns what the result depends on, by dotted name."""
        identity = dataclasses.asdict(self.config)
        for name in NOT_DECISIVE:
            del identity[name]
        del identity["data"]["workers"], identity["data"]["store"]
        identity["base"] = self.setup.base[:16]
        if self.setup.quantization:
            identity["quantize"] = self.setup.quantization.kind
        identity["head"] = json.dumps(dataclasses.asdict(self.setup.head))
        # Not where it is random: as in runs that were begun before there was a choice.
        if self.config.head.initial != RANDOM:
            identity["initial_head"] = self.config.head.initial
        identity["vocabulary"] = self.store.vocabulary.hash[:16]
        for name in ("train", "valid", "test"):
            identity[name] = _labels_hash(getattr(self.data, name))
        return traverse_util.flatten_dict(identity, sep=".")


def _labels_hash(labelled: LabelledCells) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(labelled.rows, np.int64).data)
    digest.update(np.ascontiguousarray(labelled.labels, np.float32).data)
    return digest.hexdigest()[:16]


def finetune_fold(run: FoldRun) -> pd.DataFrame:
    """Fine-tunes and predicts one fold, or resumes it; see `finetune_folds`."""
    provenance = _provenance(run)
    by_first(lambda: claim_workdir(run.folder, run.identity(), provenance))
    path, parts = run.folder / PREDICTIONS, PartsFolder(run.folder)
    if of_first(is_first() and parts.is_done(_PART)):
        logger.info("fold %s: finished before, %s is read", run.fold, path)
        # It is still there where the run was killed at its very end.
        by_first(lambda: remove(run.folder / TRAINING))
        return pd.read_parquet(path)
    setup = run.setup
    description = describe_model(setup.encoder, run.store.vocabulary, setup.head)
    with (
        sole_run(run.folder) if is_first() else contextlib.nullcontext(),
        jax.set_mesh(run.mesh),
        Checkpoints(run.folder / TRAINING, run.config.checkpoint, description) as checkpoints,
    ):
        state = checkpoints.restore_newest(setup.compiled.abstract)
        logger.info("\n".join(setup.describe_steps(run.fold, run.data)))
        if state is None:
            state = setup.compiled.start(_initial(run))
        trainable, step = _train(run, state, checkpoints)
        _save(run, trainable, step, run.folder / RESULT, provenance)
        outputs = compute_outputs(
            setup.compiled,
            trainable,
            setup.frozen,
            setup.batches(run.data.test),
            run.config.data.workers,
        )
    table = prediction_table(run.store, setup.head, outputs, run.fold)

    def write() -> None:
        parts.write(_PART, {PREDICTIONS: lambda path: table.to_parquet(path, index=False)})
        remove(run.folder / TRAINING)

    by_first(write)
    return table


def _initial(run: FoldRun) -> Params:
    """Returns the trainable weights to begin with, the head perhaps fitted to the fold's cells."""
    setup, workers = run.setup, run.config.data.workers
    if run.config.head.initial != PROBE:
        return setup.trainable
    train, compiled = run.data.train, setup.compiled
    pooled = compute_outputs(
        compiled,
        setup.trainable,
        setup.frozen,
        setup.batches(train),
        workers,
        outputter=compiled.pooled,
    )
    balanced = BALANCED in (run.config.loss.class_weights, run.config.loss.sampling)
    labels, kind = pooled.targets[:, 0].astype(int), setup.head.kind
    head = probe_head(setup.trainable[kind], pooled.logits, labels, balanced=balanced)
    # Sums differ from host to host in their last digits; weights may not.
    return setup.trainable | {kind: jax.tree.map(of_first, head)}


def _provenance(run: FoldRun) -> dict[str, Any]:
    counts = {f"{name}_cells": len(getattr(run.data, name).rows) for name in ("train", "valid")}
    counts |= {"test_cells": len(run.data.test.rows), "steps": run.steps, "fold": run.fold}
    configuration = dataclasses.asdict(run.config) | {"source": run.setup.source}
    if run.setup.quantization:
        configuration["quantize"] = run.setup.quantization.kind
    folder = getattr(run.store, "folder", None)
    return describe_run("finetune", configuration, [folder] if folder else [], counts)


def _train(run: FoldRun, state: TrainState, checkpoints: Checkpoints) -> tuple[Params, int]:
    """Runs the remaining steps; returns (trained weights, the step they are of)."""
    config, setup = run.config, run.setup
    hyperparams = traced_hyperparams(config, run.steps)
    constants = Constants(
        setup.frozen, put_whole(hyperparams, setup.compiled.constants.hyperparams)
    )
    best = EarlyStopping(config.stopping, run.folder, run.callback, int(state.step))

    def keep_best(state: TrainState, row: dict[str, Any]) -> None:
        if best.update(row) and config.stopping.best:
            # A killed run begins no earlier than here, so that older weights may go.
            checkpoints.save(row["step"], state)
            checkpoints.wait()
            best.save(state.params)

    every_steps = config.stopping.every_steps or run.steps_per_epoch
    evaluation = PeriodicEvaluation(run.evaluate, every_steps, keep_best, best.should_stop)
    state = run_steps(
        run,
        lambda state, batch: setup.compiled.step(state, batch, constants),
        state,
        checkpoints,
        run.folder,
        description=f"fine-tune fold {run.fold}",
        evaluation=evaluation if run.evaluates else None,
    )
    if config.stopping.best and run.evaluates:
        places = jax.tree.map(lambda leaf: leaf.sharding, setup.compiled.abstract.params)
        return put_whole(best.load(), places), best.step
    return state.params, int(state.step)


def _save(
    run: FoldRun, trainable: Params, step: int, target: Path, provenance: dict[str, Any]
) -> None:
    """Saves the fine-tuned model, whole or as an adapter."""
    if of_first(target.is_dir()):
        return
    setup, lora = run.setup, run.config.tuning.lora
    trainable, frozen = whole_on_host((trainable, setup.frozen))
    model = dataclasses.replace(setup, frozen=frozen).model(trainable, step)
    if lora is None:
        save_model(model, target, provenance)
    else:
        by_first(lambda: save_adapter(trainable, lora, model, setup.base, target, provenance))
