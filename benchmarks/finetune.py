"""Times a step of fine-tuning beside PyTorch: one JSON line per case.

    python benchmarks/finetune.py --counts=pbmc3k.h5ad --dictionaries=FOLDER [--cells=4]

The same cells (tokenised with the original's V1 dictionaries), in the same padded batch, the same
random weights of V1-10M's shape, float32, dropout 0.02, AdamW with clipping. A step is forward,
backward and update:
  cell, gene     the original's heads, all weights trainable
  frozen 4       the same for genes with the lowest 4 of 6 layers frozen, as in the dosage task
  lora 8         low-rank factors on query and value, head and factors trainable (ours only)
Each case is a process of its own, warmed up by one step (compiling is reported apart), and all take
turns. Cells per second are medians over repeats. The loss of the first step, with dropout on both
sides, agrees roughly (tests compare a step without).
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
CELLS = flags.DEFINE_integer("cells", 12, "cells in the batch", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 832, "tokens they are padded or cut to", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "measurements of each case", lower_bound=1)
CASES = flags.DEFINE_list("cases", ["cell", "gene", "frozen 4", "lora 8"], "which to run")
CLASSES = ("a", "b")


def batch_of(counts, dictionaries, cells, length):
    """Tokens, lengths and random labels of cells and genes."""
    from geneformer_jax.cells.formats.open import open_counts
    from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions, tokenize_source
    from geneformer_jax.inference.cells import select_cells
    from geneformer_jax.interop.original_dictionaries import read_original_vocabulary

    vocabulary = read_original_vocabulary(Path(dictionaries))
    source = tokenize_source(open_counts(counts), vocabulary, TokenizerOptions(max_length=length))
    chosen = select_cells(source, max_cells=cells)
    rng = np.random.default_rng(0)
    lengths = np.asarray(chosen.lengths, np.int32)
    tokens = np.zeros((cells, length), np.int32)
    for row, each in enumerate(chosen.read(np.arange(cells))):
        tokens[row, : len(each)] = each
    real = np.arange(length) < lengths[:, None]
    known = real & (rng.random(real.shape) < 0.1)
    return tokens, lengths, rng.integers(0, 2, cells), rng.integers(0, 2, real.shape), known


def jax_case(folder, case, batch):
    import jax

    from geneformer_jax.batches.labelled import LabelledBatch
    from geneformer_jax.finetuning.config import (
        TuningConfig,
        finetune_config,
        typed_finetune_config,
    )
    from geneformer_jax.finetuning.network.step import (
        Constants,
        StepSpec,
        compile_steps,
        traced_hyperparams,
    )
    from geneformer_jax.finetuning.network.trainable import split_weights
    from geneformer_jax.interop.huggingface import read_model
    from geneformer_jax.model.config import MeshConfig, RuntimeConfig
    from geneformer_jax.model.sharding import put_batch
    from geneformer_jax.training.config import OptimizerConfig

    tokens, lengths, of_cells, of_genes, known = batch_of(*batch)
    model = read_model(folder).model
    tuning = {"frozen 4": TuningConfig(freeze_layers=4), "lora 8": TuningConfig(lora_rank=8)}
    tuning = tuning.get(case, TuningConfig())
    optimizer = OptimizerConfig(warmup_steps=0)
    spec = StepSpec(model.config, model.head, tuning, optimizer, RuntimeConfig(), MeshConfig(1))
    compiled = compile_steps(spec, tokens.shape[1])
    trainable, frozen = split_weights(model.params, model.config, tuning, jax.random.key(0))
    config = typed_finetune_config(finetune_config())
    constants = jax.device_put(
        Constants(frozen, traced_hyperparams(config, 1_000)), compiled.constants
    )
    if case == "cell":
        targets, weights = of_cells[:, None], np.ones((len(of_cells), 1))
    else:
        targets, weights = (of_genes * known)[..., None], known[..., None]
    cells = np.arange(len(tokens), dtype=np.int32)
    labelled = LabelledBatch(
        tokens, lengths, targets.astype(np.float32), weights.astype(np.float32), cells
    )
    state = compiled.start(jax.device_get(trainable))
    first_loss = []
    placed = put_batch(labelled, compiled.mesh)

    def run():
        nonlocal state
        with jax.set_mesh(compiled.mesh):
            state, metrics = compiled.step(state, placed, constants)
            first_loss.append(float(metrics.loss))
        return first_loss[0]

    return run, lambda: {"version": jax.__version__, "notes": list(compiled.notes)}


def torch_case(folder, case, batch):
    import torch
    from transformers import BertForSequenceClassification, BertForTokenClassification

    tokens, lengths, of_cells, of_genes, known = batch_of(*batch)
    torch.set_num_threads(os.cpu_count())
    kind = BertForSequenceClassification if case == "cell" else BertForTokenClassification
    model = kind.from_pretrained(folder, attn_implementation="sdpa").train()
    if case == "frozen 4":
        for layer in model.bert.encoder.layer[:4]:
            layer.requires_grad_(False)
    decayed = [p for n, p in model.named_parameters() if "bias" not in n and "LayerNorm" not in n]
    plain = [p for n, p in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    groups = [{"params": decayed, "weight_decay": 0.001}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-5)
    mask = torch.from_numpy((np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int64))
    labels = of_cells if case == "cell" else np.where(known, of_genes, -100)
    inputs = {
        "input_ids": torch.from_numpy(tokens).long(),
        "attention_mask": mask,
        "labels": torch.from_numpy(labels).long(),
    }
    first_loss = []

    def run():
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        first_loss.append(loss.item())
        return first_loss[0]

    return run, lambda: {"version": torch.__version__}


def worker(pipe, make, *arguments):
    """Prepares a case, then runs a step each time it is asked to."""
    began = time.perf_counter()
    run, facts = make(*arguments)
    loss = run()
    pipe.send((loss, time.perf_counter() - began))
    while pipe.recv() == "run":
        began = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send({**facts(), "peak_memory_mib": round(peak)})


def save_random_weights(folder):
    """Two classifiers of V1-10M's shape with random weights."""
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertForTokenClassification,
    )

    shape = BertConfig(
        vocab_size=25_426, hidden_size=256, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=2048, hidden_act="relu",
        layer_norm_eps=1e-12, hidden_dropout_prob=0.02, attention_probs_dropout_prob=0.02,
        pad_token_id=0, num_labels=2,
    )  # fmt: skip
    for name, kind in (
        ("cell", BertForSequenceClassification),
        ("gene", BertForTokenClassification),
    ):
        torch.manual_seed(0)
        kind(shape).save_pretrained(Path(folder, name))


