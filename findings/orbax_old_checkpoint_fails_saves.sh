#!/usr/bin/env bash
# orbax-checkpoint, v1: where a superseded checkpoint cannot be removed, saving newer ones fails.
#
# `training.Checkpointer` removes what its preservation policy does not keep. A checkpoint may be hard
# to remove: somebody protects it to look at it later, or reads it over NFS, which leaves files of its
# own in the folder as long as they are open.
# Expected: the newer checkpoint is saved; that the old one stays is logged, and tried again later.
# Seen: the first save after that raises PermissionError, although its checkpoint is whole on disk. The
# next save raises the error again, and of it there is no checkpoint. The one after it is saved;
# none of those before it is removed any more. (In the background the same comes out at `wait`.)
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "orbax-checkpoint==0.12.8" "jax==0.10.2" "numpy==2.4.6"
mkdir "$folder/work"
"$folder/venv/bin/python" - "$folder" 2> "$folder/log" <<'PYTHON' || { tail -n 20 "$folder/log"; exit 1; }
import os
import sys
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

print("orbax-checkpoint", version("orbax-checkpoint"))
run = Path(sys.argv[1]) / "work" / "run"
run.mkdir()
if os.geteuid() == 0:
    # Nothing is protected from root.
    os.chmod(sys.argv[1], 0o755)
    os.chown(run, 65534, 65534)
    os.setegid(65534)
    os.seteuid(65534)
newest = ocp.training.preservation_policies.LatestN(1)
checkpointer = ocp.training.Checkpointer(run, preservation_policy=newest)
outcomes, there = [], []
for step in range(4):
    try:
        checkpointer.save_checkpointables(step, {"weights": jnp.full(8, step)})
        outcomes.append("saved")
    except PermissionError:
        outcomes.append("PermissionError")
    there.append((run / str(step)).is_dir())
    if step == 0:
        os.chmod(run / "0", 0o555)
checkpointer.close()
left = sorted(os.listdir(run))
with ocp.training.Checkpointer(run) as again:
    whole = again.load_checkpointables(1, {"weights": jnp.zeros(8, jnp.int32)})["weights"]
print("the four saves:", outcomes, "on disk after each:", there, "left:", left)
print("checkpoint 1 holds", whole)
assert outcomes == ["saved", "PermissionError", "PermissionError", "saved"]
assert there == [True, True, False, True]
assert left == ["0", "1", "3"]
assert (whole == 1).all()
PYTHON
