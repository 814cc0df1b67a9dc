#!/usr/bin/env bash
# anndata 0.13: iterating over `adata.layers` yields a layer that nobody added, named None: X.
#
# Expected: `list(adata.layers)` names the layers that were added, as it did in 0.12, and X stands
# beside them. Loops such as "write every layer" or "find the layer that holds raw counts" rest on it.
# Seen: None is the first key where there is an X, and counts in `len`. A file with X and one layer
# has two, names sorted as text fail, and f"layers/{name}" makes a layer called "None". Without an X
# there is no such key. Files are as before: the h5ad holds no layer None.
# Needs Python 3.12 or newer. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "anndata==0.13.4"
"$folder/venv/bin/python" - "$folder/cells.h5ad" <<'PYTHON'
import sys
from importlib.metadata import version

import anndata
import h5py
import numpy as np

print("anndata", version("anndata"))
cells = anndata.AnnData(np.ones((3, 2), np.float32))
cells.layers["counts"] = cells.X.copy()
print("with X:", list(cells.layers), "len", len(cells.layers))
assert list(cells.layers) == [None, "counts"] and len(cells.layers) == 2

cells.write_h5ad(sys.argv[1])
with h5py.File(sys.argv[1]) as file:
    print("in the file:", list(file["layers"]))
    assert list(file["layers"]) == ["counts"]

del cells.X
print("without X:", list(cells.layers))
assert list(cells.layers) == ["counts"]
PYTHON
