"""A profile of chosen steps, for TensorBoard's profile plugin, XProf or Perfetto."""

from pathlib import Path

import jax

from geneformer_jax.common.errors import InputError
from geneformer_jax.training.config import ProfileConfig
from geneformer_jax.training.state import TrainState

PROFILE = "profile"
_LOADED_FILES = Path("/proc/self/maps")


def require_safe_profiler(config: ProfileConfig) -> None:
    """Looks ahead to the first step to trace, where the process may end without a word.

    JAX asks every library it has loaded for its metadata. libtpu (0.0.52, with JAX 0.10.2)
    ends the process where it finds no TPU; JAX loads it wherever it is installed.

    Raises:
      InputError: steps are to be profiled, and libtpu is loaded without a TPU.
    """
    if not config.steps or jax.default_backend() == "tpu" or not _LOADED_FILES.exists():
        return
    if "/libtpu.so" in _LOADED_FILES.read_text():
        platforms = ",".join(dict.fromkeys((jax.default_backend(), "cpu")))
        raise InputError(
            f"`config.profile.steps`={config.steps}: JAX's profiler crashes where libtpu is loaded "
            f"and no TPU is there; start with JAX_PLATFORMS={platforms} in the environment, or "
            "without the package libtpu"
        )


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
