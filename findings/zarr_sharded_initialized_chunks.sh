#!/usr/bin/env bash
# zarr: a sharded array counts more chunks as written than it has, and chunks of zeros as missing.
#
# AnnData stores that were written or copied in part read as zeros where chunks are missing, so one
# compares `nchunks_initialized` with `nchunks` before trusting a store.
# Expected: both are equal for an array that was written whole, whatever its values and its shards.
# Seen: with shards every shard counts as full, also the last one that reaches past the end of the
# array (8 of 5 chunks), and one written chunk counts for all of its shard (10 of 50). An array that
# holds zeros alone counts 0 of 50, since such chunks are not stored. The comparison can therefore
# neither prove nor refute that a store is whole. The same with zarr 3.4.2 on Python 3.13.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "zarr==3.1.6" "numpy==2.4.6"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import numpy as np
import zarr

print("zarr", zarr.__version__)


def count(name, size, shard, written, value):
    array = zarr.create_array(
        f"{sys.argv[1]}/{name}.zarr", shape=(size,), chunks=(2,), shards=shard, dtype="int32"
    )
    array[:written] = np.full(written, value, "int32")
    print(f"{name}: nchunks {array.nchunks}, nchunks_initialized {array.nchunks_initialized}")
    return array.nchunks, array.nchunks_initialized


assert count("plain", 10, None, 10, 1) == (5, 5)
assert count("sharded_and_whole", 10, (8,), 10, 1) == (5, 8)
assert count("sharded_and_one_chunk", 100, (20,), 2, 1) == (50, 10)
assert count("whole_of_zeros", 100, (20,), 100, 0) == (50, 0)
PYTHON
