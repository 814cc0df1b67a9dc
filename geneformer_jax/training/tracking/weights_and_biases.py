"""Weights & Biases: a run of its own for each workdir, kept on this machine until it is synced."""

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from geneformer_jax.common.files import remove
from geneformer_jax.training.tracking.tracker import PROJECT, TrackedRun

# Settings that cannot be are a ValueError.
REFUSALS = (wandb.Error, ValueError)


class WandbRun:
    """A run that is kept on this machine, or with WANDB_MODE=online sent on as it is made."""

    def __init__(self, run: TrackedRun):
        """Begins the run's files anew, or has the server go on with the run."""
        _remove_unsynced(run.folder)
        self._run = wandb.init(
            project=PROJECT,
            id=run.run_id,
            name=run.name,
            config=dict(run.settings),
            dir=run.folder,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            # The command's own output, the code and the repository are no business of a tracker.
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Adds numbers of a step. A server that is further leaves them out."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Flushes."""
        self._run.finish()


def _remove_unsynced(folder: Path) -> None:
    """Removes what a killed process left, which lacks its last lines; all of it is told again."""
    for part in folder.glob("wandb/offline-run-*"):
        if not list(part.glob("*.synced")):
            remove(part)


def open_run(run: TrackedRun) -> WandbRun:
    """Begins or goes on with a run."""
    return WandbRun(run)
