"""Pretraining: a model learns to predict the masked genes of the cells in a store."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pandas as pd
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.common.arguments import require_path, require_type
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import HELD_OUT_TABLE, describe_run
from geneformer_jax.common.tables import write_csv
from geneformer_jax.common.workdir import claim_workdir, sole_run
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.pretrained import (
    CHECKPOINTS,
    PretrainedModel,
    describe_model,
    load_model,
    require_name_for_checkpoints,
)
from geneformer_jax.training.checkpoint import Checkpoints
from geneformer_jax.training.config import PretrainConfig, typed_config
from geneformer_jax.training.evaluation import BaselineScore, Evaluation, Evaluator, fit_baselines
from geneformer_jax.training.initial.start import start_state
from geneformer_jax.training.loop import PeriodicEvaluation, run_steps
from geneformer_jax.training.profiling import require_safe_profiler
from geneformer_jax.training.run import Run, open_store, prepare_run
from geneformer_jax.training.state import TrainState, abstract_state


class PretrainResult(NamedTuple):
    """The result of a finished pretraining run.

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

    def table(self) -> pd.DataFrame:
        """Returns the held-out scores of the model and of the baselines, a row each."""
        scores = {"model": self.held_out} | self.baselines
        return pd.DataFrame(
            {
                "method": [name.replace("_", " ") for name in scores],
                "loss": [score.loss for score in scores.values()],
                "accuracy": [score.accuracy for score in scores.values()],
                "perplexity": [math.exp(score.loss) for score in scores.values()],
                "masked_genes": self.held_out.masked_genes,
            }
        )

    def report(self) -> list[str]:
        """Returns lines that compare the held-out scores with those of the baselines."""
        if self.held_out is None:
            return ["no cells were held out, so nothing was evaluated"]
        lines = [
            f"held-out cells, {self.held_out.masked_genes:,} masked genes:",
            f"  {'':<16}{'loss':>8}{'accuracy':>10}{'perplexity':>12}",
        ]
        for row in self.table().itertuples():
            figures = f"{row.loss:>8.4f}{row.accuracy:>10.2%}{row.perplexity:>12.1f}"
            lines.append(f"  {row.method:<16}{figures}")
        return lines + self.conclusions()

    def conclusions(self) -> list[str]:
        """Returns a line for each baseline on whether the model beats it."""
        if self.held_out is None:
            return ["no cells were held out, so nothing says what the model has learned"]
        lines = []
        for name, score in self.baselines.items():
            loss = self.held_out.loss - score.loss
            accuracy = 100 * (self.held_out.accuracy - score.accuracy)
            verdict = "beats" if loss < 0 else "does NOT beat"
            lines.append(
                f"the model {verdict} the {name.replace('_', ' ')} baseline: its loss is "
                f"{_compared(loss, 4, 'nats')}, its accuracy "
                f"{_compared(accuracy, 2, 'percentage points')}"
            )
        return lines


def _compared(difference: float, digits: int, unit: str) -> str:
    """Puts a difference into words."""
    size = f"{abs(difference):.{digits}f}"
    if not float(size):
        return "the same"
    return f"{size} {unit} {'higher' if difference > 0 else 'lower'}"


def pretrain_model(
    store: CellStore | Path | str,
    workdir: Path | str,
    config: PretrainConfig | ConfigDict | Mapping[str, Any],
) -> PretrainedModel:
    """Pretrains a model on the cells of a store, resuming where an interrupted call stopped::

        config = gf.pretrain_config("v1_10m", vocabulary_size=0)   # 0: that of the store
        config.data.tokens_per_batch = 65_536
        model = gf.pretrain_model("store", "run", config)

    Args:
      store: cells tokenised by `python -m geneformer_jax.tokenize`, or the folder they are in; it
        takes the place of `config.data.store`.
      workdir: folder of the run: a new one, or that of an interrupted call with the same
        configuration. Gets checkpoints/, metrics.jsonl (losses in nats), held_out.csv (the last
        of them beside baselines), tensorboard/, config.json and provenance.json.
      config: `pretrain_config(...)`, changed.

    Returns:
      The model after the last step; metrics.jsonl has its scores on held-out cells.

    Raises:
      InputError: store, configuration, devices and folder do not fit together, or the loss is no
        longer finite.
      Stopped: SIGTERM came; the state is saved. Ends the program with exit status 143.
    """
    require_type("store", store, (CellStore, str, Path), "give a cell store, or its folder")
    require_path("workdir", workdir, "a folder for the run")
    kinds = (PretrainConfig, ConfigDict, Mapping)
    require_type("config", config, kinds, "give pretrain_config(...), changed")
    store = store if isinstance(store, CellStore) else CellStore.open(store)
    typed = config if isinstance(config, PretrainConfig) else typed_config(config)
    typed = dataclasses.replace(
        typed, data=dataclasses.replace(typed.data, store=str(store.folder))
    )
    result = pretrain(typed, Path(workdir))
    logger.info("\n".join(result.report()))
    return load_model(result.checkpoint)


def pretrain(config: PretrainConfig, workdir: Path) -> PretrainResult:
    """Pretrains a model, going on from the newest checkpoint in `workdir` if there is one.

    Writes config.json, provenance.json, metrics.jsonl, held_out.csv, tensorboard/, checkpoints/
    and, if asked for, profile/ into `workdir`. A run that is killed and started again with the same
    arguments ends with the same weights. It begins with the newest checkpoint in `workdir` that can
    be read; without any, with the weights of `config.initial`; without that, with weights drawn
    from the seed. Another mesh, other numbers of devices and processes, another precision or
    attention and other times of saving may be given when it goes on; anything else is refused.

    Args:
      config: the whole run.
      workdir: a new folder, or that of the same run.

    Raises:
      InputError: the configuration cannot run, `workdir` holds something else or another process
        is at work there, no checkpoint there could be read, or the loss is no longer finite.
      Stopped: SIGTERM came; the state is saved. Ends the program with exit status 143.
    """
    require_name_for_checkpoints(workdir)
    run = prepare_run(config, open_store(config))
    require_safe_profiler(config.profile)
    if jax.process_index() == 0:
        _claim_workdir(run, workdir)
        logger.info("\n".join(run.summary()))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("workdir claimed")
    description = describe_model(run.encoder, run.store.vocabulary)
    with (
        sole_run(workdir) if jax.process_index() == 0 else contextlib.nullcontext(),
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
            profile=config.profile,
        )
        held_out = evaluator(state.params) if evaluator else None
        state = run.stored(state)
        checkpoint = workdir / CHECKPOINTS / str(run.steps)
        result = PretrainResult(state, held_out, baselines, checkpoint)
        if held_out and jax.process_index() == 0:
            with atomic_write(workdir / HELD_OUT_TABLE) as aside:
                write_csv(result.table(), aside)
    return result


def _first_state(run: Run, checkpoints: Checkpoints) -> TrainState:
    state = checkpoints.restore_newest(abstract_state(run.stored_recipe, run.mesh))
    return start_state(run) if state is None else run.at_work(state)


def _claim_workdir(run: Run, workdir: Path) -> None:
    """Writes configuration and provenance, or checks that the folder is of the same run."""
    configuration = dataclasses.asdict(run.config)
    counts = {
        "training_cells": len(run.training_cells),
        "held_out_cells": run.config.evaluation.held_out_cells,
        "steps": run.steps,
        "cells_cut": getattr(run.store, "cut", 0),
    }
    provenance = describe_run("pretrain", configuration, [run.store.folder], counts)
    claim_workdir(workdir, run.identity(), provenance)


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
