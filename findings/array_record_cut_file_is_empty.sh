#!/usr/bin/env bash
# array_record 0.8.6: a file that lost its last byte opens as an empty one, without an error.
#
# Expected: opening (or num_records) fails, as the end of the file, which holds the index, is gone.
# Seen: num_records() is 0, at any cut from the first 64 KiB on. Only a read of a record complains,
# so a loop over range(num_records()) ends at once, and a data set is shorter by a shard.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "array_record==0.8.6"
"$folder/venv/bin/python" - "$folder/records" <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

path = Path(sys.argv[1])
writer = ArrayRecordWriter(str(path), "group_size:1")
for number in range(3_000):
    writer.write(f"record {number}".encode() * 40)
writer.close()
whole = path.read_bytes()
print("array_record", importlib.metadata.version("array_record"), f"{len(whole):,} bytes")
assert ArrayRecordReader(str(path)).num_records() == 3_000
for size in (len(whole) - 1, len(whole) // 2 // 65_536 * 65_536, 65_536):
    path.write_bytes(whole[:size])
    found = ArrayRecordReader(str(path)).num_records()
    print(f"cut to {size:,} bytes: opens, num_records() is {found}")
    assert found == 0, "a cut file is no longer taken for an empty one"
PYTHON
