"""Checkpoints of a run: weights, optimizer state and the model's description, side by side.

A checkpoint is a folder named by its step. Weights are an item of their own (`params`), so that
nothing but training ever reads the optimizer's state.
"""

from pathlib import Path
from types import TracebackType

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from geneformer_jax.common.errors import InputError
from geneformer_jax.training.config import CheckpointConfig
from geneformer_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run; a context manager that finishes writing when left."""

    def __init__(self, folder: Path, config: CheckpointConfig, description: dict[str, str]):
        """Opens, or begins, a folder of checkpoints.

        Args:
          folder: where they are.
          config: which of them stay.
          description: texts that go with every checkpoint, see model.pretrained.describe_model.
        """
        self._description = description
        training = ocp.training
        self._checkpointer = training.Checkpointer(
            folder.resolve(),
            # The loop decides when to save; whatever it hands over is saved.
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_preservation(config),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._checkpointer.close()

    @property
    def newest(self) -> int | None:
        """Step of the newest whole checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def wait(self) -> None:
        """Returns when all that was handed over is on disk."""
        self._checkpointer.wait()

    def save(self, step: int, state: TrainState) -> None:
        """Saves in the background; the state may be donated to the next step at once."""
        if self.newest == step:
            return
        items = {
            "params": state.params,
            "optimizer": state.optimizer,
            # An array among the texts: orbax warns of an item that has none.
            "meta": {**self._description, "step": np.asarray(step)},
        }
        if state.loss_scale is not None:
            items["loss_scale"] = state.loss_scale
        self._checkpointer.save_checkpointables_async(step, items)

    def restore_newest(self, target: TrainState) -> TrainState | None:
        """Returns the newest state that can be read, or None if there is no checkpoint.

        A damaged checkpoint is named and the one before it is used.

        Raises:
          InputError: checkpoints are of another model, or none can be read.
        """
        steps = sorted((each.step for each in self._checkpointer.checkpoints), reverse=True)
        for step in steps:
            try:
                state = self.restore(step, target)
            except InputError:
                raise
            except (OSError, KeyError, ValueError) as error:
                reason = str(error).splitlines()[0][:200]
                print(f"checkpoint {step:,} is damaged and left aside ({reason})", flush=True)
                # Its number may be reached again, and a checkpoint is never overwritten.
                self._checkpointer.delete(step)
                continue
            if jax.process_index() == 0:
                print(f"going on from the checkpoint at step {step:,}", flush=True)
            return state
        if steps:
            raise InputError(
                f"none of {len(steps)} checkpoints in {self._checkpointer.directory} can be read; "
                "restore them from a copy, or name a new --workdir"
            )
        return None

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Returns the state saved at `step`, placed as `target` (see state.abstract_state) says.

        Raises:
          InputError: the checkpoint is of another model or optimizer.
        """
        self._require_shapes(step, target)
        items = {"params": target.params, "optimizer": target.optimizer}
        if target.loss_scale is not None:
            items["loss_scale"] = target.loss_scale
        loaded = self._checkpointer.load_checkpointables(step, items)
        count = jax.device_put(jnp.asarray(step, jnp.int32), target.step.sharding)
        return TrainState(step=count, **loaded)

    def _require_shapes(self, step: int, target: TrainState) -> None:
        metadata = self._checkpointer.checkpointables_metadata(step)
        saved = metadata.metadata["params"]
        saved = {jax.tree_util.keystr(p): leaf.shape for p, leaf in _leaves(saved)}
        wanted = {jax.tree_util.keystr(p): leaf.shape for p, leaf in _leaves(target.params)}
        wrong = [name for name in wanted if saved.get(name) != wanted[name]]
        if wrong:
            name = wrong[0]
            raise InputError(
                f"the checkpoint at step {step} has {name} of shape {saved.get(name)}, but "
                f"--config.model asks for {wanted[name]}; name a new --workdir, or the "
                "configuration the run was started with"
            )


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
