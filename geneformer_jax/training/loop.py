"""The training loop, and pretraining."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from geneformer_jax.batches.loader import read_ahead
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.workdir import claim_workdir
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.pretrained import CHECKPOINTS, describe_model
from geneformer_jax.model.sharding import put_batch
from geneformer_jax.training.checkpoint import Checkpoints
from geneformer_jax.training.config import PretrainConfig
from geneformer_jax.training.evaluation import BaselineScore, Evaluation, Evaluator, fit_baselines
from geneformer_jax.training.preemption import Stopped, StopRequest
from geneformer_jax.training.profiling import Profile, ProfileConfig, refuse_crashing_profiler
from geneformer_jax.training.run import Run, open_store, prepare_run, start_state
from geneformer_jax.training.state import TrainState, TrainStep, abstract_state
from geneformer_jax.training.telemetry import MetricsLog, Window


class PeriodicEvaluation(NamedTuple):
    """Evaluation of held-out cells while a model is trained.

    Attributes:
      score: (weights) -> scores under the names that metrics.jsonl has.
      every_steps: steps between evaluations; there is always one after the last step.
      callback: called after each evaluation with the state and the line of metrics.
      should_stop: asked before each step; True ends the run.
    """

    score: Callable[[Params], dict[str, float]]
    every_steps: int
    callback: Callable[[TrainState, dict[str, Any]], None] = lambda state, row: None
    should_stop: Callable[[], bool] = lambda: False


class PretrainResult(NamedTuple):
    """What a finished run amounts to.

    Attributes:
      state: the last train state.
      held_out: final scores on held-out cells, None if none were held out.
      baselines: scores of the baselines on the same masked genes, by name; empty if none were.
      checkpoint: folder of the last checkpoint.
    """

    state: TrainState
    held_out: Evaluation | None
    baselines: dict[str, BaselineScore]
    checkpoint: Path

    def report(self) -> list[str]:
        """Lines that set the held-out scores beside the baselines, and say which is better."""
        if self.held_out is None:
            return ["no cells were held out, so nothing was evaluated"]
        scores = {"model": self.held_out} | {
            name.replace("_", " "): score for name, score in self.baselines.items()
        }
        lines = [
            f"held-out cells, {self.held_out.masked_genes:,} masked genes:",
            f"  {'':<16}{'loss':>8}{'accuracy':>10}{'perplexity':>12}",
        ]
        for name, score in scores.items():
            perplexity = f"{math.exp(score.loss):>12.1f}"
            lines.append(f"  {name:<16}{score.loss:>8.4f}{score.accuracy:>10.2%}{perplexity}")
        for name, score in self.baselines.items():
            gain = score.loss - self.held_out.loss
            verdict = "beats" if gain > 0 else "does NOT beat"
            lines.append(
                f"the model {verdict} the {name.replace('_', ' ')} baseline by {gain:+.4f} nats "
                f"and {self.held_out.accuracy - score.accuracy:+.2%} accuracy"
            )
        return lines


def pretrain(config: PretrainConfig, workdir: Path) -> PretrainResult:
    """Pretrains a model, going on from the newest checkpoint in `workdir` if there is one.

    Writes config.json, provenance.json, metrics.jsonl, tensorboard/, checkpoints/ and, if asked
    for, profile/ into `workdir`. A run that is killed and started again with the same arguments
    ends with the same weights. It begins with the newest checkpoint in `workdir` that can be read;
    without any, with the weights of `config.initial`; without that, with weights drawn from the
    seed. Another mesh, other numbers of devices and processes, another precision or attention and
    other times of saving may be given when it goes on; anything else is refused.

    Args:
      config: the whole run.
      workdir: a new folder, or that of the same run.

    Raises:
      InputError: the configuration cannot run, `workdir` holds something else, or the loss is no
        longer finite.
      Stopped: SIGTERM came; the state is saved. Ends the program with exit status 143.
    """
    run = prepare_run(config, open_store(config))
    refuse_crashing_profiler(config.profile)
    if jax.process_index() == 0:
        _claim_workdir(run, workdir)
        print("\n".join(run.summary()), flush=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("workdir claimed")
    description = describe_model(run.encoder, run.store.vocabulary)
    with (
        jax.set_mesh(run.mesh),
        Checkpoints(workdir / CHECKPOINTS, config.checkpoint, description) as checkpoints,
    ):
        state = _first_state(run, checkpoints)
        evaluator, baselines = _prepare_evaluation(run)
        state = run_steps(
            run,
            run.train_step,
            state,
            checkpoints,
            workdir,
            description="pretrain",
            evaluation=_held_out_scores(evaluator, config.evaluation.every_steps),
            stored=run.stored,
            save_last=True,
            profile=config.profile,
        )
        held_out = evaluator(state.params) if evaluator else None
        state = run.stored(state)
    return PretrainResult(state, held_out, baselines, workdir / CHECKPOINTS / str(run.steps))


def _first_state(run: Run, checkpoints: Checkpoints) -> TrainState:
    state = checkpoints.restore_newest(abstract_state(run.stored_recipe, run.mesh))
    return start_state(run) if state is None else run.at_work(state)


def _claim_workdir(run: Run, workdir: Path) -> None:
    """Writes what the run is, or checks that the folder is of the same run."""
    configuration = dataclasses.asdict(run.config)
    counts = {
        "training_cells": len(run.training_cells),
        "held_out_cells": run.config.evaluation.held_out_cells,
        "steps": run.steps,
    }
    story = describe_run("pretrain", configuration, [run.store.folder], counts)
    claim_workdir(workdir, run.identity(), story)


def _prepare_evaluation(run: Run) -> tuple[Evaluator | None, dict[str, BaselineScore]]:
    if not run.config.evaluation.held_out_cells:
        return None, {}
    evaluator = Evaluator(run.held_out, run.encoder, run.runtime, run.mesh)
    fitted = fit_baselines(run.store, run.training_cells, run.config.seed)
    return evaluator, evaluator.score_baselines(fitted)


def _held_out_scores(evaluator: Evaluator | None, every_steps: int) -> PeriodicEvaluation | None:
    if evaluator is None:
        return None

    def score(params: Params) -> dict[str, float]:
        return {f"held_out_{name}": value for name, value in evaluator(params)._asdict().items()}

    return PeriodicEvaluation(score, every_steps)


def run_steps(
    run: Run,
    train_step: TrainStep,
    state: TrainState,
    checkpoints: Checkpoints,
    workdir: Path,
    *,
    description: str,
    evaluation: PeriodicEvaluation | None = None,
    stored: Callable[[TrainState], TrainState] = lambda state: state,
    save_last: bool = False,
    profile: ProfileConfig = ProfileConfig(),
) -> TrainState:
    """Runs the remaining steps; the device is never waited for except where numbers are wanted.

    Args:
      run: batches, number of steps and what telemetry reads.
      train_step: the compiled step.
      state: where to begin; its memory is reused.
      checkpoints: where states are saved.
      workdir: gets metrics.jsonl and tensorboard/.
      description: in front of the progress bar.
      evaluation: of held-out cells; None for none.
      stored: returns a state as checkpoints hold it.
      save_last: whether the state after the last step is saved too.
      profile: steps to profile.

    Returns:
      The state after the last step, or after the step at which the evaluation ended the run.

    Raises:
      InputError: the loss is no longer finite.
      Stopped: SIGTERM came; the state is saved.
    """
    config, step = run.config, int(state.step)
    batches = read_ahead(run.batches, step, config.data.workers)
    window = Window(run, step, workdir)
    with (
        MetricsLog(workdir, step) as log,
        Profile(profile, workdir) as tracing,
        Progress(run.steps, description, "steps", initial=step) as progress,
        StopRequest() as stop,
    ):
        while step < run.steps and not (evaluation and evaluation.should_stop()):
            step += 1
            batch = window.wait_for(batches)
            tracing.before(step, state)
            state, metrics = train_step(state, put_batch(batch, run.mesh))
            tracing.after(step, state)
            window.add(metrics, step)
            last, stopping = step == run.steps, stop.asked(step)
            log_due = step % config.log_every_steps == 0
            save = (last and save_last) or stopping or checkpoints.due(step, clock=log_due)
            notes = {}
            if log_due or save or last:
                row = window.close(step)
                log.write(row)
                notes = {"loss": f"{row['loss']:.3f}", "cells/s": f"{row['cells_per_s']:,.1f}"}
            if evaluation and (step % evaluation.every_steps == 0 or last):
                with window.paused(state):
                    row = {"step": step, **evaluation.score(state.params)}
                    log.write(row)
                    evaluation.callback(state, row)
            if save:
                checkpoints.save(step, stored(state))
            progress.advance(1, **notes)
            if stopping and not last:
                checkpoints.wait()
                raise Stopped
    return state
