"""Draws the loss on held-out cells by compute: the original's recipe beside faster ones.

    python benchmarks/time_to_loss.py --store=STORE --output=FOLDER [--steps=300]

Compute is counted in floating point operations of matrix products on real tokens and masked genes,
views of cells included; N is what --steps steps of the original recipe take. Each recipe first runs
with each of its learning rates and one seed, the original within N, every other within N / 2; then
with the best of them and the other seeds. Batches, warmup (a tenth) and schedule fill whatever a
run may take. The model is small (--width, --layers), so that this is done within an hour or two on
a CPU; STORE is cut to --length tokens a cell.

Prints a JSON line for each run, and writes them into FOLDER/runs.jsonl, the curves into
FOLDER/curves.png and a table of means over seeds into FOLDER/table.csv. Every run is one of
`pretrain` in a folder of its own: killed and given again, the benchmark goes on.
"""

import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from absl import app, flags

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.config import PretrainConfig, pretrain_config, typed_config
from geneformer_jax.training.run import prepare_run
from geneformer_jax.training.telemetry import read_metrics

STORE = flags.DEFINE_string("store", None, "tokenised cells", required=True)
OUTPUT = flags.DEFINE_string("output", None, "folder of all runs", required=True)
STEPS = flags.DEFINE_integer("steps", 300, "of the original recipe", lower_bound=10)
SEEDS = flags.DEFINE_integer("seeds", 3, "runs with the best learning rate", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 256, "tokens of a cell at most", lower_bound=8)
WIDTH = flags.DEFINE_integer("width", 128, "of the model", lower_bound=64)
LAYERS = flags.DEFINE_integer("layers", 3, "of the model", lower_bound=1)
RECIPES = flags.DEFINE_list(
    "recipes", None, "names of those to run beside the original; by default all"
)
HELD_OUT = 400
POINTS = 6


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
      rates: learning rates to search.
      options: of the configuration, by dotted name.
      part: of N that it may take.
    """

    rates: tuple[float, ...]
    options: dict[str, Any]
    part: float = 0.5


_ADAMW, _MUON = (5e-4, 1e-3, 2e-3), (5e-3, 1e-2, 2e-2)
_SMALL = {"data.cells_per_batch": 8}
_COMPONENTS = {"initial_genes": "components"}
ALL = {
    "original": Recipe(_ADAMW, {}, part=1.0),
    "original-8-cells": Recipe(_ADAMW, _SMALL),
    "original-components": Recipe(_ADAMW, _COMPONENTS),
    "muon": Recipe(_MUON, {"optimizer.name": "muon"}),
    "muon-8-cells": Recipe(_MUON, {"optimizer.name": "muon", **_SMALL}),
    "muon-8-cells-components": Recipe(_MUON, {"optimizer.name": "muon", **_SMALL, **_COMPONENTS}),
    "muon-stable-decay": Recipe(
        _MUON, {"optimizer.name": "muon", "optimizer.schedule": "stable_decay"}
    ),
    "muon-30%-masked": Recipe(_MUON, {"optimizer.name": "muon", "masking.selected_fraction": 0.3}),
    "muon-contrastive": Recipe(_MUON, {"optimizer.name": "muon", "objective.contrastive": 0.2}),
}


def configuration(recipe: Recipe, rate: float, seed: int) -> PretrainConfig:
    """Returns the run of a recipe, its steps still to be set."""
    model = EncoderConfig(
        vocabulary_size=1,
        layers=LAYERS.value,
        width=WIDTH.value,
        heads=WIDTH.value // 64,
        feed_forward=2 * WIDTH.value,
        positions=LENGTH.value,
        dropout=0.02,
        attention_dropout=0.0,
    )
    config = pretrain_config(model, vocabulary_size=0)
    config.data.store, config.data.cells_per_batch, config.data.max_buckets = STORE.value, 24, 2
    config.optimizer.learning_rate, config.seed = rate, seed
    config.optimizer.warmup_steps, config.optimizer.warmup_ratio = 0, 0.1
    config.evaluation.held_out_cells = HELD_OUT
    config.update_from_flattened_dict(recipe.options)
    return typed_config(config)


def flops_of(config: PretrainConfig, store: CellStore) -> float:
    """Returns the floating point operations of a step."""
    return prepare_run(dataclasses.replace(config, steps=1), store).flops_per_step


def run(name: str, rate: float, seed: int, budget: float, store: CellStore) -> dict[str, Any]:
    """Trains within a budget of operations; returns what came of it."""
    config = configuration(ALL[name], rate, seed)
    flops = flops_of(config, store)
    steps = round(ALL[name].part * budget / flops)
    often = dataclasses.replace(config.evaluation, every_steps=-(-steps // POINTS))
    config = dataclasses.replace(config, steps=steps, evaluation=often)
    folder = Path(OUTPUT.value) / f"{name}_{rate:g}_{seed}"
    loss = pretrain(config, folder).held_out.loss
    curve = [
        (row["step"] * flops / budget, row["held_out_loss"])
        for row in read_metrics(folder)
        if "held_out_loss" in row
    ]
    return {
        "recipe": name,
        "rate": rate,
        "seed": seed,
        "steps": steps,
        "loss": loss,
        "curve": curve,
    }


def search(name: str, budget: float, store: CellStore) -> list[dict[str, Any]]:
    """Runs a recipe with each learning rate, then with the other seeds and the best of them."""
    found = [run(name, rate, 0, budget, store) for rate in ALL[name].rates]
    best = min(found, key=lambda each: each["loss"])
    return found + [run(name, best["rate"], seed, budget, store) for seed in range(1, SEEDS.value)]


def compute_to(loss: float, curve: list[tuple[float, float]]) -> float:
    """Returns the part of N at which a curve falls to a loss; NaN where it does not.

    Between two points the curve is taken to be straight.
    """
    for (before, above), (after, below) in itertools.pairwise(curve):
        if below <= loss < above:
            return before + (after - before) * (above - loss) / (above - below)
    return float("nan")


def at_best_rates(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the runs of each recipe, a seed each, at the rate that was best with the first."""
    first = [each for each in runs if each["seed"] == 0]
    best: dict[str, dict[str, Any]] = {}
    for each in sorted(first, key=lambda each: each["loss"]):
        best.setdefault(each["recipe"], each)
    return {
        name: [
            each for each in runs if (each["recipe"], each["rate"]) == (name, best[name]["rate"])
        ]
        for name in dict.fromkeys(each["recipe"] for each in runs)
    }


