#!/usr/bin/env bash
# jax, persistent compilation cache: an entry that a killed process left half written stays for ever.
#
# Entries are written in place, and one that is there is never written again.
# Expected: a torn entry is compiled anew and replaced, as other caches of programs do; or it never
# shows, written aside and renamed.
# Seen: every later process warns that it cannot read the entry, compiles the program again, and leaves
# the torn entry as it is. A program that takes minutes takes them in each run from then on, and a
# second process may read what a first is just writing. Removing the entry helps.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2"
export JAX_COMPILATION_CACHE_DIR="$folder/cache" JAX_PLATFORMS=cpu
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
"$folder/venv/bin/python" - <<'PYTHON'
import os
import pathlib
import warnings

import jax
import jax.numpy as jnp

print("jax", jax.__version__)
cells = jnp.ones(3)


def compile_again():
    jax.clear_caches()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        jax.jit(lambda x: jnp.sin(x) * 2)(cells)
    return [str(each.message) for each in told]


compile_again()
(entry,) = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("jit__lambda*-cache")
size = entry.stat().st_size
assert not compile_again(), "a whole entry is read without a word"
entry.write_bytes(entry.read_bytes()[: size // 2])
for run in range(3):
    (told,) = compile_again()
    print(f"{entry.stat().st_size} of {size} bytes; {told}")
    assert "Error reading persistent compilation cache entry" in told
    assert entry.stat().st_size == size // 2, "the torn entry was replaced"
PYTHON
