"""Times in silico perturbation beside the original's way: one JSON line per case.

    python benchmarks/perturb.py [--genes=300,1000,2048] [--edits=300,128,48]

Every gene of a cell is deleted in turn (--edits of them here), with random weights
of V1-10M's shape in float32, and the mean over the genes left of each one's cosine before and after
the edit is taken, one hidden layer below the last:
  geneformer_jax            what `perturb` runs
  torch, batch of N         the original's way in plain PyTorch: edited lists of ids made on the
                            host, padded, all layers with SDPA attention, cosines on the device; all
                            that the original computes but its vocabulary head
  torch with head, ...      with that head too, whose logits the original computes and drops
Each case is a process of its own, warmed up by one pass (compiling is left out and reported apart);
all take turns. Edits per second are medians over repeats. Values are compared with each other.
"""

import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time

import numpy as np
import pandas as pd
from absl import app, flags

GENES = flags.DEFINE_list("genes", ["300", "1000", "2048"], "genes of the cell, of each case")
EDITS = flags.DEFINE_list("edits", ["300", "128", "48"], "edits that are timed, of each case")
REPEATS = flags.DEFINE_integer("repeats", 3, "measurements of each case", lower_bound=1)
BATCHES = flags.DEFINE_list("batches", ["4", "16"], "batch sizes of PyTorch")
HEAD = flags.DEFINE_bool("head", True, "also PyTorch with the vocabulary head")
VOCABULARY, FIRST_GENE = 25_426, 2


def ranked_cell(genes):
    return np.random.default_rng(0).permutation(np.arange(FIRST_GENE, VOCABULARY))[:genes]


def deleted_places(genes, edits):
    """So many genes from the middle of the cell, as a run comes to them one after the other."""
    return np.arange((genes - edits) // 2, (genes + edits) // 2)


class OneCell:
    """A cell as a tokenised store gives it."""

    def __init__(self, tokens, vocabulary):
        self.tokens, self.vocabulary = tokens.astype(np.uint16), vocabulary
        self.lengths = np.array([len(tokens)], np.int32)
        self.obs = pd.DataFrame(index=["cell"])

    def read(self, indices):
        return [self.tokens for _ in indices]


def jax_case(weights, genes, edits):
    import dataclasses

    import jax

    from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
    from geneformer_jax.interop.huggingface import read_model
    from geneformer_jax.model.runtime import inference_runtime
    from geneformer_jax.model.sharding import use_all_cores
    from geneformer_jax.perturbation.config import PerturbationOptions
    from geneformer_jax.perturbation.prepare import (
        make_perturber,
        make_plan,
        make_spec,
        resolve_edits,
    )

    use_all_cores()
    ids = np.array([f"ENSG{i:011d}" for i in range(VOCABULARY - FIRST_GENE)])
    vocabulary = GeneVocabulary(ids, np.full(len(ids), ""), np.ones(len(ids)))
    model = dataclasses.replace(read_model(weights).model, vocabulary=vocabulary)
    tokens = ranked_cell(genes)
    runtime, _ = inference_runtime(model.config, genes)
    options, cells = PerturbationOptions(), OneCell(tokens, vocabulary)
    spec = make_spec(model, options)
    plan = make_plan(cells, options, spec, *resolve_edits(model, options))
    perturber = make_perturber(model, cells, options, spec, plan, runtime)
    first = (genes - edits) // 2

    def run():
        with perturber.progress(edits) as progress:
            return perturber.shifts(first, first + edits, progress).values_EM[:, 0]

    def facts():
        return {
            "attention": runtime.attention,
            "compile_s": round(perturber.throughput.compiling, 1),
            "version": jax.__version__,
        }

    return run, facts


def torch_case(weights, genes, edits, batch, with_head):
    import torch
    from transformers import BertForMaskedLM

    torch.set_num_threads(os.cpu_count())
    model = BertForMaskedLM.from_pretrained(weights, attn_implementation="sdpa").eval()
    encoder = model if with_head else model.bert
    tokens = ranked_cell(genes).tolist()
    places = deleted_places(genes, edits)
    cosine = torch.nn.CosineSimilarity(dim=2)

    def hidden(lists):
        longest = max(map(len, lists))
        ids = torch.tensor([each + [0] * (longest - len(each)) for each in lists])
        mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in lists])
        return encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]

    @torch.inference_mode()
    def run():
        original, values = hidden([tokens])[0], []
        for start in range(0, len(places), batch):
            chosen = places[start : start + batch]
            edited = hidden([tokens[:place] + tokens[place + 1 :] for place in chosen])
            left = [np.delete(np.arange(genes), place) for place in chosen]
            values.append(cosine(edited, original[torch.tensor(np.array(left))]).mean(dim=1))
        return torch.cat(values).numpy()

    return run, lambda: {"version": torch.__version__}


def worker(pipe, make, *arguments):
    """Prepares a case, then runs it each time it is asked to."""
    run, facts = make(*arguments)
    pipe.send(run())
    while pipe.recv() == "run":
        began = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send({**facts(), "peak_memory_mib": round(peak)})


def save_random_weights(folder):
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=2048, hidden_act="relu",
        layer_norm_eps=1e-12, pad_token_id=0, initializer_range=0.08,
    )  # fmt: skip
    BertForMaskedLM(shape).save_pretrained(folder)


def cases(weights, genes, edits):
    yield "geneformer_jax", jax_case, (weights, genes, edits)
    for batch in map(int, BATCHES.value):
        yield f"torch, batch of {batch}", torch_case, (weights, genes, edits, batch, False)
    if HEAD.value:
        batch = int(BATCHES.value[0])
        given = (weights, genes, edits, batch, True)
        yield f"torch with head, batch of {batch}", torch_case, given


def start(make, arguments):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(theirs, make, *arguments), daemon=True)
    process.start()
    return ours, ours.recv()


def measure(weights, genes, edits):
    started = {name: start(make, given) for name, make, given in cases(weights, genes, edits)}
    reference = started["geneformer_jax"][1]
    seconds = {name: [] for name in started}
    for _ in range(REPEATS.value):
        for name, (pipe, _) in started.items():
            pipe.send("run")
            seconds[name].append(pipe.recv())
    for name, (pipe, values) in started.items():
        pipe.send("stop")
        median = statistics.median(seconds[name])
        line = {
            "case": name,
            "genes": genes,
            "edits": len(values),
            "edits_per_s": round(len(values) / median, 2),
            "seconds": [round(each, 2) for each in seconds[name]],
            "largest_difference": float(np.abs(values - reference).max()),
            **pipe.recv(),
        }
        print(json.dumps(line), flush=True)


def main(_):
    with tempfile.TemporaryDirectory() as folder:
        save_random_weights(folder)
        for genes, edits in zip(GENES.value, EDITS.value, strict=True):
            measure(folder, int(genes), int(edits))


if __name__ == "__main__":
    app.run(main)