def start(make, arguments):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(theirs, make, *arguments), daemon=True)
    process.start()
    return ours, *ours.recv()


def main(_):
    batch = (COUNTS.value, DICTIONARIES.value, CELLS.value, LENGTH.value)
    with tempfile.TemporaryDirectory() as folder:
        save_random_weights(folder)
        running = {}
        for case in CASES.value:
            weights = Path(folder, "cell" if case == "cell" else "gene")
            running[case, "geneformer_jax"] = start(jax_case, (weights, case, batch))
            if not case.startswith("lora"):
                running[case, "torch"] = start(torch_case, (weights, case, batch))
        seconds = {name: [] for name in running}
        for _ in range(REPEATS.value):
            for name, (pipe, *_) in running.items():
                pipe.send("run")
                seconds[name].append(pipe.recv())
        for (case, library), (pipe, loss, ready) in running.items():
            pipe.send("stop")
            median = statistics.median(seconds[case, library])
            theirs = statistics.median(seconds.get((case, "torch"), [float("nan")]))
            line = {
                "benchmark": "finetune",
                "case": case,
                "library": library,
                "cells": CELLS.value,
                "tokens": LENGTH.value,
                "cells_per_s": round(CELLS.value / median, 2),
                "of_torch": round(theirs / median, 2),
                "seconds": [round(each, 2) for each in seconds[case, library]],
                "ready_s": round(ready, 1),
                "first_loss": round(loss, 4),
                "load": round(os.getloadavg()[0], 1),
                **pipe.recv(),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
