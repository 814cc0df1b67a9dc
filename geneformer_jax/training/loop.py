"""The loop of training steps, for pretraining and fine-tuning."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from geneformer_jax.batches.loader import read_ahead
from geneformer_jax.common.progress import Progress
from geneformer_jax.inference.pipeline import Throughput
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.sharding import put_batch
from geneformer_jax.training.checkpoint import Checkpoints
from geneformer_jax.training.config import ProfileConfig
from geneformer_jax.training.preemption import Stopped, StopRequest
from geneformer_jax.training.profiling import Profile
from geneformer_jax.training.state import TrainState, TrainStep
from geneformer_jax.training.telemetry import (
    HELD_OUT,
    MetricsLog,
    TrainingRun,
    Window,
    read_metrics,
)


class PeriodicEvaluation(NamedTuple):
    """Evaluation of held-out cells while a model is trained.

    Attributes:
      score: (weights) -> scores under the names that metrics.jsonl has.
      every_steps: steps between evaluations; there is always one after the last step.
      callback: called after each evaluation with the state and the line of metrics, which is
        written after it: what an unfinished callback leaves is made again.
      should_stop: asked before each step; True ends the run.
    """

    score: Callable[[Params], dict[str, float]]
    every_steps: int
    callback: Callable[[TrainState, dict[str, Any]], None] = lambda state, row: None
    should_stop: Callable[[], bool] = lambda: False

    def is_due(self, step: int, steps: int) -> bool:
        """Returns whether there is an evaluation after this of `steps` steps."""
        return step > 0 and (step % self.every_steps == 0 or step == steps)

    def run(self, step: int, state: TrainState, log: MetricsLog) -> None:
        """Evaluates and logs."""
        row = {"step": step, **self.score(state.params)}
        self.callback(state, row)
        log.write(row)

    def is_missing(self, step: int, steps: int, workdir: Path) -> bool:
        """Returns whether the evaluation of a restored step was cut off by a kill."""
        made = any(
            row["step"] == step and any(name.startswith(HELD_OUT) for name in row)
            for row in read_metrics(workdir)
        )
        missing = self.is_due(step, steps) and not made
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(missing)))


def run_steps(
    run: TrainingRun,
    train_step: TrainStep,
    state: TrainState,
    checkpoints: Checkpoints,
    workdir: Path,
    *,
    description: str,
    evaluation: PeriodicEvaluation | None = None,
    stored: Callable[[TrainState], TrainState] = lambda state: state,
    profile: ProfileConfig = ProfileConfig(),
) -> TrainState:
    """Runs the remaining steps; the device is never waited for except where numbers are wanted.

    A state is saved before it is evaluated, and the last one always: a run that is killed while it
    evaluates, or later, does not make its steps again.

    Args:
      run: batches, number of steps and what telemetry reads.
      train_step: the compiled step.
      state: where to begin; its memory is reused.
      checkpoints: where states are saved.
      workdir: gets metrics.jsonl and tensorboard/.
      description: in front of the progress bar.
      evaluation: of held-out cells; None for none.
      stored: returns a state as checkpoints hold it.
      profile: steps to profile.

    Returns:
      The state after the last step, or after the step at which the evaluation ended the run.

    Raises:
      InputError: the loss is no longer finite.
      Stopped: SIGTERM came; the state is saved.
    """
    config, step = run.config, int(state.step)
    missing = evaluation is not None and evaluation.is_missing(step, run.steps, workdir)
    window, throughput = Window(run, step, workdir), Throughput("steps")
    with (
        contextlib.closing(read_ahead(run.batches, step, config.data.workers)) as batches,
        MetricsLog(workdir, step, config) as log,
        Profile(profile, workdir) as tracing,
        Progress(run.steps, description, "steps", initial=step) as progress,
        StopRequest() as stop,
    ):
        if missing:
            with window.paused(state):
                evaluation.run(step, state, log)
        while step < run.steps and not (evaluation and evaluation.should_stop()):
            step += 1
            batch = window.wait_for(batches)
            tracing.before(step, state)
            on_devices = put_batch(batch, run.mesh)
            with throughput.starting(jax.tree.leaves(on_devices)[0].shape):
                state, metrics = train_step(state, on_devices)
            tracing.after(step, state)
            window.add(metrics, step)
            last, stopping = step == run.steps, stop.asked(step)
            log_due = step % config.log_every_steps == 0
            save = last or stopping or checkpoints.due(step, clock=log_due)
            notes = {}
            if log_due or save:
                row = window.close(step)
                log.write(row)
                notes = {"loss": f"{row['loss']:.3f}", "cells/s": f"{row['cells_per_s']:,.1f}"}
            if save:
                checkpoints.save(step, stored(state))
            if stopping and not last:
                checkpoints.wait()
                raise Stopped(step, run.steps, checkpoints.folder)
            if evaluation and evaluation.is_due(step, run.steps):
                with window.paused(state):
                    evaluation.run(step, state, log)
            progress.advance(1, compiling=throughput.compiling, **notes)
    if not checkpoints.has(step):
        checkpoints.save(step, stored(state))
    checkpoints.wait()
    return state
