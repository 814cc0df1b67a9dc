"""Times whole training steps beside PyTorch: one JSON line per case.

    python benchmarks/pretrain_step.py --shapes=8x512,4x2048                        # CPU, float32
    python benchmarks/pretrain_step.py --shapes=64x2048 --precision=bfloat16 \\
        --attention_dropout=0 --counts=pbmc3k.h5ad --dictionaries=FOLDER            # GPU

A step is forward, backward, gradient clipping and AdamW with dropout on, of a model with random
weights. Every side gets the same masked genes of the same cells; batches are made beforehand and
brought to the device within the time measured:
  geneformer_jax       what `pretrain` runs: logits at masked positions only
  geneformer_jax, contrastive   the same with a view of each cell; `tokens_per_s` counts its tokens
  torch                transformers' BertForMaskedLM as the original trains it: SDPA attention,
                       fused AdamW, logits at all positions
  torch, masked only   the same with its head on the masked positions only
  torch, compiled      both once more with torch.compile, where there is a GPU
A shape, cells x tokens, is a batch of made-up cells of full length. With --counts real cells follow
at their real lengths: ours in buckets of --tokens tokens a batch, PyTorch's sorted by length into
batches of --cells cells, padded to the longest of each, as the original groups them.

Each case is a process of its own, warmed up by one whole pass (so compiling is left out and given
apart), and all take turns. Speeds are medians over repeats of the wall time; `cpu_seconds`, of all
threads, are the better measure where other work disturbs. `of_torch` is the speed in cells,
divided by that of the case "torch". `mfu` counts operations on real tokens and masked genes only.
Peak memory is the device's on a GPU, else that of the whole process.
"""

import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags
from on_device.made_up import MadeUpCells
from on_device.pytorch import CLIP, LEARNING_RATE, WEIGHT_DECAY, labels_of, training_step

MODEL = flags.DEFINE_string("model", "v1_10m", "preset")
SHAPES = flags.DEFINE_list("shapes", ["8x512", "4x2048"], "cells x tokens of full-length batches")
PRECISION = flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16"], "number format")
ATTENTION = flags.DEFINE_string("attention", "auto", "our attention implementation")
REMAT = flags.DEFINE_string("remat", "none", "what our backward pass computes again")
DROPOUT = flags.DEFINE_float("dropout", None, "of both sides; by default the preset's")
ATTENTION_DROPOUT = flags.DEFINE_float(
    "attention_dropout", None, "of both; by default the preset's"
)
COUNTS = flags.DEFINE_string("counts", None, "h5ad of raw counts for real lengths")
DICTIONARIES = flags.DEFINE_string("dictionaries", None, "original dictionaries for --counts")
TOKENS = flags.DEFINE_integer("tokens", 131_072, "tokens in our batches of real lengths")
CELLS = flags.DEFINE_integer("cells", 64, "cells in PyTorch's batches of real lengths")
STEPS = flags.DEFINE_integer("steps", 1, "steps in a measurement of a shape", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "measurements of each case", lower_bound=1)
CASES = flags.DEFINE_list("cases", None, "names of the cases to run; by default all")


class Workload(NamedTuple):
    """What is trained on: `cells` x `tokens` made-up cells, or real ones if `tokens` is 0."""

    name: str
    cells: int
    tokens: int
    counts: str = ""
    dictionaries: str = ""


class Options(NamedTuple):
    """The flags, for processes that do not parse them."""

    model: str
    precision: str
    attention: str
    remat: str
    dropout: float | None
    attention_dropout: float | None
    steps: int
    tokens: int
    cells: int


def encoder_of(options):
    from geneformer_jax.model.config import preset

    wanted = {"dropout": options.dropout, "attention_dropout": options.attention_dropout}
    return preset(options.model, **{k: v for k, v in wanted.items() if v is not None})


def cells_of(workload, encoder, steps):
    if workload.tokens:
        lengths = np.full(workload.cells * steps, workload.tokens)
        return MadeUpCells(lengths, encoder.vocabulary_size)
    from geneformer_jax.cells.formats.open import open_counts
    from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions, tokenize_source
    from geneformer_jax.interop.original_dictionaries import read_original_vocabulary

    vocabulary = read_original_vocabulary(Path(workload.dictionaries))
    return tokenize_source(
        open_counts(workload.counts), vocabulary, TokenizerOptions(max_length=encoder.positions)
    )


