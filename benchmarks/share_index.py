"""Makes the index of a corpus far larger than this machine, cuts it into shares, and joins many.

    python benchmarks/share_index.py [--cells=100000000] [--shares=2000] [--sources=1,5000]
        [--pieces=2000,12000] [--folder=DIR]

The corpus is made up: numbers of values of each cell as of real ones (log-normal, 2,000 in the
mean), without the values. One JSON line per case, each in a process of its own:
  index  cuts all sources into pieces and writes the index, as the first process does beside opening
         the files; reads it again and looks up a share, as each of the others does; and how far the
         largest share is from the mean
  join   joins a store of so many tiny pieces (4 cells each), which stand for those of as many
         shares or more, and opens it
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from absl import app, flags

from geneformer_jax.cells.counts.row_pieces import PIECE_VALUES, cut_rows
from geneformer_jax.cells.store import layout, writer
from geneformer_jax.cells.store.building.summary import DROPPED_LABELS, summarise
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.piece_index import IndexedSource, PieceIndex, keep_index
from geneformer_jax.cells.tokenization.rank_encoding import RankEncodings
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.files import state_of
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.shares import shares_of

CELLS = flags.DEFINE_integer("cells", 100_000_000, "cells of the corpus", lower_bound=1)
SHARES = flags.DEFINE_integer("shares", 2000, "shares of it", lower_bound=1)
SOURCES = flags.DEFINE_list("sources", ["1", "5000"], "numbers of files that hold the cells")
PIECES = flags.DEFINE_list("pieces", ["2000", "12000"], "numbers of pieces that are joined")
FOLDER = flags.DEFINE_string("folder", "", "where files are written; a temporary folder if empty")
CELLS_OF_PIECE, GENES_OF_CELL, GENES = 4, 20, 1000
MEAN_LOG, SD_LOG = np.log(2000) - 0.5**2 / 2, 0.5


def sizes_of(seed):
    """A way to ask for the numbers of values of a source's cells, without keeping them."""

    def sizes(first, stop):
        rng = np.random.default_rng([seed, first])
        return np.exp(rng.normal(MEAN_LOG, SD_LOG, stop - first)).astype(np.int64)

    return sizes


def write_sources(folder, number):
    """Files of which only the state is looked at."""
    paths = [folder / f"{n:05d}.h5ad" for n in range(number)]
    for path in paths:
        path.touch()
    return paths


def make_index(paths, cells):
    each = cells // len(paths)
    sources = []
    for seed, path in enumerate(paths):
        facts = {"key": f"{path.stem}-0123456789ab", "obs": {"tissue": "text"}, "absent": []}
        pieces = cut_rows(sizes_of(seed), each, PIECE_VALUES)
        sources.append(IndexedSource(path, state_of(path), each, pieces, facts))
    return PieceIndex(sources, {"bad_files": {}})


def seconds(call):
    start = time.perf_counter()
    result = call()
    return result, round(time.perf_counter() - start, 2)


def index_case(folder, number, cells, shares):
    paths = write_sources(folder, number)
    ways = folder / "index", folder / "lock", paths, {}
    made, making = seconds(lambda: keep_index(*ways, lambda: make_index(paths, cells)))
    kept, reading = seconds(lambda: keep_index(*ways, lambda: None))
    assert made.is_new and not kept.is_new
    _, looking_up = seconds(lambda: kept.index.share((shares // 2, shares)))
    sizes = np.concatenate([source.pieces.sizes for source in kept.index.sources])
    values = np.bincount(shares_of(sizes, shares), sizes, shares)
    (file,) = (folder / "index").iterdir()
    return {
        "case": "index",
        "sources": number,
        "cells": cells,
        "pieces": len(sizes),
        "index_mib": round(file.stat().st_size / 2**20, 2),
        "making_s": making,
        "reading_s": reading,
        "looking_up_a_share_s": looking_up,
        "largest_share_by_mean": round(float(values.max() / values.mean()), 3),
        "smallest_share_by_mean": round(float(values.min() / values.mean()), 3),
    }


def write_piece(store, key, number):
    tokens = np.arange(2, 2 + GENES_OF_CELL, dtype=np.uint16)
    offsets = np.arange(CELLS_OF_PIECE + 1, dtype=np.int64) * GENES_OF_CELL
    genes = np.full(CELLS_OF_PIECE, GENES_OF_CELL, np.int32)
    encodings = RankEncodings(np.tile(tokens, CELLS_OF_PIECE), offsets, genes)
    ids = np.array([f"{number}-{cell}" for cell in range(CELLS_OF_PIECE)], object)
    facts = {"path": "corpus.h5ad", "fingerprint": {}, "dropped": {}, DROPPED_LABELS: {}}
    facts |= {"cells_in_file": CELLS_OF_PIECE, "rules_not_applied": []}
    with writer.write_source(store, key, {"tissue": "text"}) as source:
        source.write(encodings, ids, pd.DataFrame({"tissue": ["blood"] * CELLS_OF_PIECE}))
        source.finish(facts)


def join_case(folder, pieces):
    store = folder / "store"
    ids = np.array([f"ENSG{n:011d}" for n in range(GENES)])
    vocabulary = GeneVocabulary(ids, np.full(GENES, ""), np.ones(GENES))
    writer.begin_store(store, {"max_length": 2048}, {"tissue": "text"})
    rows = [(n * CELLS_OF_PIECE, (n + 1) * CELLS_OF_PIECE) for n in range(pieces)]
    keys = [layout.piece_key("corpus-0123456789ab", *each, -1) for each in rows]
    for number, key in enumerate(keys):
        write_piece(store, key, number)

    def join():
        provenance = describe_run("tokenize", {}, [], summarise(store, keys, {}))
        writer.join_sources(store, keys, vocabulary, provenance)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, joining = seconds(join)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    opened, opening = seconds(lambda: CellStore.open(store))
    assert len(opened) == pieces * CELLS_OF_PIECE
    return {
        "case": "join",
        "pieces": pieces,
        "joining_s": joining,
        "growth_mib": round(grown / 1024),
        "opening_s": opening,
    }


def run_once(case, *numbers):
    work = {"index": index_case, "join": join_case}[case]
    with tempfile.TemporaryDirectory(dir=FOLDER.value or None) as folder:
        result = work(Path(folder), *map(int, numbers))
    peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    print(json.dumps({**result, "peak_mib": int(peak.split()[1]) // 1024}), flush=True)


def main(arguments):
    if len(arguments) > 1:
        run_once(*arguments[1:])
        return
    cases = [("index", number, CELLS.value, SHARES.value) for number in SOURCES.value]
    cases += [("join", number) for number in PIECES.value]
    for case in cases:
        own = [f"--folder={FOLDER.value}", *map(str, case)]
        subprocess.run([sys.executable, __file__, *own], check=True)


if __name__ == "__main__":
    app.run(main)
