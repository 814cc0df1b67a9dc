"""Checkpoints of a run: weights, optimizer state and the model's description, side by side.

A checkpoint is a folder named by its step. Weights are an item of their own (`params`), so that
nothing but training ever reads the optimizer's state.
"""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import remove, writing
from geneformer_jax.common.log import logger
from geneformer_jax.training.config import CheckpointConfig
from geneformer_jax.training.state import TrainState, initial_loss_scale

# A damaged checkpoint gives way to the one before it, under a name that is no step.
DAMAGED = "damaged-"
# What Orbax writes aside, and renames when it is whole.
_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of one run; a context manager that finishes writing when left."""

    def __init__(self, folder: Path, config: CheckpointConfig, description: dict[str, str]):
        """Opens, or begins, a folder of checkpoints.

        Args:
          folder: where they are.
          config: which of them to keep.
          description: texts saved with every checkpoint, see model.pretrained.describe_model.
        """
        self._description, self._config = description, config
        self._saved_at, self._handed_over = time.monotonic(), None
        self._response: ocp.AsyncResponse[bool] | None = None
        self._preservation = _preservation(config)
        training = ocp.training
        _remove_unfinished(folder)
        # Orbax would end the run, behind tracebacks, where it cannot remove what is superseded or
        # was not finished; so it keeps all, and what is not kept is removed here.
        self._checkpointer = training.Checkpointer(
            folder.resolve(),
            # The loop decides when to save; whatever it hands over is saved.
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=training.preservation_policies.PreserveAll(),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self.folder):
            try:
                self._let_go()
            finally:
                self._checkpointer.close()

    @property
    def newest(self) -> int | None:
        """Step of the newest whole checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def folder(self) -> Path:
        """Where they are; each is named by its step."""
        return Path(self._checkpointer.directory)

    def has(self, step: int) -> bool:
        """Returns whether the state after `step` is on disk, or on its way there."""
        return step in (self._handed_over, self.newest)

    def wait(self) -> None:
        """Returns when all that was handed over is on disk."""
        with writing(self.folder):
            self._checkpointer.wait()
            self._let_go()

    def _let_go(self) -> None:
        """Ends the thread and the handles that Orbax begins with each save, and never ends.

        Then there is a newer checkpoint, and one before it may not be needed any more.
        """
        response, self._response = self._response, None
        if response is not None:
            response.result()
            self._remove_superseded()

    def due(self, step: int, clock: bool) -> bool:
        """Returns whether `step` is to be saved, by the number of steps or the time passed.

        Args:
          step: the step just made.
          clock: whether to look at the clock too. In a run of several processes that takes a
            message from the first one, so that all get the same answer.
        """
        if step % self._config.every_steps == 0:
            return True
        if not clock or not self._config.every_minutes:
            return False
        passed = time.monotonic() - self._saved_at >= 60 * self._config.every_minutes
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(passed)))

    def save(self, step: int, state: TrainState) -> None:
        """Saves in the background; the state may be donated to the next step at once."""
        self._saved_at = time.monotonic()
        if self.has(step):
            return
        self._handed_over = step
        items = {
            "params": state.params,
            "optimizer": state.optimizer,
            # An array among the texts: orbax warns of an item that has none.
            "meta": {**self._description, "step": np.asarray(step)},
        }
        if state.loss_scale is not None:
            items["loss_scale"] = state.loss_scale
        with writing(self.folder):
            # What came of the save before this one is told here too.
            self._let_go()
            self._response = self._checkpointer.save_checkpointables_async(step, items)

    def restore_newest(self, target: TrainState) -> TrainState | None:
        """Returns the newest state that can be read, or None if there is no checkpoint.

        A damaged checkpoint is logged and renamed, and the one before it is used. Checkpoints
        that a killed process did not get to remove are removed.

        Raises:
          InputError: checkpoints are of another model, or none can be read.
        """
        steps = sorted((each.step for each in self._checkpointer.checkpoints), reverse=True)
        for tried, step in enumerate(steps):
            state, damage = self._try_restore(step, target)
            if state is not None:
                self._rename_damaged(steps[:tried])
                self._remove_superseded()
                _log(f"going on from the checkpoint at step {step:,}")
                return state
            _log(f"checkpoint {step:,} is damaged and left aside ({damage})", logging.WARNING)
        if steps:
            raise InputError(
                f"none of {len(steps)} checkpoints in {self.folder} can be read; "
                "restore them from a copy, or name a new `workdir`"
            )
        return None

    def _try_restore(self, step: int, target: TrainState) -> tuple[TrainState | None, str]:
        """Returns (state, ""), or (None, what is wrong) if any process cannot read its part."""
        state, damage = None, ""
        try:
            state = self.restore(step, target)
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            damage = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if multihost_utils.process_allgather(np.asarray(state is not None)).all():
            return state, ""
        return None, damage or "another process cannot read it"

    def _rename_damaged(self, steps: Sequence[int]) -> None:
        """Renames damaged checkpoints: their steps may be reached, and saved, again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                remove(self.folder / f"{DAMAGED}{step}")
                os.replace(self.folder / str(step), self.folder / f"{DAMAGED}{step}")
        multihost_utils.process_allgather(np.asarray(True))
        self._checkpointer.reload()

    def _remove_superseded(self) -> None:
        """Removes checkpoints beyond those to keep, also what a killed process did not get to."""
        found = self._checkpointer.checkpoints
        context = ocp.training.preservation_policies.PreservationContext()
        kept = self._preservation.should_preserve(found, context=context)
        superseded = {
            str(each.step) for each, is_kept in zip(found, kept, strict=True) if not is_kept
        }
        _remove_all([path for path in self.folder.iterdir() if path.name in superseded])

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Returns the state saved at `step`, placed like `target`, see state.abstract_state.

        Raises:
          InputError: the checkpoint is of another model or optimizer.
        """
        saved = self._checkpointer.checkpointables_metadata(step).metadata
        _require_shapes(step, saved["params"], target)
        items = {"params": target.params, "optimizer": target.optimizer}
        if target.loss_scale is not None and "loss_scale" in saved:
            items["loss_scale"] = target.loss_scale
        loaded = self._checkpointer.load_checkpointables(step, items)
        if target.loss_scale is not None and "loss_scale" not in saved:
            # The part of the run before this one computed in a format that needs no scaling.
            placed = jax.tree.map(lambda leaf: leaf.sharding, target.loss_scale)
            loaded["loss_scale"] = jax.device_put(initial_loss_scale(), placed)
        count = jax.device_put(jnp.asarray(step, jnp.int32), target.step.sharding)
        return TrainState(step=count, **loaded)