def run_of(workload, options, contrastive=0.0):
    """Our run on these cells, made ready as `pretrain` does it."""
    from geneformer_jax.training.config import pretrain_config, typed_config
    from geneformer_jax.training.run import prepare_run

    encoder = encoder_of(options)
    config = pretrain_config(encoder, vocabulary_size=0)
    config.data.cells_per_batch = workload.cells
    config.data.tokens_per_batch = 0 if workload.tokens else options.tokens
    config.objective.contrastive = contrastive
    config.epochs, config.evaluation.held_out_cells = 1, 0
    config.mesh.data = 1
    config.runtime.precision = options.precision
    config.runtime.attention, config.runtime.remat = options.attention, options.remat
    config.optimizer.learning_rate, config.optimizer.weight_decay = LEARNING_RATE, WEIGHT_DECAY
    config.optimizer.schedule, config.optimizer.warmup_steps = "constant", 0
    config.optimizer.clip_norm = CLIP
    return prepare_run(typed_config(config), cells_of(workload, encoder, options.steps))


def jax_case(workload, options, contrastive=0.0):
    from geneformer_jax.common.threads import keep_freed_memory

    keep_freed_memory()
    import jax

    from geneformer_jax.model.sharding import put_batch
    from geneformer_jax.training.flops import peak_flops, step_flops
    from geneformer_jax.training.initial.start import start_state

    run = run_of(workload, options, contrastive)
    batches = [run.batches[step] for step in range(run.steps)]
    with jax.set_mesh(run.mesh):
        state = start_state(run)
    tokens = padded = 0

    def train():
        nonlocal state, tokens, padded
        seen = []
        with jax.set_mesh(run.mesh):
            for batch in batches:
                state, metrics = run.train_step(state, put_batch(batch, run.mesh))
                seen.append(metrics)
        tokens, padded = (
            int(sum(getattr(each, name) for each in seen)) for name in ("tokens", "padded_tokens")
        )
        return float(metrics.loss)

    def report():
        lengths = run.store.lengths
        flops = step_flops(run.encoder, lengths, 0.15 * lengths.sum())
        device = jax.devices()[0]
        memory = device.memory_stats()
        return {
            "cells": len(lengths),
            "tokens": tokens,
            "padding": 1 - tokens / padded,
            "flops": flops,
            "peak": peak_flops(device, options.precision),
            "memory": memory["peak_bytes_in_use"] if memory else None,
            "notes": " ".join(run.notes),
            "device": device.device_kind,
            "version": jax.__version__,
        }

    return train, report


def torch_batches(workload, options):
    """Padded tokens, lengths and labels (-100 where nothing is masked), as numpy arrays."""
    from geneformer_jax.batches.config import MaskingConfig
    from geneformer_jax.batches.loader import pad_cells
    from geneformer_jax.batches.masking import mask_cells

    if workload.tokens:
        run = run_of(workload, options)
        for step in range(run.steps):
            batch = run.batches[step]
            yield batch.tokens_BT, batch.lengths_B, labels_of(batch)
        return
    cells = cells_of(workload, encoder_of(options), 1)
    order = np.argsort(-np.asarray(cells.lengths), kind="stable")
    for start in range(0, len(order), options.cells):
        chosen = order[start : start + options.cells]
        lengths = np.asarray(cells.lengths)[chosen]
        padded = pad_cells(cells.read(chosen), int(lengths.max()), cells.vocabulary.pad_id)
        masked = mask_cells(
            padded,
            lengths,
            chosen,
            seed=0,
            step=start,
            config=MaskingConfig(),
            vocabulary=cells.vocabulary,
        )
        yield masked.tokens_BT, lengths, labels_of(masked)


