"""Times tokenising side by side with the original's way: one JSON line per case.

    python benchmarks/tokenization.py [--cells=200000] [--repeats=5] [--folder=DIR]

(Not tokenize.py: a script of that name would hide the standard library module from its neighbours.)

Three groups of cases:
  encode  the encoding alone, against the original's way (per cell: normalise, nonzero, argsort,
          map; 512 cells at a time), for cells of several sizes; tokens are compared
  door    reading, encoding and writing a whole file, against merely reading the same file's arrays
          with h5py; each in a process of its own, with its peak memory
  store   records written and read per second
Times are medians over interleaved repeats: wall clock, and CPU seconds of all threads.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from absl import app, flags
from scipy import sparse

from geneformer_jax.cells.cell_store import CellStore
from geneformer_jax.cells.rank_encoding import RankEncodings, encode_counts, gene_columns
from geneformer_jax.cells.store_building import Reading, StoreBuild
from geneformer_jax.cells.store_writer import begin_store, join_sources, write_source
from geneformer_jax.cells.tokenization import Recipe
from geneformer_jax.cells.vocabulary import GeneVocabulary

CELLS = flags.DEFINE_integer("cells", 200_000, "cells of the large generated file")
REPEATS = flags.DEFINE_integer("repeats", 5, "measurements of each case", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", "", "where files are written; a temporary folder if empty")
GENES = 20_000
MAX_LENGTH = 2048
CHUNK = 512
# genes per cell: cells
CELL_SIZES = {500: 4000, 2000: 2000, 20_000: 100}


def make_vocabulary():
    rng = np.random.default_rng(0)
    ids = np.array([f"ENSG{n:011d}" for n in range(GENES)])
    return GeneVocabulary(ids, np.full(GENES, ""), rng.lognormal(1.0, 0.6, GENES))


def make_counts(rng, cells, genes_per_cell):
    """Counts with a heavy-tailed gene frequency, as in real cells."""
    weights = rng.lognormal(0, 1.5, GENES)
    counts = []
    for n in rng.poisson(genes_per_cell, cells).clip(1, GENES):
        columns = np.sort(rng.choice(GENES, n, replace=False, p=weights / weights.sum()))
        counts.append((columns, 1 + rng.poisson(weights[columns] * 0.3)))
    indptr = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in counts])])
    indices = np.concatenate([columns for columns, _ in counts]).astype(np.int32)
    data = np.concatenate([values for _, values in counts]).astype(np.int32)
    return sparse.csr_matrix((data, indices, indptr), shape=(cells, GENES))


def encode_originals_way(counts, totals, tokens, medians):
    """The published method in numpy: scaled in chunks, each cell's non-zero values sorted."""
    rows = []
    for start in range(0, counts.shape[0], CHUNK):
        part = counts[start : start + CHUNK]
        part = part.multiply(1 / totals[start : start + CHUNK, None]).tocsr() * 10_000
        part = part.multiply(1 / medians[None]).tocsr()
        for cell in range(part.shape[0]):
            row = part[cell]
            rows.append(tokens[row.indices[np.argsort(-row.data)]][:MAX_LENGTH])
    return rows


def measure(function, repeats):
    """Median wall and CPU seconds of functions by name, interleaved."""
    seconds = {name: ([], []) for name in function}
    for _ in range(repeats):
        for name, call in function.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            seconds[name][0].append(time.perf_counter() - wall)
            seconds[name][1].append(time.process_time() - cpu)
    return {name: tuple(map(statistics.median, both)) for name, both in seconds.items()}


def encode_cases(vocabulary):
    rng = np.random.default_rng(1)
    tokens = np.arange(GENES) + vocabulary.first_gene_token
    columns = gene_columns(tokens, vocabulary, MAX_LENGTH)
    for genes, cells in CELL_SIZES.items():
        counts = make_counts(rng, cells, genes)
        totals = np.asarray(counts.sum(1), dtype=float).ravel()
        original = encode_originals_way(counts, totals, tokens, vocabulary.medians)
        ours = encode_counts(counts, totals, columns)
        same = [
            np.array_equal(ours.tokens[start:stop], row)
            for row, start, stop in zip(original, ours.offsets, ours.offsets[1:], strict=False)
        ]
        functions = {
            "original": lambda c=counts, t=totals: encode_originals_way(
                c, t, tokens, vocabulary.medians
            ),
            "1 thread": lambda c=counts, t=totals: encode_counts(c, t, columns, threads=1),
            "2 threads": lambda c=counts, t=totals: encode_counts(c, t, columns, threads=2),
        }
        result = measure(functions, REPEATS.value)
        for name, (wall, cpu) in result.items():
            yield {
                "case": "encode",
                "genes_per_cell": genes,
                "way": name,
                "cells_per_s": round(cells / wall),
                "cells_per_cpu_s": round(cells / cpu),
                "times_original_wall": round(result["original"][0] / wall, 2),
                "times_original_cpu": round(result["original"][1] / cpu, 2),
                "cells_with_identical_tokens": f"{sum(same)} of {cells}",
            }


