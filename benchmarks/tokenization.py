"""Times tokenising side by side with the original's way: one JSON line per case.

    python benchmarks/tokenization.py [--cells=200000] [--repeats=5] [--folder=DIR]
        [--real=pbmc3k.h5ad --dictionaries=DIR,DIR]

Not called tokenize.py on purpose: a script of that name would hide the standard library's module
from all that runs beside it.

Five groups of cases:
  encode  the encoding alone, against the original's way (per cell: normalise, nonzero, argsort,
          map; 512 cells at a time), for cells of several sizes; tokens are compared
  store   records written and read per second
  real    the whole command on real cells (--real, with obs column n_counts), with the original's
          vocabularies, against the original's whole way; each in a process of its own
  command reading, encoding and writing a whole file, against merely reading the same file's
          arrays with h5py; each in a process of its own, with its peak memory, on all cores and
          on one
  workers two files split among one or two processes (--shard), then joined
Times are medians over interleaved repeats: wall clock, and CPU seconds of all threads.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import original_tokenizer
import pandas as pd
from absl import app, flags
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.open import look_ahead
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.writer import begin_store, join_sources, write_source
from geneformer_jax.cells.tokenization.rank_encoding import (
    RankEncodings,
    encode_counts,
    gene_columns,
)
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions, default_max_length
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary

CELLS = flags.DEFINE_integer("cells", 200_000, "cells of the large generated file")
REPEATS = flags.DEFINE_integer("repeats", 5, "measurements of each case", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", "", "where files are written; a temporary folder if empty")
GROUPS = flags.DEFINE_list(
    "groups", ["encode", "store", "real", "command", "workers"], "what to time"
)
REAL = flags.DEFINE_string("real", "", "an .h5ad file of real cells with obs column n_counts")
DICTIONARIES = flags.DEFINE_list("dictionaries", [], "folders of the original's dictionaries")
GENES = 20_000
MAX_LENGTH = 2048
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
        originals = (tokens, vocabulary.medians, MAX_LENGTH)
        original = original_tokenizer.encode(counts, totals, *originals)
        ours = encode_counts(counts, totals, columns)
        same = [
            np.array_equal(ours.tokens[start:stop], row)
            for row, start, stop in zip(original, ours.offsets, ours.offsets[1:], strict=False)
        ]
        functions = {
            "original": lambda c=counts, t=totals, o=originals: original_tokenizer.encode(c, t, *o),
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


def write_file(path, cells, genes_per_cell, compression, name="cell"):
    rng = np.random.default_rng(2)
    # A few thousand distinct cells, repeated: making them takes longer than tokenising them.
    block = make_counts(rng, min(cells, 4000), genes_per_cell)
    counts = sparse.vstack([block] * -(-cells // block.shape[0])).tocsr()[:cells]
    obs = pd.DataFrame(index=[f"{name}{n}" for n in range(cells)])
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


def tokenize_files(paths, vocabulary_folder, output, shard=(0, 1), join=True):
    look_ahead(paths[0])
    vocabulary = GeneVocabulary.load(vocabulary_folder)
    recipe = TokenizerOptions(default_max_length(vocabulary))
    build = StoreBuild(output, vocabulary, recipe, CountOptions(), [])
    build.survey(paths)
    build.write(shard)
    if join:
        build.finish({})


def peak_mib():
    """Of this process alone; `getrusage` would give that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run_once(way, cores, vocabulary, output, *paths):
    """Runs in a process of its own; a first small file compiles what needs compiling."""
    first = int(way[-1]) if way.startswith("shard") else 0
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[first : first + int(cores)])
    paths, output, vocabulary = [Path(path) for path in paths], Path(output), Path(vocabulary)

    def work(paths, output):
        if way == "read":
            read_arrays(paths[0])
        elif way == "original":
            known = GeneVocabulary.load(vocabulary)
            max_length = default_max_length(known)
            original_tokenizer.tokenize_file(paths[0], known, max_length, output)
        elif way.startswith("shard"):
            tokenize_files(paths, vocabulary, output, (int(way[-1]), 2), join=False)
        else:
            tokenize_files(paths, vocabulary, output)

    work([vocabulary.with_name("warmup.h5ad")], output.with_name(f"{output.name}-{way}-warmup"))
    wall, cpu = time.perf_counter(), time.process_time()
    work(paths, output)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu, "peak_mib": peak_mib()}))


def start(way, cores, vocabulary, output, *paths):
    command = [sys.executable, __file__, "--once", way, str(cores), vocabulary, output, *paths]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def result_of(process):
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with {process.returncode}")
    return json.loads(output.splitlines()[-1])


def interleaved(ways, folder, vocabulary, path):
    """Median wall and CPU seconds and peak of each (way, cores)."""
    runs = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(dir=folder) as outputs:
        for repeat in range(REPEATS.value):
            for (way, cores), results in runs.items():
                output = Path(outputs) / f"{way}-{cores}-{repeat}"
                results.append(result_of(start(way, cores, vocabulary, output, path)))
    return {
        way: {key: statistics.median(run[key] for run in results) for key in results[0]}
        for way, results in runs.items()
    }


