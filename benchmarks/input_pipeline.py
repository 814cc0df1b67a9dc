"""Reads, masks and batches cells without a model: cells per second; JSON lines.

    PYTHONPATH=. python benchmarks/input_pipeline.py [--cells=20000] [--seconds=5] [--folder=DIR]

The store is made up: log-normal lengths of which 7 % reach 2,048 tokens. Cases are interleaved and
medians over --repeats reported. "direct" makes batches in the calling thread, and reports cells per
CPU second too, which hold on a busy machine; "threads" reads ahead in two threads of the process;
then worker processes, which send their batches to this one.
"""

import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from absl import app, flags

from geneformer_jax.batches.buckets import choose_buckets, shape_batches
from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.loader import MaskedBatches, read_ahead
from geneformer_jax.batches.plan import PlanRecipe
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.writer import begin_store, join_sources, write_source
from geneformer_jax.cells.tokenization.rank_encoding import RankEncodings
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from tests.helpers.real_lengths import simulated_lengths

CELLS = flags.DEFINE_integer("cells", 20_000, "cells of the store")
SECONDS = flags.DEFINE_float("seconds", 5.0, "of reading for each measurement")
REPEATS = flags.DEFINE_integer("repeats", 3, "measurements of each case", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", "", "where the store is written; a temporary folder else")
GENES = 25_424
TOKENS_PER_BATCH = 65_536
WAYS = {"direct": None, "threads": 0, "1 worker process": 1, "2 worker processes": 2}
WARM_UP = 4


def make_store(folder: Path) -> CellStore:
    lengths = simulated_lengths(CELLS.value)
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, GENES + 2, lengths.sum(), dtype=np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.array([f"cell{n}" for n in range(len(lengths))], dtype=object)
    genes = np.array([f"ENSG{n:011d}" for n in range(GENES)])
    vocabulary = GeneVocabulary(genes, np.full(GENES, ""), np.ones(GENES), ("<pad>", "<mask>"))
    begin_store(folder, {"max_length": 2_048}, {})
    with write_source(folder, "made-up", {}) as writer:
        writer.write(RankEncodings(tokens, offsets), ids, pd.DataFrame(index=ids))
        writer.finish({"path": "made-up"})
    join_sources(folder, ["made-up"], vocabulary, {})
    return CellStore.open(folder)


def batches_of(store: CellStore, packing: bool, masking: str) -> MaskedBatches:
    buckets = choose_buckets(store.lengths)
    shape = shape_batches(buckets[-1:] if packing else buckets, tokens_per_batch=TOKENS_PER_BATCH)
    recipe = PlanRecipe(shape, seed=0, packing=packing)
    return MaskedBatches(store, recipe, MaskingConfig() if masking == "host" else None, 1_000_000)


def cells_per_second(batches: MaskedBatches, workers: int | None) -> tuple[float, float]:
    """Returns cells per second and per CPU second of this process.

    Starting up and the first batches are left out.
    """
    if workers is None:
        read = map(batches.__getitem__, itertools.count())
    else:
        read = read_ahead(batches, 0, workers)
    for _ in range(WARM_UP):
        next(read)
    cells, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < SECONDS.value:
        cells += int((next(read).cells_B >= 0).sum())
    rates = cells / (time.perf_counter() - start), cells / (time.process_time() - cpu)
    if workers is not None:
        read.close()
    return rates


def main(_):
    with tempfile.TemporaryDirectory(dir=FOLDER.value or None) as folder:
        store = make_store(Path(folder) / "store")
        cases = [(False, masking, way) for masking in ("host", "device") for way in WAYS]
        cases += [(True, masking, "direct") for masking in ("host", "device")]
        rates = {case: [] for case in cases}
        for _ in range(REPEATS.value):
            for packing, masking, way in cases:
                batches = batches_of(store, packing, masking)
                rates[packing, masking, way].append(cells_per_second(batches, WAYS[way]))
    for (packing, masking, way), measured in rates.items():
        line = {
            "benchmark": "input_pipeline",
            "rows": "packed" if packing else "padded",
            "masked_on": masking,
            "way": way,
            "mean_tokens": round(float(store.lengths.mean())),
            "cells_per_s": round(statistics.median(rate for rate, _ in measured)),
            "all": [round(rate) for rate, _ in measured],
        }
        if way == "direct":
            line["cells_per_cpu_s"] = round(statistics.median(rate for _, rate in measured))
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
