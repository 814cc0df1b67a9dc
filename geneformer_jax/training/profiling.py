"""A profile of chosen steps, for TensorBoard's profile plugin, XProf or Perfetto."""

from pathlib import Path

import jax

from geneformer_jax.training.config import ProfileConfig
from geneformer_jax.training.state import TrainState

PROFILE = "profile"


class Profile:
    """Traces the steps that were asked for; a context manager that ends a trace begun.

    In a run of several processes the first one traces its own devices.
    """

    def __init__(self, config: ProfileConfig, workdir: Path):
        """Prepares to trace into `workdir`/profile; steps already made are not traced."""
        wanted = config.steps and jax.process_index() == 0
        self._first = config.first_step if wanted else 0
        self._last = config.first_step + config.steps - 1
        self._folder = workdir / PROFILE
        self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            jax.profiler.stop_trace()

    def before(self, step: int, state: TrainState) -> None:
        """Begins the trace if `step` is the first one wanted; `state` is what it starts from."""
        if step == self._first:
            # Steps that are still under way belong to no one who asked.
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, state: TrainState) -> None:
        """Ends the trace if `step`, which gives `state`, is the last one wanted."""
        if self._tracing and step == self._last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._tracing = False
