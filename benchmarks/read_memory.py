"""Shows that memory does not grow with the file of counts: a JSON line per case.

    python benchmarks/read_memory.py [--megabytes=300,1500] [--limit=700] [--folder=DIR]
        [--cells=20000,200000,1000000]

Each file is generated, read (or tokenised: way "command") by a process of its own, and deleted.
Files of --megabytes have cells of 2,000 genes. Those of --cells (case many-command) have cells of
20 genes, ids of 36 letters and two obs columns: what is kept for each cell shows there. One that
reads may take no more than --limit MB of address space on top of what its imports took; the
ArrayRecord library waits for ever where address space ends, so that of the command only the peak is
reported. `peak_mb` is the growth of the largest resident set meanwhile. `seconds` is our time,
`plain_seconds` is the file's arrays read with h5py alone in the same slices, in the same process,
afterwards.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from absl import app, flags
from anndata.io import write_elem

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary

MEGABYTES = flags.DEFINE_list("megabytes", ["300", "1500"], "sizes of the files")
LIMIT = flags.DEFINE_integer("limit", 700, "MB of address space that reading may add")
CELLS = flags.DEFINE_list("cells", ["20000", "200000", "1000000"], "cells of the files of many")
CASES = flags.DEFINE_list(
    "cases", ["csr-read", "csc-read", "csr-command", "many-command"], "layout and way"
)
FOLDER = flags.DEFINE_string("folder", tempfile.gettempdir(), "where files are generated")
GENES, GENES_PER_CELL = 20_000, 2_000
FEW_GENES, FEW_GENES_PER_CELL = 200, 20
OBS = ["donor", "age"]
BYTES_PER_ENTRY = 8
SLICE = 1 << 23


def generate(path: Path, layout: str, size: int) -> None:
    """Writes a sparse h5ad of int32 counts, major axis by major axis, without holding it.

    Args:
      path: of the file.
      layout: "csr", "csc", or "many" for a CSR matrix of few genes.
      size: megabytes, for "many" the number of cells.
    """
    many = layout == "many"
    genes, per_cell = (FEW_GENES, FEW_GENES_PER_CELL) if many else (GENES, GENES_PER_CELL)
    cells = size if many else size * 1_000_000 // (per_cell * BYTES_PER_ENTRY)
    layout = "csr" if many else layout
    major, minor = (cells, genes) if layout == "csr" else (genes, cells)
    per_major = per_cell * cells // major
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(index=[f"sample-of-some-study_{n:015d}" for n in range(cells)])
    obs["donor"] = pd.Categorical.from_codes(rng.integers(0, 9, cells), [f"d{n}" for n in range(9)])
    obs["age"] = rng.normal(50, 20, cells)
    var = pd.DataFrame(index=[f"ENSG{n:011d}" for n in range(genes)])
    anndata.AnnData(obs=obs, var=var).write_h5ad(path)
    with h5py.File(path, "r+") as root:
        group = root.create_group("X")
        group.attrs.update(
            {"encoding-type": f"{layout}_matrix", "encoding-version": "0.1.0"},
            shape=np.array([cells, genes]),
        )
        options = {"shape": (major * per_major,), "dtype": np.int32, "chunks": (1 << 16,)}
        data = group.create_dataset("data", **options)
        indices = group.create_dataset("indices", **options)
        write_elem(group, "indptr", np.arange(major + 1, dtype=np.int64) * per_major)
        step = max(SLICE // per_major, 1)
        for start in range(0, major, step):
            n = min(step, major - start)
            # Distinct and ascending: one index in each of `per_major` equal strides.
            stride = minor // per_major
            drawn = rng.integers(0, stride, (n, per_major)) + np.arange(per_major) * stride
            at = slice(start * per_major, (start + n) * per_major)
            indices[at] = drawn.ravel()
            data[at] = rng.integers(1, 20, n * per_major)


def resident_mb(which: str) -> float:
    """VmRSS (now) or VmHWM (largest so far); ru_maxrss would count what the parent took."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == which:
            return int(value.split()[0]) / 1e3
    raise KeyError(which)


def read(path: Path) -> dict[str, float]:
    source = open_counts(path)
    counts = entries = 0
    for batch in source.batches():
        counts += float(batch.totals.sum())
        entries += batch.counts.nnz
    return {"cells": source.n_cells, "entries": entries, "counts": counts}


def tokenize(path: Path) -> dict[str, float]:
    ids = np.array([f"ENSG{n:011d}" for n in range(GENES)])
    vocabulary = GeneVocabulary(ids, np.full(GENES, ""), np.ones(GENES))
    build = StoreBuild(
        path.with_name("store"), vocabulary, TokenizerOptions(2048), CountOptions(), OBS
    )
    build.survey([path])
    build.write()
    return {"stored": build.finish({})["cells"]}


def within(limit_mb: int, way: str, path: Path, answer: multiprocessing.Queue) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + limit_mb * 1_000_000
    if way == "read":
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # Makes VmHWM start again from what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident_mb("VmRSS"), time.perf_counter()
    result = {
        **(tokenize if way == "command" else read)(path),
        "peak_mb": round(resident_mb("VmHWM") - before),
        "seconds": round(time.perf_counter() - began, 2),
    }
    began = time.perf_counter()
    with h5py.File(path, "r") as root:
        for start in range(0, root["X/data"].shape[0], SLICE):
            for name in ("X/data", "X/indices"):
                root[name][start : start + SLICE]
    answer.put({**result, "plain_seconds": round(time.perf_counter() - began, 2)})


def main(_: list[str]) -> None:
    processes = multiprocessing.get_context("spawn")
    for layout, way in [case.split("-") for case in CASES.value]:
        for size in CELLS.value if layout == "many" else MEGABYTES.value:
            with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
                path = Path(folder) / "counts.h5ad"
                generate(path, layout, int(size))
                answer = processes.Queue()
                arguments = (LIMIT.value, way, path, answer)
                reader = processes.Process(target=within, args=arguments)
                reader.start()
                reader.join()
                case = {"layout": layout, "way": way, "size": int(size)}
                case["file_mb"] = round(path.stat().st_size / 1e6)
                done = answer.get() if reader.exitcode == 0 else {"failed": reader.exitcode}
                print(json.dumps({**case, "limit_mb": LIMIT.value, **done}), flush=True)


if __name__ == "__main__":
    app.run(main)