def _remove_unfinished(folder: Path) -> None:
    """Removes what a killed process was writing, or renames it at least, as Orbax uses the name."""
    renamed = []
    for path in folder.glob(f"*{_UNFINISHED}") if jax.process_index() == 0 else ():
        renamed.append(folder / f"{secrets.token_hex(4)}{_UNFINISHED}")
        with writing(path):
            os.replace(path, renamed[-1])
    _remove_all(renamed)


def _remove_all(paths: Sequence[Path]) -> None:
    """Removes folders, in the first process; what cannot be removed now takes space, no more."""
    if jax.process_index() == 0:
        for path in paths:
            with contextlib.suppress(OSError):
                remove(path)


def _require_shapes(step: int, saved: object, target: TrainState) -> None:
    shapes = {jax.tree_util.keystr(p): leaf.shape for p, leaf in _leaves(saved)}
    wanted = {jax.tree_util.keystr(p): leaf.shape for p, leaf in _leaves(target.params)}
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise ValueError(f"its list of weights lacks {missing[0]}")
    wrong = [name for name in wanted if shapes[name] != wanted[name]]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"the checkpoint at step {step} has {name} of shape {shapes[name]}, but "
            f"`config.model` asks for {wanted[name]}; name a new `workdir`, or the "
            "configuration the run was started with"
        )


def _log(message: str, level: int = logging.INFO) -> None:
    if jax.process_index() == 0:
        logger.log(level, message)


def _preservation(
    config: CheckpointConfig,
) -> ocp.training.preservation_policies.PreservationPolicy:
    policies = ocp.training.preservation_policies
    newest = policies.LatestN(config.keep)
    if not config.keep_every_steps:
        return newest
    return policies.AnyPreservationPolicy([newest, policies.EveryNSteps(config.keep_every_steps)])


def _leaves(tree: object) -> list[tuple[tuple[object, ...], jax.ShapeDtypeStruct]]:
    return jax.tree_util.tree_leaves_with_path(tree)
