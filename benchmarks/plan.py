"""Plans epochs of real and simulated cells: padding, fill, seconds and memory; JSON lines.

    PYTHONPATH=. python benchmarks/plan.py [--cells=30000000,100000000] [--data=../shared/data]

Every measurement is a process of its own: it chooses buckets, makes the plan and lays out the first
epoch. `peak_mib` is its largest resident set, of which `lengths_mib` are the lengths themselves and
about 60 MiB Python and numpy. `lazy_s` is the part of the seconds that comes with the first step of
each epoch and not with the start; `cpu_s` is the measure on a busy machine. Medians over --repeats.
"""

import json
import multiprocessing
import re
import statistics
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from geneformer_jax.batches.buckets import BatchShape, choose_buckets, shape_batches
from geneformer_jax.batches.plan import PlanRecipe
from tests.helpers.real_lengths import real_lengths, simulated_lengths

CELLS = flags.DEFINE_list("cells", ["30000000", "100000000"], "cells of the simulated corpora")
DATA = flags.DEFINE_string("data", "", "folder with real cells; none are planned without")
LONGEST = flags.DEFINE_list("longest", ["2048", "4096"], "tokens of the longest simulated cells")
REPEATS = flags.DEFINE_integer("repeats", 3, "processes for each case", lower_bound=1)
PLANS = {
    "tokens_per_batch 65,536": {"tokens_per_batch": 65_536},
    "tokens_per_batch 262,144": {"tokens_per_batch": 262_144},
    "cells_per_batch 12": {"cells_per_batch": 12},
    "cells_per_batch 144": {"cells_per_batch": 144},
    "packed, tokens_per_batch 65,536": {"tokens_per_batch": 65_536, "packing": True},
}
SIMULATED_PLANS = ("tokens_per_batch 65,536", "cells_per_batch 144", *list(PLANS)[-1:])


def peak_mib() -> float:
    """Largest resident set of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def shape_of(lengths, packing=False, **options) -> BatchShape:
    buckets = choose_buckets(lengths)
    return shape_batches(buckets[-1:] if packing else buckets, **options)


def plan(lengths, options: dict, results) -> None:
    """Makes one plan in a process of its own; lengths are an array or (cells, longest)."""
    if isinstance(lengths, tuple):
        cells, longest = lengths
        lengths = simulated_lengths(cells, longest=longest)
    cpu = time.process_time()
    times = [time.perf_counter()]
    shape = shape_of(lengths, **options)
    times.append(time.perf_counter())
    recipe = PlanRecipe(shape, seed=0, packing=options.get("packing", False))
    made = recipe.make(lengths)
    times.append(time.perf_counter())
    made.step(0)
    times.append(time.perf_counter())
    seconds = np.diff(times)
    results.put(
        {
            "cells": len(lengths),
            "steps": made.steps_per_epoch,
            "padding": round(made.padding, 4),
            "seconds": round(seconds.sum(), 2),
            "cpu_s": round(time.process_time() - cpu, 2),
            "lazy_s": round(seconds[-1], 2),
            "lengths_mib": round(lengths.nbytes / 2**20),
            "peak_mib": round(peak_mib()),
        }
    )


def measure(lengths, options: dict) -> dict:
    """Runs a case in processes of its own, one after the other; returns medians."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    runs = []
    for _ in range(REPEATS.value):
        process = context.Process(target=plan, args=(lengths, options, results))
        process.start()
        runs.append(results.get())
        process.join()
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main(_):
    cases = []
    if DATA.value:
        cases += [
            (f"real cells, up to {longest} tokens", real_lengths(Path(DATA.value), longest), name)
            for longest in (2_048, 4_096)
            for name in PLANS
        ]
    cases += [
        (f"simulated, up to {longest} tokens", (int(cells), longest), name)
        for cells in CELLS.value
        for longest in map(int, LONGEST.value)
        for name in SIMULATED_PLANS
    ]
    for what, lengths, name in cases:
        line = {"benchmark": "plan", "lengths": what, "plan": name, **measure(lengths, PLANS[name])}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
