"""Early stopping: the best evaluation so far, its weights, and when there is no use going on."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from geneformer_jax.common.files import atomic_write, remove
from geneformer_jax.finetuning.config import StoppingConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.processes import by_first, is_first, of_first, whole_on_host
from geneformer_jax.training.telemetry import HELD_OUT, read_metrics

_BEST = "best-"


class EarlyStopping:
    """The evaluation with the lowest validation loss, and how many followed it.

    Attributes:
      step: of that evaluation.
      loss: its validation loss.
    """

    def __init__(
        self,
        config: StoppingConfig,
        folder: Path,
        callback: Callable[[Mapping[str, Any]], None],
        first_step: int,
    ):
        """Starts from the evaluations that a run logged before it was interrupted.

        Args:
          config: what is kept, and the patience.
          folder: of the run; holds its metrics, and the best weights.
          callback: called with each evaluation.
          first_step: the step that the run resumes after; later evaluations are made again.
        """
        self._config, self._folder, self._callback = config, folder, callback
        self.step, self.loss, self._since = 0, float("inf"), 0
        for row in read_metrics(folder) if is_first() else []:
            if row["step"] <= first_step and f"{HELD_OUT}loss" in row:
                self.update(row)
        step, self.loss, since = of_first(np.array([self.step, self.loss, self._since])).tolist()
        self.step, self._since = int(step), int(since)

    def update(self, row: Mapping[str, Any]) -> bool:
        """Records an evaluation; returns whether its loss is the lowest so far."""
        self._callback(row)
        better = row[f"{HELD_OUT}loss"] < self.loss
        self._since = 0 if better else self._since + 1
        if better:
            self.step, self.loss = row["step"], row[f"{HELD_OUT}loss"]
        return better

    def should_stop(self) -> bool:
        """Whether the loss has not fallen for as many evaluations as patience allows."""
        return bool(self._config.patience) and self._since >= self._config.patience

    @property
    def path(self) -> Path:
        """File of the weights of the best evaluation."""
        return self._folder / f"{_BEST}{self.step}.npz"

    def save(self, trainable: Params) -> None:
        """Saves the trainable weights of the best evaluation in place of earlier ones."""
        flat = traverse_util.flatten_dict(whole_on_host(trainable), sep="/")
        by_first(functools.partial(self._write, flat))

    def _write(self, flat: Mapping[str, np.ndarray]) -> None:
        with atomic_write(self.path) as aside, aside.open("wb") as file:
            np.savez(file, **flat)
        for other in self._folder.glob(f"{_BEST}*.npz"):
            if other != self.path:
                remove(other)

    def load(self) -> Params:
        """Loads the weights of the best evaluation."""
        with np.load(self.path) as file:
            return traverse_util.unflatten_dict(dict(file.items()), sep="/")
