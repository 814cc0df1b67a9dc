"""Times one and two workers of a local Ray cluster, each on one core: one JSON line per run.

    python benchmarks/cluster.py --counts=pbmc3k.h5ad [--work=tokenize,perturb] [--cells=200000]

tokenize takes the cells of --counts over and over, from one file; perturb deletes every gene of
--edited_cells of them, with a small model of random weights. Runs with one and with two workers
take turns, each with a new output. A line says
  begin, make, finish  seconds until a worker has checked and prepared; of all shares; of the join
  ms_a_share           to hand out a share that is made: what the engine costs
  MiB                  resident at the end: driver, largest worker at its peak, Ray's own processes
  bytes                of a command line and an answer as they travel, and in Ray's object store
and the last one how many times as fast two workers make the shares, and do all, as one.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import pickle
import statistics
import tempfile
import time
from pathlib import Path

from absl import app, flags

from geneformer_jax.cluster import cores, handing_out
from geneformer_jax.cluster.messages import Answer, Command
from geneformer_jax.cluster.ray_cluster import connected
from geneformer_jax.cluster.worker import perform
from geneformer_jax.cluster.workers import ActorPool, TaskPool, WorkerSize

COUNTS = flags.DEFINE_string("counts", None, "h5ad of raw counts with ensembl_id", required=True)
VOCABULARY = flags.DEFINE_string("vocabulary", None, "folder of a vocabulary", required=True)
CELLS = flags.DEFINE_integer("cells", 200_000, "cells that are tokenised", lower_bound=1)
EDITED_CELLS = flags.DEFINE_integer("edited_cells", 64, "cells that are perturbed", lower_bound=1)
SHARES = flags.DEFINE_integer("shares", 20, "shares of the work", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "runs with each number of workers", lower_bound=1)
SECONDS_TO_END = 20
PHASES = ("begin", "make", "finish")
WORK = flags.DEFINE_list("work", ["tokenize", "perturb"], "what is done")


def many_cells(path, counts, number):
    """A file of the cells of another, again and again under other ids."""
    import anndata as ad

    cells = ad.read_h5ad(counts)
    again = [cells] * -(-number // cells.n_obs)
    names = map(str, range(len(again)))
    joined = ad.concat(dict(zip(names, again, strict=True)), index_unique="-", merge="same")
    joined[:number].write_h5ad(path)


def small_model(path, vocabulary):
    import jax

    from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
    from geneformer_jax.model.config import EncoderConfig
    from geneformer_jax.model.encoder import init_params
    from geneformer_jax.model.pretrained import PretrainedModel, save_model

    genes = GeneVocabulary.load(vocabulary)
    shape = {"layers": 2, "width": 128, "heads": 4, "feed_forward": 256, "positions": 2_048}
    config = EncoderConfig(vocabulary_size=genes.size, **shape)
    params = init_params(config, jax.random.key(0))
    model = PretrainedModel(config, params, genes, source="made", step=0, head=None)
    save_model(model, path, {"command": "benchmark"})


def made(make, path, *given):
    """Makes an input in a process of its own, so that the driver is as small as the command's."""
    process = multiprocessing.get_context("spawn").Process(target=make, args=(path, *given))
    process.start()
    process.join()
    return path


def tokenizing(folder):
    cells = made(many_cells, folder / "cells.h5ad", COUNTS.value, CELLS.value)
    return ["tokenize", f"--counts={cells}", f"--vocabulary={VOCABULARY.value}"]


def perturbing(folder):
    model = made(small_model, folder / "model", VOCABULARY.value)
    given = {"checkpoint": model, "cells": COUNTS.value, "max_cells": EDITED_CELLS.value}
    return ["perturb", "--statistics=none", *(f"--{name}={each}" for name, each in given.items())]


def resident(process, what):
    """MiB of a process: VmRSS now, VmHWM at its peak."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024
    return 0.0


def parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(process):
    """Processes that a process began, and those that they began."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = parent(folder.name)
    found = {process}
    while more := {each for each, its in parents.items() if its in found} - found:
        found |= more
    return found - {process}


def memory():
    """MiB of the driver, of the largest worker at its peak, and of all other processes of Ray."""
    workers, others = [0.0], 0.0
    for process in descendants(os.getpid()):
        name = Path(f"/proc/{process}/cmdline").read_bytes()
        if name.startswith((b"ray::Keeper", b"ray::perform", b"ray::IDLE")):
            workers.append(resident(process, "VmHWM"))
        else:
            others += resident(process, "VmRSS")
    found = {"driver": resident(os.getpid(), "VmRSS"), "worker": max(workers), "others": others}
    return {name: round(value) for name, value in found.items()}


def stored(ray):
    """Bytes in Ray's object store."""
    name = "object_store_memory"
    return int(ray.cluster_resources()[name] - ray.available_resources().get(name, 0))


def run(ray, arguments, workers, output):
    """One run, from a pool to the joined output; returns its line."""
    name, *rest = arguments
    command = Command(name, (*rest, f"--output={output}"), os.getcwd(), 1)
    pool_of = TaskPool if name == "tokenize" else ActorPool
    with contextlib.closing(pool_of(ray, command, WorkerSize(workers, 1, 0))) as pool:
        line = time_run(ray, pool, command)
    # Its processes end soon, and let go of their cores; other runs on the machine may hold some.
    end = time.monotonic() + SECONDS_TO_END
    while cores.NAME in Path("/proc/net/unix").read_text() and time.monotonic() < end:
        time.sleep(0.1)
    return {"work": name, "workers": workers, **line}


def time_run(ray, pool, command):
    """Seconds of each phase, and what the run takes of memory and sends."""
    times = [time.perf_counter()]
    handing_out.ask(pool, "begin")
    times.append(time.perf_counter())
    handing_out.make_shares(pool, SHARES.value, command.name)
    times.append(time.perf_counter())
    handing_out.make_shares(pool, SHARES.value, command.name)
    again = time.perf_counter() - times[-1]
    times.append(time.perf_counter())
    handing_out.ask(pool, "finish")
    finish = time.perf_counter() - times[-1]
    travels = {"command": len(pickle.dumps((perform, command, "make", (1, SHARES.value)))),
               "answer": len(pickle.dumps(Answer()))}  # fmt: skip
    return {
        "begin": round(times[1] - times[0], 2),
        "make": round(times[2] - times[1], 2),
        "finish": round(finish, 2),
        "ms_a_share": round(again / SHARES.value * 1e3, 1),
        "MiB": memory(),
        "bytes": {**travels, "stored": stored(ray)},
    }


def compare(name, lines):
    """How many times as fast two workers are as one, by medians."""
    found = {}
    for workers in (1, 2):
        mine = [line for line in lines if line["workers"] == workers]
        found[workers] = {
            "make": statistics.median(line["make"] for line in mine),
            "all": statistics.median(sum(map(line.get, PHASES)) for line in mine),
        }
    faster = {key: round(found[1][key] / found[2][key], 2) for key in ("make", "all")}
    print(json.dumps({"work": name, "times as fast": faster}), flush=True)


def main(_):
    kinds = {"tokenize": tokenizing, "perturb": perturbing}
    with tempfile.TemporaryDirectory() as folder, connected("", 2) as ray:
        for name in WORK.value:
            arguments = kinds[name](Path(folder))
            lines = []
            for number, workers in itertools.product(range(REPEATS.value), (1, 2)):
                output = Path(folder) / f"{name}-{number}-{workers}"
                lines.append(run(ray, arguments, workers, output))
                print(json.dumps(lines[-1]), flush=True)
            compare(name, lines)


if __name__ == "__main__":
    app.run(main)
