"""Times a screen beside exact edits, or measures its estimates: one JSON line per case.

    python benchmarks/perturb_screen.py [--genes=1000,2048] [--edits=128,48]
    python benchmarks/perturb_screen.py --model=RUN --cells=STORE --states=COLUMN:START:GOAL

Speed: every gene of a cell for each core is deleted, with random weights of V1-10M's shape in
float32 and one state. Cases, each a process of its own, warmed up by one pass (compiling is left
out); all take turns, and edits per second are medians:
  exact            one encoding for each edit (--edits of them, from the middle of the first cell)
  screen           all edits of the cells estimated
  screen, settled  the same, and the strongest 5 % exactly (without the sample of 200 edits that a
                   run makes once, whatever its number of cells)

Accuracy (with --model): shifts of all deletions in --max_cells cells of the start state beside
exact ones: Spearman's correlation, and the recall of the exact strongest 5 % among the estimates'
strongest 15 %, as means over cells and over all edits. Forms of the estimate:
  screen   what `perturb --screen` does
  linear   the cosine with later genes moved is interpolated linearly between split points
"""

import dataclasses
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import time

import numpy as np
import pandas as pd
from absl import app, flags

GENES = flags.DEFINE_list("genes", ["1000", "2048"], "genes of the cell, of each case")
EDITS = flags.DEFINE_list("edits", ["128", "48"], "exact edits that are timed, of each case")
REPEATS = flags.DEFINE_integer("repeats", 3, "measurements of each case", lower_bound=1)
SPLIT_POINTS = flags.DEFINE_list("split_points", ["12"], "of the screen")
MODEL = flags.DEFINE_string("model", "", "checkpoint, for accuracy")
CELLS = flags.DEFINE_string("cells", "", "cells, for accuracy")
STATES = flags.DEFINE_string("states", "", "COLUMN:START:GOAL, for accuracy")
MAX_CELLS = flags.DEFINE_integer("max_cells", 50, "cells of the start state, for accuracy")
VOCABULARY, FIRST_GENE = 25_426, 2
CORES = os.cpu_count()
CASES = ("exact", "screen", "screen, settled")


class RandomCells:
    """Cells as a tokenised store gives them, one for each core."""

    def __init__(self, genes, vocabulary):
        rng, self.vocabulary = np.random.default_rng(0), vocabulary
        pool = np.arange(FIRST_GENE, VOCABULARY)
        self.tokens = [rng.permutation(pool)[:genes].astype(np.uint16) for _ in range(CORES)]
        self.lengths = np.full(CORES, genes, np.int32)
        self.obs = pd.DataFrame(index=[f"cell{i}" for i in range(CORES)])

    def read(self, indices):
        return [self.tokens[i] for i in indices]


def random_model():
    import jax

    from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
    from geneformer_jax.model.config import EncoderConfig
    from geneformer_jax.model.encoder import init_params
    from geneformer_jax.model.pretrained import PretrainedModel

    ids = np.array([f"ENSG{i:011d}" for i in range(VOCABULARY - FIRST_GENE)])
    vocabulary = GeneVocabulary(ids, np.full(len(ids), ""), np.ones(len(ids)))
    config = EncoderConfig(
        vocabulary_size=VOCABULARY,
        width=256,
        layers=6,
        heads=4,
        feed_forward=512,
        positions=2_048,
        initializer_range=0.08,
    )
    params = init_params(config, jax.random.key(0))
    return PretrainedModel(config, params, vocabulary, source="random", step=0)


def prepared(genes):
    """Returns (model, plan, what is computed, states) of all deletions in a cell per core."""
    from geneformer_jax.model.runtime import inference_runtime
    from geneformer_jax.model.sharding import use_all_cores
    from geneformer_jax.perturbation.config import PerturbationOptions
    from geneformer_jax.perturbation.prepare import make_plan, make_spec, resolve_edits

    use_all_cores()
    model, options = random_model(), PerturbationOptions()
    spec = make_spec(model, options)
    runtime = inference_runtime(model.config, genes)[0]
    spec = dataclasses.replace(spec, runtime=runtime, states=("goal",))
    cells = RandomCells(genes, model.vocabulary)
    plan = make_plan(cells, options, spec, *resolve_edits(model, options))
    states = np.random.default_rng(1).normal(size=(1, model.config.width))
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    return model, plan, spec, states.astype(np.float32)


def speed_case(case, genes, edits):
    """Returns what runs a case, and how many edits that makes."""
    from geneformer_jax.perturbation.engine.engine import place_weights
    from geneformer_jax.perturbation.engine.perturber import Perturber
    from geneformer_jax.perturbation.engine.screening.screener import Screener
    from geneformer_jax.perturbation.engine.screening.settling import Settler, choose_edits

    (model, *others), all_edits = prepared(genes), genes * CORES
    # As a screen does.
    given = place_weights(model, others[1]), *others
    if case == "exact":
        perturber, first = Perturber(*given), (genes - edits) // 2
        return lambda: perturber.shifts(first, first + edits), edits
    screener = Screener(*given, split_points=int(SPLIT_POINTS.value[0]))
    if case == "screen":
        return lambda: screener.shifts(0, all_edits), all_edits
    estimates = screener.shifts(0, all_edits).values_EM[:, 0]
    chosen = choose_edits(estimates, 0.05, 0)._replace(sampled=np.zeros(0, np.int64))
    settler = Settler(*given, chosen)
    return lambda: settler.settle(screener.shifts(0, all_edits)), all_edits