def write_file(path, cells, genes_per_cell, compression):
    rng = np.random.default_rng(2)
    # A few thousand distinct cells, repeated: making them takes longer than tokenising them.
    block = make_counts(rng, min(cells, 4000), genes_per_cell)
    counts = sparse.vstack([block] * -(-cells // block.shape[0])).tocsr()[:cells]
    obs = pd.DataFrame(index=[f"cell{n}" for n in range(cells)])
    obs["n_counts"] = np.asarray(counts.sum(1), dtype=float).ravel()
    var = pd.DataFrame(index=[f"ENSG{n:011d}" for n in range(GENES)])
    anndata.AnnData(counts, obs=obs, var=var).write_h5ad(path, compression=compression)


def read_arrays(path):
    """Merely reads: the matrix's arrays, by the same number of cells at a time."""
    with h5py.File(path) as file:
        indptr = file["X/indptr"][:]
        for start in range(0, len(indptr) - 1, 4096):
            first, last = indptr[start], indptr[min(start + 4096, len(indptr) - 1)]
            file["X/data"][first:last], file["X/indices"][first:last]


def tokenize_file(path, vocabulary_folder, output):
    build = StoreBuild(
        output, GeneVocabulary.load(vocabulary_folder), Recipe(MAX_LENGTH), Reading(), []
    )
    build.survey([path])
    build.write()
    list(build.finish({}))


def peak_mib():
    """Of this process alone; `getrusage` would tell that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def one_door_run(way, path, vocabulary_folder, output):
    """Runs in a process of its own; a first small file compiles what needs compiling."""
    work = {
        "read": lambda file, _: read_arrays(file),
        "door": lambda file, store: tokenize_file(file, vocabulary_folder, store),
    }[way]
    work(path.with_name("warmup.h5ad"), output.with_name(output.name + "-warmup"))
    wall, cpu = time.perf_counter(), time.process_time()
    work(path, output)
    result = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak_mib": peak_mib(),
    }
    print(json.dumps(result))


def door_cases(folder, vocabulary):
    vocabulary.save(folder / "vocabulary")
    write_file(folder / "warmup.h5ad", 20, 100, None)
    sizes = [(3000, 500), (3000, 2000), (300, 20_000), (CELLS.value, 500)]
    for cells, genes in sizes:
        for compression in (None, "gzip"):
            path = folder / "counts.h5ad"
            write_file(path, cells, genes, compression)
            runs = {"read": [], "door": []}
            for repeat in range(REPEATS.value):
                for way, results in runs.items():
                    output = folder / f"store-{cells}-{genes}-{compression}-{repeat}"
                    command = [sys.executable, __file__, "--one", way, path, output]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    results.append(json.loads(done.stdout.splitlines()[-1]))
            read = statistics.median(run["wall"] for run in runs["read"])
            for way, results in runs.items():
                wall = statistics.median(run["wall"] for run in results)
                yield {
                    "case": "door",
                    "cells": cells,
                    "genes_per_cell": genes,
                    "compression": compression,
                    "file_mib": round(path.stat().st_size / 2**20, 1),
                    "way": way,
                    "cells_per_s": round(cells / wall),
                    "cpu_s": round(statistics.median(run["cpu"] for run in results), 3),
                    "share_of_reading_speed": round(read / wall, 3),
                    "peak_mib": round(statistics.median(run["peak_mib"] for run in results)),
                }


def store_cases(folder, vocabulary):
    rng = np.random.default_rng(3)
    cells = min(50_000, CELLS.value)
    lengths = np.minimum(rng.lognormal(6.9, 0.6, cells).astype(int), MAX_LENGTH)
    tokens = rng.integers(2, vocabulary.size, lengths.sum()).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.array([f"cell{n}" for n in range(cells)], dtype=object)
    seconds = []
    for repeat in range(REPEATS.value):
        output = folder / f"records-{repeat}"
        begin_store(output, {"max_length": MAX_LENGTH}, {})
        start = time.perf_counter()
        with write_source(output, "made-up", {}) as writer:
            writer.write(RankEncodings(tokens, offsets), ids, pd.DataFrame(index=ids))
            writer.finish({"path": "made-up"})
        seconds.append(time.perf_counter() - start)
        join_sources(output, ["made-up"], vocabulary, {})
    rate = cells / statistics.median(seconds)
    yield {"case": "store", "what": "write", "cells": cells, "cells_per_s": round(rate)}
    store = CellStore.open(output)
    store.read([0])
    for batch in (1, 16, 64, 256, 1024):
        count = 200 if batch == 1 else 8192 // batch
        picks = rng.integers(0, cells, (count, batch))
        reading = measure({"read": lambda p=picks: [store.read(pick) for pick in p]}, REPEATS.value)
        rate = picks.size / reading["read"][0]
        yield {"case": "store", "what": "random reads", "batch": batch, "cells_per_s": round(rate)}


def main(_):
    vocabulary = make_vocabulary()
    with tempfile.TemporaryDirectory(dir=FOLDER.value or None) as folder:
        for cases in (
            encode_cases(vocabulary),
            store_cases(Path(folder), vocabulary),
            door_cases(Path(folder), vocabulary),
        ):
            for case in cases:
                print(json.dumps(case), flush=True)


if __name__ == "__main__":
    if "--one" in sys.argv:
        way, path, output = sys.argv[-3:]
        one_door_run(way, Path(path), Path(path).with_name("vocabulary"), Path(output))
    else:
        app.run(main)
