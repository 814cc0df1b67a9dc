"""Times reading attention off beside PyTorch that returns full matrices: one JSON line per case.

    python benchmarks/attend.py [--genes=512,2048] [--cells=16]

Cells of random genes, the same random weights of V1-10M's shape, float32. Both sides find, for each
gene, layer and head, the mean relative attention it receives over the cells:
  geneformer_jax   what `attend` runs (it finds breadth, weight on top ranks and ranks too)
  torch            transformers' BertModel with eager attention and output_attentions, matrices
                   averaged over queries and summed by gene on the host, in batches of --batch
Each case is a process of its own, warmed up by one whole pass, and all take turns. Memory is what a
pass takes on top of the process with its weights (highest resident set, reset before it; on a GPU
the host's).
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from absl import app, flags

GENES = flags.DEFINE_list("genes", ["512", "2048"], "genes in each cell")
CELLS = flags.DEFINE_integer("cells", 16, "cells in a pass", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 4, "cells in a batch of PyTorch", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "measurements of each case", lower_bound=1)

VOCABULARY, SPECIAL, LAYERS, HEADS = 25_426, 2, 6, 4


def random_cells(genes, cells):
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(VOCABULARY - SPECIAL)[:genes] + SPECIAL for _ in range(cells)]
    return np.stack(drawn).astype(np.int32)


def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def jax_case(weights, genes, cells, batch):
    import jax

    from geneformer_jax.attention_analysis.cell_groups import CellGroups
    from geneformer_jax.attention_analysis.extractor import AttentionExtractor
    from geneformer_jax.attention_analysis.statistics import gene_means
    from geneformer_jax.common.progress import Progress
    from geneformer_jax.interop.huggingface import read_model
    from geneformer_jax.model.runtime import profiled_runtime
    from geneformer_jax.model.sharding import use_all_cores

    use_all_cores()
    tokens = random_cells(genes, cells)
    store = SimpleNamespace(
        lengths=np.full(cells, genes, np.int32),
        obs=pd.DataFrame(index=np.arange(cells).astype(str)),
        vocabulary=SimpleNamespace(first_gene_token=SPECIAL),
        read=lambda rows: list(tokens[rows]),
    )
    model = read_model(weights).model
    runtime, _ = profiled_runtime(genes, "float32", "auto")
    groups = CellGroups(("all",), np.zeros(cells, np.int32))
    extractor = AttentionExtractor(model, store, groups, runtime=runtime)

    def run():
        with Progress(cells, "attend", "cells") as progress:
            return gene_means(extractor.run(0, cells, progress).totals).received

    device = jax.devices()[0]
    return run, {"attention": runtime.attention, "device": device.device_kind}


def torch_case(weights, genes, cells, batch):
    import torch
    from transformers import BertForMaskedLM

    tokens = torch.from_numpy(random_cells(genes, cells).astype(np.int64))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count())
    model = BertForMaskedLM.from_pretrained(weights, attn_implementation="eager").bert.eval()
    model = model.to(device)

    @torch.inference_mode()
    def run():
        sums = np.zeros((VOCABULARY, LAYERS, HEADS))
        counts = np.bincount(tokens.numpy().ravel(), minlength=VOCABULARY)
        for start in range(0, cells, batch):
            chosen = tokens[start : start + batch]
            out = model(chosen.to(device), output_attentions=True)
            for layer, matrices in enumerate(out.attentions):
                received = matrices.cpu().numpy().mean(axis=2) * genes
                rows = np.moveaxis(received, 1, 2).reshape(-1, HEADS)
                np.add.at(sums[:, layer], chosen.numpy().ravel(), rows)
        with np.errstate(invalid="ignore"):
            return sums / counts[:, None, None]

    return run, {"attention": "eager", "device": device}


def worker(pipe, make, *arguments):
    """Prepares a case, then runs it each time it is asked to."""
    run, facts = make(*arguments)
    pipe.send(run())
    growths = []
    while pipe.recv() == "run":
        Path("/proc/self/clear_refs").write_text("5")
        before, began = memory("VmRSS"), time.perf_counter()
        run()
        pipe.send(time.perf_counter() - began)
        growths.append(memory("VmHWM") - before)
    peak = {"pass_mib": round(max(growths)), "process_mib": round(memory("VmHWM"))}
    pipe.send({**facts, **peak})


def save_random_weights(folder):
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=512, max_position_embeddings=2048,
        hidden_act="relu", layer_norm_eps=1e-12, pad_token_id=0,
    )  # fmt: skip
    BertForMaskedLM(shape).save_pretrained(folder)


def start(make, arguments):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(theirs, make, *arguments), daemon=True)
    process.start()
    return ours, ours.recv()


def measure(weights, genes):
    arguments = weights, genes, CELLS.value, BATCH.value
    cases = {"geneformer_jax": jax_case, "torch": torch_case}
    running = {name: start(make, arguments) for name, make in cases.items()}
    seconds = {name: [] for name in running}
    for _ in range(REPEATS.value):
        for name, (pipe, _) in running.items():
            pipe.send("run")
            seconds[name].append(pipe.recv())
    theirs = statistics.median(seconds["torch"])
    for name, (pipe, received) in running.items():
        pipe.send("stop")
        median = statistics.median(seconds[name])
        line = {
            "benchmark": "attend",
            "case": name,
            "genes": genes,
            "cells": CELLS.value,
            "cells_per_s": round(CELLS.value / median, 2),
            "times_torch": round(theirs / median, 2),
            "seconds": [round(each, 2) for each in seconds[name]],
            "largest_difference": float(np.nanmax(np.abs(received - running["torch"][1]))),
            "load": round(os.getloadavg()[0], 1),
            **pipe.recv(),
        }
        print(json.dumps(line), flush=True)


def main(_):
    with tempfile.TemporaryDirectory() as weights:
        save_random_weights(weights)
        for genes in map(int, GENES.value):
            measure(weights, genes)


if __name__ == "__main__":
    app.run(main)