def torch_case(workload, options, masked_only, compiled):
    import torch

    torch.set_num_threads(os.cpu_count())
    how = "static" if workload.tokens else "dynamic"
    step = training_step(
        encoder_of(options),
        half=options.precision == "bfloat16",
        masked_only=masked_only,
        compiled=how if compiled else "",
    )
    batches = list(torch_batches(workload, options))

    def train():
        for batch in batches:
            loss = step(*batch)
        return loss.item()

    def report():
        tokens = sum(int(lengths.sum()) for _, lengths, _ in batches)
        return {
            "cells": sum(len(lengths) for _, lengths, _ in batches),
            "tokens": tokens,
            "padding": 1 - tokens / sum(ids.size for ids, _, _ in batches),
            "memory": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            "version": torch.__version__,
        }

    return train, report


def worker(pipe, make, *arguments):
    """Prepares a case, then runs it at each request."""
    train, report = make(*arguments)
    began = time.perf_counter()
    losses = [train()]
    warm_up = time.perf_counter() - began
    pipe.send("ready")
    while pipe.recv() == "run":
        began, worked = time.perf_counter(), time.process_time()
        losses.append(train())
        pipe.send((time.perf_counter() - began, time.process_time() - worked))
    result = report()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["memory"] = result["memory"] or resident
    pipe.send({**result, "warm_up_s": round(warm_up, 1), "first_loss": round(losses[0], 4)})


def cases(on_gpu):
    yield "geneformer_jax", jax_case, ()
    yield "geneformer_jax, contrastive", jax_case, (0.1,)
    for compiled in (False, True)[: 1 + on_gpu]:
        ending = ", compiled" if compiled else ""
        yield f"torch{ending}", torch_case, (False, compiled)
        yield f"torch, masked only{ending}", torch_case, (True, compiled)


def start(make, arguments):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=worker, args=(theirs, make, *arguments), daemon=True).start()
    ours.recv()
    return ours


def measure(workload, options, on_gpu):
    running = {
        name: start(make, (workload, options, *arguments))
        for name, make, arguments in cases(on_gpu)
        if CASES.value is None or name in CASES.value
    }
    seconds = {name: [] for name in running}
    for _ in range(REPEATS.value):
        for name, pipe in running.items():
            pipe.send("run")
            seconds[name].append(pipe.recv())
    results = {}
    for name, pipe in running.items():
        pipe.send("stop")
        results[name] = pipe.recv()
    times = {name: np.array(seconds[name]) for name in running}
    speeds = {name: results[name]["cells"] / np.median(times[name][:, 0]) for name in running}
    ours = results.get("geneformer_jax", {})
    for name, result in results.items():
        line = describe(result, speeds[name], ours)
        line["of_torch"] = round(speeds[name] / speeds["torch"], 2) if "torch" in speeds else None
        line["seconds"], line["cpu_seconds"] = times[name].T.round(3).tolist()
        header = {"benchmark": "pretrain_step", "workload": workload.name, "case": name}
        print(json.dumps({**header, **line, "load": round(os.getloadavg()[0], 1)}), flush=True)


def describe(result, cells_per_s, ours):
    per_cell = ours["flops"] / ours["cells"] if ours else None
    peak = ours.get("peak")
    return {
        "cells_per_s": round(cells_per_s, 2),
        "tokens_per_s": round(cells_per_s * result["tokens"] / result["cells"]),
        "mfu": round(cells_per_s * per_cell / peak, 4) if peak else None,
        "padding": round(result["padding"], 3),
        "peak_memory_mib": round(result["memory"] / 2**20),
        **{name: result[name] for name in ("warm_up_s", "first_loss", "version")},
        **{name: result[name] for name in ("device", "notes") if name in result},
    }


def main(_):
    on_gpu = Path("/proc/driver/nvidia").exists()
    # All processes share one GPU: none may take most of its memory beforehand.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    options = Options(
        MODEL.value, PRECISION.value, ATTENTION.value, REMAT.value, DROPOUT.value,
        ATTENTION_DROPOUT.value, STEPS.value, TOKENS.value, CELLS.value,
    )  # fmt: skip
    workloads = [
        Workload(f"{MODEL.value} {shape} {PRECISION.value}", *map(int, shape.split("x")))
        for shape in SHAPES.value
    ]
    if COUNTS.value:
        name = f"{MODEL.value} real lengths {PRECISION.value}"
        workloads.append(Workload(name, 0, 0, COUNTS.value, DICTIONARIES.value))
    for workload in workloads:
        measure(workload, options, on_gpu)


if __name__ == "__main__":
    app.run(main)
