#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a checkpoint in a folder with brackets in its path cannot be read again.
#
# Folders are named by people ("run [1]", "[lab] data"), and a path is given as it is.
# Expected: what is saved there is loaded, or saving fails.
# Seen: saving ends well, with a warning in the log ("Skipping merge of OCDBT checkpoints"), and
# loading says that no handler fits. Orbax joins what each process wrote by `directory.glob(...)`,
# and etils takes the folder's own path for part of the pattern, in which [1] stands for a letter; so
# nothing is found, and no joined checkpoint is written. A run trains to its end and has none.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "orbax-checkpoint==0.12.8" "jax==0.10.2" "numpy==2.4.6"
cat > "$folder/brackets.py" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from orbax.checkpoint import v1 as ocp

print("orbax-checkpoint", version("orbax-checkpoint"))
read = {}
for name in ("run (1)", "run [1]"):
    path = Path(sys.argv[1], name)
    ocp.save_checkpointables(path, {"params": {"weights": np.arange(3.0)}})
    try:
        read[name] = ocp.load_checkpointables(path)["params"]["weights"].tolist()
    except Exception as error:
        read[name] = f"{type(error).__name__}: {error}"[:90]
    print(f"{name}: {read[name]}")
right = [name for name, each in read.items() if each == [0, 1, 2]]
print("as expected here" if right == ["run (1)"] else "changed")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/brackets.py" "$folder" | tee "$folder/told"
test "$(tail -n 1 "$folder/told")" = "as expected here"
