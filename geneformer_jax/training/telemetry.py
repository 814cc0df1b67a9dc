"""What a run says while it runs: metrics.jsonl, one JSON object a line."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from geneformer_jax.batches.loader import Batch
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import write_aside
from geneformer_jax.training.estimate import peak_flops, step_flops
from geneformer_jax.training.optimizer import learning_rate
from geneformer_jax.training.run import Run
from geneformer_jax.training.state import StepMetrics

METRICS = "metrics.jsonl"


class MetricsLog:
    """The metrics file of a run; lines of steps that are run again are replaced, not doubled.

    In a run of several processes the first one writes.
    """

    def __init__(self, workdir: Path, first_step: int):
        """Opens the log, dropping lines beyond `first_step` that an interrupted run left."""
        self._path = workdir / METRICS
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        rows = [row for row in read_metrics(workdir) if row["step"] <= first_step]
        with write_aside(self._path) as aside:
            aside.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(self, row: dict[str, Any]) -> None:
        """Appends one line; `row` holds at least `step`."""
        if not self._writes:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a run's metrics; a line cut off by a kill is left out."""
    path = workdir / METRICS
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class Window:
    """The steps since the last line of metrics."""

    def __init__(self, run: Run, step: int):
        """Begins after `step`."""
        self._run, self._step = run, step
        self._schedule = learning_rate(run.config.optimizer, run.steps)
        self._empty()

    def _empty(self) -> None:
        self._metrics: list[StepMetrics] = []
        self._cells = self._padded = 0
        self._flops = 0.0
        self._waited = 0.0
        self._started = time.monotonic()

    def restart_clock(self) -> None:
        """Leaves out what happened since the last line: an evaluation is no training time."""
        self._started = time.monotonic()

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """Returns the next batch, counting the time that the devices may have to wait for it."""
        before = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - before
        return batch

    def add(self, metrics: StepMetrics, step: int) -> None:
        """Adds `step`, which was dispatched; its numbers are fetched when the window closes."""
        self._metrics.append(metrics)
        cells, bucket = self._run.batches.plan.step(step - 1)
        cells_read = cells[cells >= 0]
        self._cells += len(cells_read)
        self._padded += len(cells) * bucket
        lengths = self._run.store.lengths[cells_read]
        share = self._run.config.masking.selected_share
        self._flops += step_flops(self._run.encoder, lengths, share * lengths.sum())

    def close(self, step: int) -> dict[str, float]:
        """Returns the window's line of metrics, and begins a new window after `step`.

        Raises:
          InputError: the loss of a step is not finite.
        """
        steps = StepMetrics(*np.asarray(jax.device_get(self._metrics), np.float64).T)
        bad = np.flatnonzero(~np.isfinite(steps.loss))
        if len(bad):
            raise InputError(self._explain(self._step + 1 + int(bad[0]), step))
        seconds = max(time.monotonic() - self._started, 1e-9)
        genes, tokens = steps.masked_genes, steps.tokens.sum()
        row = {
            "step": step,
            "epoch": round(step / self._run.steps_per_epoch, 4),
            "loss": float((steps.loss * genes).sum() / genes.sum()),
            "accuracy": float((steps.accuracy * genes).sum() / genes.sum()),
            "learning_rate": float(self._schedule(step - 1)),
            "gradient_norm": float(steps.gradient_norm.mean()),
            "parameter_norm": float(steps.parameter_norm[-1]),
            "loss_scale": float(steps.loss_scale[-1]),
            "skipped_updates": int(steps.skipped_updates[-1]),
            "cells_per_s": self._cells / seconds,
            "tokens_per_s": tokens / seconds,
            "padded_tokens_per_s": self._padded / seconds,
            "padding": 1 - tokens / self._padded,
            "model_flops_per_s": self._flops / seconds,
            **self._utilisation(seconds),
            "data_wait": min(self._waited / seconds, 1.0),
            "step_s": seconds / len(self._metrics),
        }
        self._step = step
        self._empty()
        return row

    def _utilisation(self, seconds: float) -> dict[str, float]:
        """Share of the devices' peak that was used, and memory at its fullest, where known."""
        devices = self._run.mesh.devices.flatten()
        known = {}
        if peak := peak_flops(devices[0], self._run.config.runtime.precision):
            known["mfu"] = self._flops / seconds / (peak * len(devices))
        if memory := jax.local_devices()[0].memory_stats():
            known["device_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
        return known

    def _explain(self, bad: int, step: int) -> str:
        cells = self._run.batches.plan.step(bad - 1).cells
        ids = self._run.store.obs.index[cells[cells >= 0][:5]]
        return (
            f"the loss of step {bad:,} (in steps {self._step + 1:,} to {step:,}) is not finite; "
            f"its batch holds cells {', '.join(map(str, ids))}, ...; lower "
            "--config.optimizer.learning_rate or raise warmup_steps, and start in a new --workdir"
        )
