"""Times embedding beside PyTorch: one JSON line per case.

    python benchmarks/embed.py --counts=pbmc3k.h5ad --dictionaries=FOLDER [--cells=768]

The same cells (tokenised with the original's V1 dictionaries), the same random weights of V1-10M's
shape, float32, mean of the layer below the last over each cell's genes:
  geneformer_jax            what `embed` runs; stops below the last layer
  geneformer_jax, layer 0   the same of the last layer: as many layers as PyTorch
  torch, batch of N         transformers' BertForMaskedLM without its head, SDPA attention, cells
                            sorted by length and padded to the longest of their batch
Each case is a process of its own, warmed up by one whole pass (so compiling is left out and given
apart), and all take turns. Cells per second are medians over repeats; padding and readying batches
count, reading counts and writing results do not. Peak memory is that of the whole process.
"""

import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

COUNTS = flags.DEFINE_string("counts", None, "h5ad of raw counts", required=True)
DICTIONARIES = flags.DEFINE_string("dictionaries", None, "original V1 dictionaries", required=True)
CELLS = flags.DEFINE_integer("cells", 768, "cells drawn at random", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "measurements of each case", lower_bound=1)
BATCHES = flags.DEFINE_list("batches", ["8", "16", "32"], "batch sizes of PyTorch")


def tokenized(counts, dictionaries, cells):
    from geneformer_jax.cells.formats.open import open_counts
    from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions, tokenize_source
    from geneformer_jax.inference.cells import select_cells
    from geneformer_jax.interop.original_dictionaries import read_original_vocabulary

    vocabulary = read_original_vocabulary(Path(dictionaries))
    source = tokenize_source(open_counts(counts), vocabulary, TokenizerOptions(max_length=2048))
    return select_cells(source, max_cells=cells)


def jax_case(weights, arguments, layer):
    import jax

    from geneformer_jax.embedding.embedder import Embedder
    from geneformer_jax.interop.huggingface import read_model
    from geneformer_jax.model.runtime import inference_runtime
    from geneformer_jax.model.sharding import use_all_cores

    use_all_cores()
    cells = tokenized(*arguments)
    model = read_model(weights).model
    runtime, _ = inference_runtime(model.config, int(cells.lengths.max()))
    embedder = Embedder(model, cells, hidden_layer=layer, runtime=runtime)

    def run():
        with embedder.progress() as progress:
            return embedder.rows(0, len(cells.rows), progress)[:, 0]

    def figures():
        counted = embedder.throughput
        return {
            "padding": round(1 - counted.tokens / counted.padded, 3),
            "compile_s": round(counted.compiling, 1),
            "attention": runtime.attention,
            "version": jax.__version__,
        }

    return run, figures


def torch_case(weights, arguments, batch):
    import torch
    from transformers import BertForMaskedLM

    cells = tokenized(*arguments)
    tokens = cells.read(np.arange(len(cells.rows)))
    lengths = np.asarray(cells.lengths)
    torch.set_num_threads(os.cpu_count())
    model = BertForMaskedLM.from_pretrained(weights, attn_implementation="sdpa").bert.eval()
    order = np.argsort(-lengths, kind="stable")
    padded = 0

    @torch.inference_mode()
    def run():
        nonlocal padded
        padded, rows = 0, np.empty((len(tokens), model.config.hidden_size), np.float32)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            longest = lengths[chosen].max()
            ids = np.zeros((len(chosen), longest), np.int64)
            for row, cell in enumerate(chosen):
                ids[row, : lengths[cell]] = tokens[cell]
            mask = torch.from_numpy((np.arange(longest) < lengths[chosen, None]).astype(np.int64))
            out = model(torch.from_numpy(ids), attention_mask=mask, output_hidden_states=True)
            weights = mask[..., None].float()
            rows[chosen] = ((out.hidden_states[-2] * weights).sum(1) / weights.sum(1)).numpy()
            padded += ids.size
        return rows

    def figures():
        return {"padding": round(1 - lengths.sum() / padded, 3), "version": torch.__version__}

    return run, figures


def worker(pipe, make, *arguments):
    """Prepares a case, then runs it at each request."""
    run, figures = make(*arguments)
    rows = run()
    pipe.send(rows)
    while pipe.recv() == "run":
        began = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send({**figures(), "peak_memory_mib": round(peak)})


def save_random_weights(folder):
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=25_426, hidden_size=256, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=2048, hidden_act="relu",
        layer_norm_eps=1e-12, hidden_dropout_prob=0.02, attention_probs_dropout_prob=0.02,
        pad_token_id=0,
    )  # fmt: skip
    BertForMaskedLM(shape).save_pretrained(folder)


def cases(weights):
    arguments = (COUNTS.value, DICTIONARIES.value, CELLS.value)
    yield "geneformer_jax", jax_case, (weights, arguments, -1)
    yield "geneformer_jax, layer 0", jax_case, (weights, arguments, 0)
    for batch in map(int, BATCHES.value):
        yield f"torch, batch of {batch}", torch_case, (weights, arguments, batch)


def start(make, arguments):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(theirs, make, *arguments), daemon=True)
    process.start()
    return ours, ours.recv()


def main(_):
    with tempfile.TemporaryDirectory() as weights:
        save_random_weights(weights)
        running = {name: start(make, arguments) for name, make, arguments in cases(weights)}
        seconds = {name: [] for name in running}
        for _ in range(REPEATS.value):
            for name, (pipe, _) in running.items():
                pipe.send("run")
                seconds[name].append(pipe.recv())
        reference = running[f"torch, batch of {BATCHES.value[0]}"][1]
        best = min(statistics.median(seconds[name]) for name in running if name.startswith("torch"))
        for name, (pipe, rows) in running.items():
            pipe.send("stop")
            median = statistics.median(seconds[name])
            line = {
                "benchmark": "embed",
                "case": name,
                "cells": len(rows),
                "cells_per_s": round(len(rows) / median, 1),
                "of_best_torch": round(best / median, 2),
                "seconds": [round(each, 1) for each in seconds[name]],
                "largest_difference": None
                if name.endswith("layer 0")
                else float(np.abs(rows - reference).max()),
                "load": round(os.getloadavg()[0], 1),
                **pipe.recv(),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
