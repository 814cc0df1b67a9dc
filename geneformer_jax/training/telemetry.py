"""Metrics of a run: metrics.jsonl, one JSON object a line, TensorBoard's event files, a tracker."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tensorboardX import SummaryWriter

from geneformer_jax.batches.config import DataConfig
from geneformer_jax.batches.labelled import LabelledBatches
from geneformer_jax.batches.loader import Batch, MaskedBatches
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, writing
from geneformer_jax.model.config import RuntimeConfig
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.training.config import OptimizerConfig
from geneformer_jax.training.flops import peak_flops
from geneformer_jax.training.optimizer import learning_rate
from geneformer_jax.training.state import StepMetrics, TrainState
from geneformer_jax.training.tracking.tracker import open_tracker

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
NOT_FINITE = "not_finite.json"
# In front of the names of scores of cells that are not trained on.
HELD_OUT = "held_out_"
# Steps that the devices are given ahead of those whose end is waited for.
_IN_FLIGHT = 3


class TrainingConfig(Protocol):
    """What every configuration of a training run has."""

    data: DataConfig
    optimizer: OptimizerConfig
    runtime: RuntimeConfig
    log_every_steps: int
    track: str


class TrainingRun(Protocol):
    """What the loop of steps and its metrics need of a run, be it pretraining or fine-tuning.

    Attributes:
      config: how the run is trained.
      store: all cells.
      mesh: devices.
      batches: of all steps.
      steps: optimizer steps in all.
      steps_per_epoch: steps in one pass over the training cells.
    """

    config: TrainingConfig
    store: EncodedCells
    mesh: Mesh
    batches: MaskedBatches | LabelledBatches
    steps: int
    steps_per_epoch: int

    def flops(self, cells: np.ndarray) -> float:
        """Returns the floating point operations of a training step on these cells."""


class MetricsLog:
    """The metrics of a run: a file of JSON lines, and the same for TensorBoard and a tracker.

    Use as a context manager. Lines of steps that are run again are replaced, not doubled. In a run
    of several processes the first one writes.
    """

    def __init__(self, workdir: Path, first_step: int, config: TrainingConfig):
        """Opens the log, dropping lines beyond `first_step` that an interrupted run left."""
        self._path = workdir / METRICS
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        # As a file that may have to be made: to look for it first could miss what another machine
        # wrote a moment ago, and with it all lines up to here.
        with self._path.open("a+") as file:
            file.seek(0)
            rows = [row for row in _rows_of(file.read()) if row["step"] <= first_step]
        with atomic_write(self._path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        # TensorBoard hides the steps from `purge_step` on in files of an interrupted run.
        self._writer = SummaryWriter(
            str(workdir / TENSORBOARD),
            purge_step=first_step + 1,
            filename_suffix=f".from-step-{first_step}",
        )
        self._tracker = open_tracker(config.track, workdir, config)
        # What a killed process had not handed on yet.
        for row in rows if self._tracker else ():
            self._tracker.write(_numbers_of(row), row["step"])

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._writer.close()
            if self._tracker:
                self._tracker.close()

    def write(self, row: dict[str, Any]) -> None:
        """Appends one line; `row` holds at least `step`."""
        if not self._writes:
            return
        numbers = _numbers_of(row)
        with writing(self._path):
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            for tag, value in numbers.items():
                self._writer.add_scalar(tag, value, row["step"])
            self._writer.flush()
        if self._tracker:
            self._tracker.write(numbers, row["step"])


def _numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line that it has, by their tags."""
    return {_tag(name): row[name] for name in row if name != "step" and row[name] is not None}


def _tag(name: str) -> str:
    """TensorBoard groups what stands before a slash."""
    if name.startswith(HELD_OUT):
        return f"held_out/{name.removeprefix(HELD_OUT)}"
    return f"training/{name}"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a run's metrics; a line cut off by a kill is left out."""
    path = workdir / METRICS
    return _rows_of(path.read_text()) if path.is_file() else []


def _rows_of(lines: str) -> list[dict[str, Any]]:
    rows = []
    for line in lines.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            # A number is what is left of a line that was cut at its front.
            rows += [row] if isinstance(row, dict) else []
    return rows