def described(medians, cells):
    return {
        "cells_per_s": round(cells / medians["wall"]),
        "wall_s": round(medians["wall"], 3),
        "cpu_s": round(medians["cpu"], 3),
        "peak_mib": round(medians["peak_mib"]),
    }


def real_cases(folder, _):
    if not REAL.value:
        return
    cells = anndata.read_h5ad(REAL.value, backed="r").n_obs
    for dictionaries in DICTIONARIES.value:
        vocabulary = folder / Path(dictionaries).name
        read_original_vocabulary(Path(dictionaries)).save(vocabulary)
        write_warmup(folder, GeneVocabulary.load(vocabulary).gene_ids[:GENES])
        ways = [("original", 2), ("command", 2), ("command", 1), ("read", 1)]
        medians = interleaved(ways, folder, vocabulary, REAL.value)
        for (way, cores), result in medians.items():
            yield {
                "case": "real",
                "file": Path(REAL.value).name,
                "vocabulary": vocabulary.name,
                "way": way,
                "cores": cores,
                **described(result, cells),
                "times_original_wall": round(medians["original", 2]["wall"] / result["wall"], 1),
                "times_original_cpu": round(medians["original", 2]["cpu"] / result["cpu"], 1),
            }


def write_warmup(folder, gene_ids):
    counts = make_counts(np.random.default_rng(4), 20, 100)[:, : len(gene_ids)]
    obs = pd.DataFrame(index=[f"cell{n}" for n in range(20)])
    obs["n_counts"] = np.asarray(counts.sum(1), dtype=float).ravel()
    adata = anndata.AnnData(counts.tocsr(), obs=obs, var=pd.DataFrame(index=gene_ids))
    adata.write_h5ad(folder / "warmup.h5ad")


def command_cases(folder, vocabulary):
    vocabulary.save(folder / "vocabulary")
    write_warmup(folder, vocabulary.gene_ids)
    sizes = [(3000, 500), (3000, 2000), (3000, 5000), (300, 20_000), (CELLS.value, 500)]
    for cells, genes in sizes:
        for compression in (None, "gzip"):
            path = folder / "counts.h5ad"
            write_file(path, cells, genes, compression)
            ways = [("read", 1), ("command", 1), ("command", 2)]
            medians = interleaved(ways, folder, folder / "vocabulary", path)
            reading = medians["read", 1]
            for (way, cores), result in medians.items():
                yield {
                    "case": "command",
                    "cells": cells,
                    "genes_per_cell": genes,
                    "compression": compression,
                    "file_mib": round(path.stat().st_size / 2**20, 1),
                    "way": way,
                    "cores": cores,
                    **described(result, cells),
                    "fraction_of_reading_speed_wall": round(reading["wall"] / result["wall"], 3),
                    "fraction_of_reading_speed_cpu": round(reading["cpu"] / result["cpu"], 3),
                }
            path.unlink()


def worker_cases(folder, vocabulary):
    """Each worker on a core of its own takes one of two files."""
    known = folder / "vocabulary-of-workers"
    vocabulary.save(known)
    write_warmup(folder, vocabulary.gene_ids)
    cells = CELLS.value // 4
    paths = [folder / "first.h5ad", folder / "second.h5ad"]
    for n, path in enumerate(paths):
        write_file(path, cells, 500, "gzip", name=f"file{n}-cell")
    for workers in (1, 2):
        walls, peaks = [], []
        ways = ["command"] if workers == 1 else ["shard0", "shard1"]
        for repeat in range(REPEATS.value):
            output = folder / f"workers-{workers}-{repeat}"
            processes = [start(way, 1, known, output, *paths) for way in ways]
            results = [result_of(process) for process in processes]
            walls.append(max(result["wall"] for result in results))
            peaks.append(max(result["peak_mib"] for result in results))
            if workers == 2:
                joining = time.perf_counter()
                tokenize_files(paths, known, output)
                walls[-1] += time.perf_counter() - joining
        yield {
            "case": "workers",
            "cells": 2 * cells,
            "genes_per_cell": 500,
            "compression": "gzip",
            "workers": workers,
            "cells_per_s": round(2 * cells / statistics.median(walls)),
            "peak_mib_of_each": round(statistics.median(peaks)),
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
        groups = {
            "encode": lambda: encode_cases(vocabulary),
            "store": lambda: store_cases(Path(folder), vocabulary),
            "real": lambda: real_cases(Path(folder), vocabulary),
            "command": lambda: command_cases(Path(folder), vocabulary),
            "workers": lambda: worker_cases(Path(folder), vocabulary),
        }
        for name in GROUPS.value:
            for case in groups[name]():
                print(json.dumps(case), flush=True)


if __name__ == "__main__":
    if "--once" in sys.argv:
        run_once(*sys.argv[sys.argv.index("--once") + 1 :])
    else:
        app.run(main)