def table(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Returns for each recipe at its best learning rate the mean and range over seeds."""
    chosen = at_best_rates(runs)
    target = statistics.mean(each["loss"] for each in chosen["original"])
    rows = []
    for name, found in chosen.items():
        losses = [each["loss"] for each in found]
        row = {"recipe": name, "learning rate": found[0]["rate"], "seeds": len(found)}
        row |= {"part of N": ALL[name].part, "steps": found[0]["steps"]}
        row |= {"loss": statistics.mean(losses), "lowest": min(losses), "highest": max(losses)}
        reached = [compute_to(target, each["curve"]) for each in found]
        # Of its own mean the original falls short in some seeds.
        row["part of N to the original's loss"] = 1.0 if name == "original" else np.mean(reached)
        rows.append(row)
    return pd.DataFrame(rows)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draws the curve of every run at its recipe's best learning rate."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (name, found) in enumerate(at_best_rates(runs).items()):
        for index, each in enumerate(found):
            label = None if index else f"{name}, {each['rate']:g}"
            axes.plot(
                *zip(*each["curve"], strict=True), color=f"C{number}", label=label, marker="."
            )
    axes.set(xlabel="compute, as part of N", ylabel="loss on held-out cells (nats)")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(_) -> None:
    store = CellStore.open(STORE.value)
    # What the others are judged by is always run.
    names = list(dict.fromkeys(["original", *(RECIPES.value or ALL)]))
    if unknown := set(names) - set(ALL):
        raise app.UsageError(f"no recipe is named {', '.join(sorted(unknown))}; known: {list(ALL)}")
    budget = STEPS.value * flops_of(configuration(ALL["original"], 1e-3, 0), store)
    runs = []
    for name in names:
        for each in search(name, budget, store):
            runs.append(each)
            print(json.dumps(each), flush=True)
    folder = Path(OUTPUT.value)
    (folder / "runs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in runs))
    result = table(runs)
    result.to_csv(folder / "table.csv", index=False)
    print(result.round(4).to_string(index=False))
    draw(runs, folder / "curves.png")


if __name__ == "__main__":
    app.run(main)
