"""Weighs models in 8 and 4 bits beside float32: memory, accuracy, speed; a JSON line per case.

    python benchmarks/quantized.py [--shape=v2_316m] [--model=RUN --cells=STORE]

Random weights of a published shape, in transformers' files, are loaded in a process of their own in
float32, int8 and nf4: bytes of the loaded arrays, the process's peak while it loads (VmHWM, imports
included), and tokens a second of the encoder, in turns, medians over repeats, compiling left out.
With a trained model and cells it has not seen: cosines of their embeddings with those in float32,
before and after the mean over cells is taken off, and Spearman's correlation of the shifts that
single deletions make.
"""

import json
import multiprocessing
import re
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

SHAPE = flags.DEFINE_string("shape", "v2_316m", "preset of the model with random weights")
MODEL = flags.DEFINE_string("model", "", "a trained model, to measure accuracy with")
CELLS = flags.DEFINE_string("cells", "", "store or counts of cells that it has not seen")
MAX_CELLS = flags.DEFINE_integer("max_cells", 100, "of them, drawn at random", lower_bound=1)
PERTURBED = flags.DEFINE_integer("perturbed", 3, "of them, to delete genes in", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 2, "cells at a time, for the speed", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 512, "of each of these", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "measurements of the speed", lower_bound=1)
KINDS = (None, "int8", "nf4")


def save_random_weights(folder, shape):
    from geneformer_jax.interop.weights.bert_layout import places, write_settings
    from geneformer_jax.interop.weights.safetensors import write_tensors
    from geneformer_jax.model.config import preset

    config, rng = preset(shape), np.random.default_rng(0)
    tensors = {
        place.name: np.float32(place.path[-1] == "scale")
        + rng.standard_normal(place.shape, np.float32) * np.float32(0.02)
        for place in places(config, None)
    }
    write_tensors(Path(folder) / "model.safetensors", tensors)
    (Path(folder) / "config.json").write_text(json.dumps(write_settings(config, None)))


def peak_mib():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def worker(pipe, folder, kind, shape_BT):
    """Loads, then runs a batch at each request."""
    import jax

    import geneformer_jax as gf
    from geneformer_jax.model.encoder import encode
    from geneformer_jax.model.quantization import count_weights, stored_bytes
    from geneformer_jax.model.runtime import inference_runtime

    began = time.perf_counter()
    model = gf.load_model(folder, quantize=kind)
    jax.block_until_ready(model.params)
    loaded = {"load_s": round(time.perf_counter() - began, 1), "peak_mib": round(peak_mib())}
    loaded["weights_mib"] = round(stored_bytes(model.params) / 2**20, 1)
    loaded["of_float32"] = round(stored_bytes(model.params) / (4 * count_weights(model.params)), 4)
    runtime, _ = inference_runtime(model.config, shape_BT[1])
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(4, model.config.vocabulary_size, shape_BT).astype(np.int32)
    forward = jax.jit(lambda params, *cells: encode(model.config, params, *cells, runtime=runtime))

    def run():
        cells = tokens_BT, np.full(shape_BT[0], shape_BT[1])
        return np.asarray(forward(model.params, *cells)).mean(axis=1)

    pipe.send((loaded, run()))
    while pipe.recv() == "run":
        began = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - began)


def start(*arguments):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=worker, args=(theirs, *arguments), daemon=True).start()
    return ours, *ours.recv()


def cosines(one, other):
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / norms


def compare(found, expected):
    centred = cosines(found - found.mean(axis=0), expected - expected.mean(axis=0))
    return {
        "cosine_min": round(float(cosines(found, expected).min()), 5),
        "cosine_mean": round(float(cosines(found, expected).mean()), 5),
        "centred_cosine_mean": round(float(centred.mean()), 5),
    }


def measure_shape():
    shape_BT = BATCH.value, TOKENS.value
    with tempfile.TemporaryDirectory() as folder:
        save_random_weights(folder, SHAPE.value)
        # Loaded one after the other, so that none waits for another's file.
        running = {kind: start(folder, kind, shape_BT) for kind in KINDS}
        seconds = {kind: [] for kind in KINDS}
        for _ in range(REPEATS.value):
            for kind, (pipe, *_) in running.items():
                pipe.send("run")
                seconds[kind].append(pipe.recv())
        expected = running[None][2]
        for kind, (pipe, loaded, found) in running.items():
            pipe.send("stop")
            median = statistics.median(seconds[kind])
            speed = {"tokens_per_s": round(BATCH.value * TOKENS.value / median, 1)}
            speed["of_float32_speed"] = round(statistics.median(seconds[None]) / median, 2)
            accuracy = {"cosine_min": round(float(cosines(found, expected).min()), 5)}
            show(kind, case=SHAPE.value, **loaded, **speed, **accuracy)


def measure_model():
    from scipy.stats import spearmanr

    import geneformer_jax as gf

    made = {}
    for kind in KINDS:
        model = gf.load_model(MODEL.value, quantize=kind)
        embedded = gf.embed_cells(model, CELLS.value, max_cells=MAX_CELLS.value)
        shifts = gf.perturb_cells(model, CELLS.value, max_cells=PERTURBED.value)
        of_cells = shifts[shifts["measure"] == "cell_cosine"]
        made[kind] = embedded.obsm["X_geneformer"], of_cells["value"].to_numpy()
    for kind in KINDS:
        spearman = spearmanr(made[kind][1], made[None][1]).statistic
        accuracy = compare(made[kind][0], made[None][0])
        show(kind, case=MODEL.value, **accuracy, deletions=len(made[None][1]),
             spearman=round(float(spearman), 4))  # fmt: skip


def show(kind, **figures):
    print(json.dumps({"benchmark": "quantized", "kind": kind or "float32", **figures}), flush=True)


def main(_):
    if SHAPE.value:
        measure_shape()
    if MODEL.value:
        measure_model()


if __name__ == "__main__":
    app.run(main)
