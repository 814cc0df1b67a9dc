"""Requests to stop: SIGTERM from a scheduler, or the preemption of a machine."""

import signal
import threading
from pathlib import Path
from types import FrameType

import jax
from jax.experimental import multihost_utils

from geneformer_jax.common.log import logger

STATUS = 143  # 128 + SIGTERM, as shells report it


class Stopped(SystemExit):
    """The run saved its state and ends because it was asked to; exit status 143.

    Running the same command again goes on from there.
    """

    def __init__(self, step: int, steps: int, folder: Path):
        """Logs what was saved.

        Args:
          step: the last one made.
          steps: of the whole run.
          folder: of the checkpoints.
        """
        super().__init__(STATUS)
        if jax.process_index() == 0:
            logger.warning(
                f"stopped by SIGTERM after step {step:,} of {steps:,}, whose state is saved in "
                f"{folder / str(step)}; run the same command again to go on from there"
            )


class StopRequest:
    """A context manager that notes SIGTERM instead of dying of it.

    In a run of several processes JAX itself listens, and notifies all of them.
    """

    def __init__(self):
        self._asked = False
        # Signals reach the main thread only; elsewhere there is nothing to note.
        main = threading.current_thread() is threading.main_thread()
        self._listens = main and jax.process_count() == 1

    def __enter__(self) -> "StopRequest":
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self, step: int) -> bool:
        """Returns whether to stop after `step`; all processes of a run get the same answer."""
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)