def worker(pipe, arguments, *case):
    """Prepares a case, then runs it each time it is asked to."""
    flags.FLAGS(arguments)
    run, edits = speed_case(*case)
    run()
    pipe.send(edits)
    while pipe.recv() == "run":
        began = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - began)
    pipe.send(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def start(arguments, *case):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(theirs, arguments, *case), daemon=True)
    process.start()
    return process, ours, ours.recv()


def speed(arguments):
    for genes, edits in zip(GENES.value, EDITS.value, strict=True):
        started = {case: start(arguments, case, int(genes), int(edits)) for case in CASES}
        seconds = {case: [] for case in started}
        for _ in range(REPEATS.value):
            for case, (_, pipe, _) in started.items():
                pipe.send("run")
                seconds[case].append(pipe.recv())
        rates = {case: started[case][2] / statistics.median(seconds[case]) for case in started}
        for case, (process, pipe, made) in started.items():
            pipe.send("stop")
            line = {
                "case": case,
                "genes": int(genes),
                "edits": made,
                "edits_per_s": round(rates[case], 1),
                "times_exact": round(rates[case] / rates["exact"], 1),
                "seconds": [round(each, 2) for each in seconds[case]],
                "peak_memory_mib": pipe.recv(),
            }
            # Ended by itself, not by a signal, of which JAX would print a trace.
            process.join()
            print(json.dumps(line), flush=True)


def linear_bridge(splits_K, values_KS, moving_ST):
    """The cosine after later genes moved, interpolated linearly between split points."""
    places = np.arange(moving_ST.shape[1])
    return np.stack([np.interp(places, splits_K, values_K) for values_K in values_KS.T])


def describe(exact_ES, estimate_ES, offsets):
    """Spearman and recall: means over cells and states, the lowest cell's, and over all edits."""
    from geneformer_jax.perturbation.statistics.accuracy.screen_accuracy import recall, spearman

    pairs = list(zip(exact_ES.T, estimate_ES.T, strict=True))
    cells = [
        (exact_E[begin:end], estimate_E[begin:end])
        for exact_E, estimate_E in pairs
        for begin, end in itertools.pairwise(offsets)
    ]
    found = {}
    for name, measure in (("spearman", spearman), ("recall", recall)):
        within = [measure(*cell) for cell in cells]
        found |= {f"{name}_within_cells": np.mean(within), f"{name}_lowest_cell": min(within)}
        found[f"{name}_over_all"] = np.mean([measure(*pair) for pair in pairs])
    return {name: round(float(value), 4) for name, value in found.items()}


def accuracy():
    from unittest import mock

    from geneformer_jax.inference.cells import open_cells
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.model.sharding import use_all_cores
    from geneformer_jax.perturbation import prepare
    from geneformer_jax.perturbation.cell_states import CellStates
    from geneformer_jax.perturbation.config import PerturbationOptions
    from geneformer_jax.perturbation.engine.perturber import Perturber
    from geneformer_jax.perturbation.engine.screening import screener

    use_all_cores()
    model = load_model(MODEL.value)
    column, first, goal = STATES.value.split(":")
    states = CellStates(column, goal=goal, start=first)
    options = PerturbationOptions(states=states, max_cells=MAX_CELLS.value)
    cells, spec = open_cells(CELLS.value, model), prepare.make_spec(model, options)
    options, spec = prepare.name_states(options, spec, cells)
    edits = prepare.resolve_edits(model, options)
    plan = prepare.make_plan(cells, options, spec, *edits)
    given = model, plan, *prepare.choose_runtime(model, cells, options, spec, plan)
    is_shift = [measure == "state_shift" for measure, _ in spec.measures]
    exact_ES = Perturber(*given).shifts(0, plan.edits).values_EM[:, is_shift]
    for split_points in map(int, SPLIT_POINTS.value):
        for form, bridge in (("screen", screener.bridge), ("linear", linear_bridge)):
            with mock.patch.object(screener, "bridge", bridge):
                engine = screener.Screener(*given, split_points=split_points)
                found_EM = engine.shifts(0, plan.edits).values_EM
            line = {"form": form, "split_points": split_points, "states": STATES.value}
            line |= {"cells": len(plan.counts), "edits": plan.edits}
            line |= describe(exact_ES, found_EM[:, : exact_ES.shape[1]], plan.offsets)
            print(json.dumps(line), flush=True)


def main(arguments):
    accuracy() if MODEL.value else speed(arguments)


if __name__ == "__main__":
    app.run(main)
