#!/usr/bin/env bash
# orbax-checkpoint, v1: a save in the background whose response nobody asks for its result leaves a
# thread and its file handles for as long as the process lives.
#
# `training.Checkpointer.save_checkpointables_async` returns a response; the checkpointer waits for the
# save by itself before the next one, and on `wait` and `close`.
# Expected: after `wait`, and at the latest after `close`, the threads and handles of finished saves
# are gone, whether or not the responses were kept.
# Seen: each save leaves one thread, asleep, and three handles. They are gone only if `.result()` of
# the response was called. A run that saves some 330 times meets the usual limit of 1,024 handles,
# long after anything points at its checkpoints.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "orbax-checkpoint==0.12.8" "jax==0.10.2" "numpy==2.4.6"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

SAVES = 12
print("orbax-checkpoint", version("orbax-checkpoint"))


def left_by(folder, ask_for_result):
    """Returns (threads, handles) more after all saves than after the first two."""
    held = []
    with ocp.training.Checkpointer(
        Path(folder), preservation_policy=ocp.training.preservation_policies.LatestN(2)
    ) as checkpointer:
        for step in range(SAVES):
            response = checkpointer.save_checkpointables_async(step, {"weights": jnp.ones(8)})
            if ask_for_result:
                response.result()
            checkpointer.wait()
            held.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    held.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    return [last - first for first, last in zip(held[1], held[-2], strict=True)]


asked = left_by(f"{sys.argv[1]}/asked", True)
left = left_by(f"{sys.argv[1]}/left", False)
print(f"threads and handles after {SAVES - 2} more saves: {asked} with result(), {left} without")
assert max(asked) <= 2
assert left[0] >= SAVES - 3 and left[1] >= 3 * (SAVES - 3)
PYTHON
