"""Which tracker a run asks for, and where its metrics go; each tracker has a module of its own."""

import dataclasses
import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from flax import traverse_util

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write

TRACKING = "tracking"
PROJECT = "geneformer_jax"
_RUN_ID = "run_id"
# Tracker -> its module, and what it imports.
_MODULES = {
    "wandb": ("weights_and_biases", ("wandb",)),
    "mlflow": ("mlflow_runs", ("mlflow", "sqlalchemy", "alembic")),
}


class Tracker(Protocol):
    """Somewhere else that metrics go, apart from the workdir's own files."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Adds numbers of a step, by name; those that are there already are not doubled.

        A run that goes on begins with all that it logged before.
        """

    def close(self) -> None:
        """Ends the record of this process; the run may go on in another."""


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is told of.

    Attributes:
      run_id: the same for every process that goes on with it.
      name: to be shown.
      folder: for the tracker's own files.
      settings: the configuration, by dotted name.
    """

    run_id: str
    name: str
    folder: Path
    settings: Mapping[str, Any]


def require_tracker(name: str) -> None:
    """Looks ahead to the first line of metrics.

    Raises:
      InputError: the tracker is not installed.
    """
    for module in _MODULES[name][1] if name else ():
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"`config.track`={name} needs {module}, which is not installed; "
                'pip install "geneformer_jax[track]", or leave it out'
            )


def open_tracker(name: str, workdir: Path, config: object) -> Tracker | None:
    """Begins or goes on with the record of a run; None where no tracker is asked for.

    Args:
      name: "wandb", "mlflow" or "".
      workdir: folder of the run. Its folder tracking/ holds the id of the run, and, unless the
        tracker's own environment variables say otherwise, the records: nothing is sent anywhere.
      config: a dataclass, the configuration of the run.

    Raises:
      InputError: the tracker is not installed, or refuses the run.
    """
    if not name:
        return None
    require_tracker(name)
    folder = workdir / TRACKING
    settings = traverse_util.flatten_dict(dataclasses.asdict(config), sep=".")
    run = TrackedRun(_run_id(folder), str(workdir), folder, settings)
    module = importlib.import_module(f"{__package__}.{_MODULES[name][0]}")
    try:
        return module.open_run(run)
    except module.REFUSALS as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"`config.track`={name} cannot begin ({reason}); mend its environment variables, or "
            "leave it out"
        ) from error


def _run_id(folder: Path) -> str:
    path = folder / _RUN_ID
    if not path.exists():
        with atomic_write(path) as aside:
            aside.write_text(secrets.token_hex(8))
    return path.read_text()
