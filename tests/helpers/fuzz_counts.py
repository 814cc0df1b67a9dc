"""Reads damaged count files, in a process of its own: a crash, a hang or absurd memory shows.

Usage: python fuzz_counts.py FOLDER CASES SEED. Prints one JSON line per case.
"""

import json
import random
import resource
import shutil
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import zarr
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions, ReadLimits
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.common.errors import InputError
from tests.helpers.count_files import WRITERS, example_cells

_SPARE_MEMORY = 2 << 30


def flip_bytes(data, rng):
    """Some bytes replaced by others."""
    for _ in range(rng.choice([1, 3, 20, 200])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def cut(data, rng):
    """The end is missing."""
    return data[: rng.randrange(len(data))]


def blank(data, rng):
    """A stretch of zeros, as after a crash of the file system."""
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 64, 512, 4096]))
    data[start:stop] = bytes(stop - start)
    return data


def move(data, rng):
    """Bytes shifted by a few that were lost or added."""
    at, length = rng.randrange(len(data)), rng.randrange(1, 9)
    if rng.random() < 0.5:
        return data[:at] + data[at + length :]
    return data[:at] + rng.randbytes(length) + data[at:]


def damage_bytes(path, rng):
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    file = rng.choice(files)
    if path.is_dir() and rng.random() < 0.1:
        file.unlink()
        return f"remove {file.name}"
    change = rng.choice([flip_bytes, cut, blank, move])
    file.write_bytes(change(bytearray(file.read_bytes() or b"\0"), rng))
    return f"{change.__name__} {file.name}"


def damage_arrays(path, rng):
    """An array of the container replaced by one that may not fit."""
    root = zarr.open_group(path, mode="r+") if path.is_dir() else h5py.File(path, "r+")
    names = [name for name in _arrays(root) if root[name].shape]
    name = rng.choice(names)
    array = root[name]
    values, attributes = array[...], dict(array.attrs)
    change = rng.choice(["shuffle", "shorten", "lengthen", "remove", "other", "float", "nan"])
    other = rng.choice(names)
    if change == "shuffle":
        np.random.default_rng(rng.randrange(1 << 30)).shuffle(values)
    elif change == "shorten":
        values = values[: len(values) // 2]
    elif change == "lengthen":
        values = np.concatenate([values, values])
    elif change == "other":
        values = root[other][...]
    elif change == "float" and values.dtype.kind in "iuf":
        values = values + 0.5
    elif change == "nan" and values.dtype.kind in "iuf":
        values = np.where(np.arange(values.size).reshape(values.shape) == 1, np.nan, values)
    del root[name]
    if change != "remove":
        if isinstance(root, h5py.File):
            root[name] = values
        else:
            root.create_array(name, data=values)
        root[name].attrs.update(attributes)
    if isinstance(root, h5py.File):
        root.close()
    return f"{change} {name}" + (f" by {other}" if change == "other" else "")


def _arrays(root):
    if isinstance(root, h5py.File):
        names = []
        root.visititems(lambda n, node: names.append(n) if isinstance(node, h5py.Dataset) else None)
        return sorted(names)
    members = root.members(max_depth=None)
    return sorted(name for name, node in members if isinstance(node, zarr.Array))


def plain_reading(path, kind):
    """Dense counts as h5py, zarr or scipy give them, with none of the code under test."""
    if "mtx" in kind:
        matrix = next(file for file in path.iterdir() if "matrix.mtx" in file.name)
        return scipy.io.mmread(matrix, spmatrix=False).toarray().T
    root = zarr.open_group(path, mode="r") if path.is_dir() else h5py.File(path, "r")
    if "loom" in kind:
        return root["matrix"][:].T
    if "10x" in kind:
        group = root["matrix"] if "matrix" in root else root["GRCh38"]
        return _added(group, group["shape"][:][::-1], "csr")
    if hasattr(root["X"], "keys"):
        return _added(root["X"], root["X"].attrs["shape"], root["X"].attrs["encoding-type"][:3])
    return root["X"][:]


def _added(group, shape, layout):
    data, indices, pointers = (group[name][:] for name in ("data", "indices", "indptr"))
    major = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
    dense = np.zeros(shape, dtype=np.float64)
    np.add.at(dense, (major, indices) if layout == "csr" else (indices, major), data)
    return dense


def outcome(path, kind):
    """("refused", message) or ("right" or "wrong", what)."""
    try:
        source = open_counts(path, CountOptions(limits=ReadLimits(probe_seconds=2)))
        batches = list(source.batches(20))
        source.obs()
    except InputError as error:
        return "refused", str(error)
    counts = sparse.vstack([batch.counts for batch in batches]).toarray()
    expected = plain_reading(path, kind)
    same = counts.shape == expected.shape and np.array_equal(counts, expected)
    return ("right" if same else "wrong"), f"{counts.shape} and {expected.shape}"


def main(folder, cases, seed):
    warnings.simplefilter("ignore")
    adata = example_cells()
    whole = {}
    for kind, write in WRITERS.items():
        (folder / kind).mkdir()
        whole[kind] = write(adata, folder / kind)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _SPARE_MEMORY, resource.RLIM_INFINITY))
    for case in range(cases):
        rng = random.Random(1000 * seed + case)
        kind = list(WRITERS)[case % len(WRITERS)]
        path = folder / f"case{case}{whole[kind].suffix}"
        copy = shutil.copytree if whole[kind].is_dir() else shutil.copyfile
        copy(whole[kind], path)
        arrays = "mtx" not in kind and rng.random() < 0.4
        print(json.dumps({"case": case, "kind": kind}), flush=True)
        what = (damage_arrays if arrays else damage_bytes)(path, rng)
        result, message = outcome(path, kind)
        line = {"case": case, "kind": kind, "damage": what, "result": result, "message": message}
        print(json.dumps(line), flush=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
