#!/usr/bin/env bash
# zarr 3.1.0 to 3.1.2: an array that is created with its data in shards keeps some of it alone.
#
# Stores of cells in Zarr format 3 pack many small chunks into shards, and `create_array` takes the
# data along with the layout, so one writes counts with one call and reads them anywhere.
# Expected: the array reads as what it was given, as one does that is assigned after its creation.
# Seen with 3.1.2: no error, and most values read as zero, also with a later zarr: chunks of one
# shard are written at the same time, each over the others, so that few of a shard are left, and
# others each time. Assigned (`array[:] = data`) all is there. With 3.1.3 both are whole.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/shards.py" <<'PYTHON'
import sys

import numpy as np
import zarr

counts = np.arange(1, 101)
layout = {"chunks": (10,), "shards": (50,)}
group = zarr.open_group(sys.argv[1], mode="w", zarr_format=3)
created = group.create_array("created", data=counts, **layout)
assigned = group.create_array("assigned", shape=counts.shape, dtype=counts.dtype, **layout)
assigned[:] = counts
for array in (created, assigned):
    print(f"zarr {zarr.__version__} {array.basename}: {(array[:] == counts).sum()} of 100 are there")
print((created[:] == counts).sum() < 100, (assigned[:] == counts).all())
PYTHON
for version in 3.1.2 3.1.3; do
  "${PYTHON:-python3}" -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet "zarr==$version" "numpy==2.3.5" "numcodecs==0.16.5"
  "$folder/venv/bin/python" "$folder/shards.py" "$folder/$version.zarr" | tee "$folder/told"
  case $version in 3.1.2) expected="True True" ;; *) expected="False True" ;; esac
  test "$(tail -n 1 "$folder/told")" = "$expected"
  rm -rf "$folder/venv"
done
