#!/usr/bin/env bash
# tiledbsoma: a dictionary column loses its values if a data frame is filled in the session that made
# it inside a collection.
#
# A small Census or experiment is made by `Collection.create`, `add_new_dataframe` and `write`, all
# before the collection is closed. obs of a Census has dictionary columns (assay, tissue, disease).
# Expected: the table that is read back equals the one that was written, or `write` refuses.
# Seen: `write` says nothing, the codes are there, and the dictionary is empty: pyarrow calls the
# table invalid, and taking a value is refused as out of bounds. A plain column beside it is
# right. Made by `DataFrame.create` and put into the collection by `set`, or filled after the
# collection was closed and opened again, both columns are right.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "tiledbsoma==2.3.0" "pyarrow==26.0.1"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import pyarrow as pa
import tiledbsoma as soma

folder = sys.argv[1]
print("tiledbsoma", soma.__version__, "pyarrow", pa.__version__)
table = pa.table(
    {
        "soma_joinid": pa.array([0, 1, 2], pa.int64()),
        "plain": pa.array(["x", "y", "x"], pa.large_string()),
        "coded": pa.array(["a", "b", "a"]).dictionary_encode(),
    }
)
options = {"schema": table.schema, "domain": [[0, 2]]}


def in_one_session(path):
    with soma.Collection.create(path) as made:
        made.add_new_dataframe("obs", **options).write(table)


def opened_again(path):
    with soma.Collection.create(path) as made:
        made.add_new_dataframe("obs", **options)
    with soma.Collection.open(path, "w") as made:
        made["obs"].write(table)


def put_in(path):
    with soma.DataFrame.create(f"{path}_obs", **options) as obs:
        obs.write(table)
    with soma.Collection.create(path) as made:
        made.set("obs", soma.DataFrame.open(f"{path}_obs"), use_relative_uri=False)


def read(write):
    path = f"{folder}/{write.__name__}"
    write(path)
    with soma.Collection.open(path) as made:
        found = made["obs"].read().concat()
    assert found["plain"].to_pylist() == ["x", "y", "x"]
    try:
        values = found["coded"].to_pylist()
    except (pa.ArrowException, IndexError) as error:
        values = f"{type(error).__name__}: {error}"
    print(f"{write.__name__}: {values}")
    return values


assert read(put_in) == ["a", "b", "a"]
assert read(opened_again) == ["a", "b", "a"]
lost = read(in_one_session)
assert isinstance(lost, str) and lost.startswith("ArrowIndexError")
PYTHON