class Window:
    """The steps since the last line of metrics."""

    def __init__(self, run: TrainingRun, step: int, workdir: Path):
        """Begins after `step`; `workdir` gets the cells of a batch whose loss is not finite."""
        self._run, self._step, self._workdir = run, step, workdir
        self._schedule = learning_rate(run.config.optimizer, run.steps)
        self._empty()

    def _empty(self) -> None:
        self._metrics: list[StepMetrics] = []
        self._cells = 0
        self._flops = 0.0
        self._waited = 0.0
        self._started = time.monotonic()

    @contextlib.contextmanager
    def paused(self, state: TrainState) -> Iterator[None]:
        """Leaves out of the window what happens inside: an evaluation is no training time."""
        jax.block_until_ready(state)
        before = time.monotonic()
        yield
        self._started += time.monotonic() - before

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """Returns the next batch, counting the time that the devices may have to wait for it."""
        before = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - before
        return batch

    def add(self, metrics: StepMetrics, step: int) -> None:
        """Adds `step`, which was dispatched; its numbers are fetched when the window closes."""
        self._metrics.append(metrics)
        # The devices have work ahead, but no more than a request to stop can wait for.
        jax.block_until_ready(self._metrics[-_IN_FLIGHT:][0])
        cells, _ = self._run.batches.plan.step(step - 1)
        cells_read = cells[cells >= 0]
        self._cells += len(cells_read)
        self._flops += self._run.flops(cells_read)

    def close(self, step: int) -> dict[str, Any]:
        """Returns the window's line of metrics, and begins a new window after `step`.

        Norms and scores are means over the window's steps (weighted by what was predicted),
        the parameter norm, the loss scale and the learning rate those of its end.

        Raises:
          InputError: the loss of a step, or a gradient that was applied, is not finite.
        """
        steps = StepMetrics(*np.asarray(jax.device_get(self._metrics), np.float64).T)
        bounded = self._bounded(steps)
        bad = np.flatnonzero(~np.isfinite(np.sum(list(bounded.values()), axis=0)))
        if len(bad):
            name = next(each for each in bounded if not np.isfinite(bounded[each][bad[0]]))
            self._stop_at(name, self._step + 1 + int(bad[0]), step)
        seconds = max(time.monotonic() - self._started, 1e-9)
        targets, tokens, padded = steps.targets, steps.tokens.sum(), steps.padded_tokens.sum()
        skipped = int(steps.skipped_updates[-1])
        # Where a float16 gradient overflowed, the update was skipped and there is no norm.
        norms = steps.gradient_norm[np.isfinite(steps.gradient_norm)]
        row = {
            "step": step,
            "epoch": round(step / self._run.steps_per_epoch, 4),
            "loss": float((steps.loss * targets).sum() / targets.sum()),
            "accuracy": float((steps.accuracy * targets).sum() / targets.sum()),
            **self._contrastive(steps),
            "learning_rate": float(self._schedule(max(step - 1 - skipped, 0))),
            "gradient_norm": float(norms.mean()) if len(norms) else None,
            "parameter_norm": float(steps.parameter_norm[-1]),
            "loss_scale": float(steps.loss_scale[-1]),
            "skipped_updates": skipped,
            "cells_per_s": self._cells / seconds,
            "tokens_per_s": tokens / seconds,
            "padded_tokens_per_s": padded / seconds,
            "padding": 1 - tokens / padded,
            "model_flops_per_s": self._flops / seconds,
            **self._utilisation(seconds),
            "data_wait": min(self._waited / seconds, 1.0),
            "step_s": seconds / len(self._metrics),
        }
        self._step = step
        self._empty()
        return row

    def _bounded(self, steps: StepMetrics) -> dict[str, np.ndarray]:
        """Returns what must be finite: a gradient too, unless its update was skipped if not."""
        bounded = {"loss": steps.loss}
        if not precision_preset(self._run.config.runtime.precision).scaled_loss:
            bounded["gradient"] = steps.gradient_norm
        return bounded

    def _contrastive(self, steps: StepMetrics) -> dict[str, float]:
        """Returns the mean of the second loss, where there is one."""
        losses = steps.contrastive_loss
        return {"contrastive_loss": float(losses.mean())} if losses.any() else {}

    def _utilisation(self, seconds: float) -> dict[str, float]:
        """Returns the fraction of the devices' peak in use, and peak memory, where known."""
        devices = self._run.mesh.devices.flatten()
        known = {}
        if peak := peak_flops(devices[0], self._run.config.runtime.precision):
            known["mfu"] = self._flops / seconds / (peak * len(devices))
        if memory := jax.local_devices()[0].memory_stats():
            known["device_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
        return known

    def _stop_at(self, name: str, bad: int, step: int) -> None:
        """Ends the run at a loss or gradient that is not finite, having listed its cells."""
        cells = self._run.batches.plan.step(bad - 1).cells
        ids = [str(name) for name in self._run.store.obs.index[cells[cells >= 0]]]
        path = self._workdir / NOT_FINITE
        if jax.process_index() == 0:
            content = {"step": bad, "steps_looked_at": [self._step + 1, step], "cells": ids}
            with atomic_write(path) as partial:
                partial.write_text(json.dumps(content, indent=2) + "\n")
        raise InputError(
            f"the {name} of step {bad:,} (in steps {self._step + 1:,} to {step:,}) is not finite; "
            f"its batch holds cells {', '.join(ids[:5])}, ... (all in {path}); lower "
            "`config.optimizer.learning_rate` or raise `config.optimizer.warmup_steps`, and start "
            "in a new `workdir`"
        )
