"""Compiles the pretraining step for machines that are not there; JSON lines, then a table.

    python benchmarks/compile_ahead.py [--targets=tpu,cuda] [--cases=v100]

Every pretraining configuration on the hardware that it states, the original's set-up, a slice of
256 TPU chips, and one case that does not fit. Needs the extras aot (TPU) and aot_cuda. Hours are
reckoned for the configuration's epochs over full-length cells at an assumed fraction of the stated
peak: compiling proves neither speed nor numerics.
"""

import json
import runpy
from pathlib import Path
from typing import NamedTuple

import jax
from absl import app, flags

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import PRESETS, MeshConfig, preset
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import make_mesh
from geneformer_jax.training.config import OptimizerConfig, typed_config
from geneformer_jax.training.dry_run.hardware import find_hardware
from geneformer_jax.training.dry_run.report import compile_steps
from geneformer_jax.training.dry_run.synthetic_corpus import synthetic_corpus
from geneformer_jax.training.flops import ASSUMED_SPEED, bytes_per_device, peak_flops
from geneformer_jax.training.optimizer import make_optimizer
from geneformer_jax.training.run import prepare_run
from geneformer_jax.training.state import Recipe, abstract_state

TARGETS = flags.DEFINE_list("targets", ["tpu", "cuda"], "platforms to compile for")
CASES = flags.DEFINE_string("cases", "", "only cases whose configuration or target contains this")
CONFIGS = Path(__file__).parents[1] / "configs"
# What is compiled does not depend on how many cells there are; hours grow in proportion.
COMPILED_CELLS = 1_000_000
MESHES = ((8, 1, 1), (1, 8, 1), (2, 1, 4), (2, 2, 2))


class Case(NamedTuple):
    config: str
    target: str
    cells: int
    changes: dict = {}  # noqa: RUF012


V1, V2, CANCER = 27_400_000, 104_000_000, 14_000_000
PAPER, H100S, SLICE = "cuda:v100:1x3x4", "cuda:h100:1x1x8", "tpu:v5e:16x16"
CASES_TABLE = (
    Case("pretrain_v1_10m", PAPER, V1),
    Case("pretrain_v1_10m", "tpu:v5e:4x4", V1),
    Case("pretrain_v1_10m_v100", PAPER, V1),
    Case("pretrain_v1_10m_v100", PAPER, V1, {"runtime.optimizer_on_host": True}),
    Case("pretrain_v2_104m", H100S, V2),
    Case("pretrain_v2_104m", SLICE, V2, {"data.tokens_per_batch": 256 * 4096}),
    Case("pretrain_v2_104m", "tpu:v5p:2x2x2", V2, {"runtime.optimizer_on_host": True}),
    Case("pretrain_v2_316m", H100S, V2),
    Case("pretrain_v2_316m", "tpu:v6e:4x4", V2, {"data.tokens_per_batch": 16 * 4096}),
    Case("pretrain_v2_316m", "tpu:v4:2x2x4", V2, {"data.tokens_per_batch": 16 * 4096}),
    Case("pretrain_v2_316m", "tpu:v5e:1x1", V2, {"mesh.fsdp": 1, "runtime.remat": "none"}),
    Case("continue_cancer", H100S, CANCER),
)


def compile_case(case: Case) -> dict:
    config = runpy.run_path(str(CONFIGS / f"{case.config}.py"))["get_config"]()
    config.update_from_flattened_dict(case.changes)
    target = find_hardware(case.target)
    report = {"benchmark": "compile_ahead", "jax": jax.__version__, **case._asdict()}
    corpus = f"{COMPILED_CELLS}x{config.model.positions}"
    store = synthetic_corpus(corpus, config.model.vocabulary_size)
    run = prepare_run(typed_config(config), store, target.devices)
    state = run.abstract_state
    report |= {
        "mesh": list(run.mesh.shape.values()),
        "precision": config.runtime.precision,
        "attention": run.runtime.attention,
        "state_gib": round(bytes_per_device(state) / 2**30, 3),
        "flop_per_step": float(f"{run.flops_per_step:.4g}"),
        "hours": _hours(run, case),
    }
    try:
        step = next(compile_steps(run, target))
    except InputError as error:
        return report | {"refused": str(error)}
    gib = {name: round(size / 2**30, 3) for name, size in step.memory._asdict().items()}
    collectives = {
        kind: [each.count, round(each.payload / 2**20, 1)]
        for kind, each in step.collectives.items()
    }
    return report | {
        "batch": [step.cells, step.bucket],
        "gib": gib,
        "memory_gib": round(target.memory / 2**30, 1),
        "collectives_count_mib": collectives,
        "compile_s": round(step.seconds),
    }


def _hours(run, case: Case) -> float | None:
    peak = peak_flops(run.mesh.devices.flat[0], run.config.runtime.precision)
    if not peak:
        return None
    flops = run.flops_per_step * run.steps * case.cells / COMPILED_CELLS
    return round(flops / (peak * ASSUMED_SPEED.mfu * run.mesh.size) / 3600, 1)


def table(rows: list[dict]) -> list[str]:
    lines = [
        "| configuration, target, mesh (data, fsdp, tensor) | precision, attention | batch | "
        "GiB on each device: state; arguments + temporaries; peak of memory | FLOP a step | "
        "collectives: number, MiB | hours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        changes = ", ".join(f"{key}={value}" for key, value in row["changes"].items())
        name = f"{row['config']}, {row['target']}, {tuple(row['mesh'])}"
        name += f"; {changes}" if changes else ""
        how = f"{row['precision']}, {row['attention']}"
        if "refused" in row:
            lines.append(f"| {name} | {how} | refused: {row['refused']} | | | | |")
            continue
        gib = row["gib"]
        held = f"{row['state_gib']}; {gib['arguments']} + {gib['temporaries']}; {gib['peak']} of "
        held += str(row["memory_gib"]) + (f"; host {gib['host']}" if gib["host"] else "")
        moved = ", ".join(
            f"{kind} {count}, {mib}" for kind, (count, mib) in row["collectives_count_mib"].items()
        )
        batch = "{} x {}".format(*row["batch"])
        hours = "-" if row["hours"] is None else row["hours"]
        flops = f"{row['flop_per_step']:.3g}"
        lines.append(f"| {name} | {how} | {batch} | {held} | {flops} | {moved} | {hours} |")
    return lines


def state_table() -> list[str]:
    """GiB of weights and optimizer state on each device, for every preset on meshes of eight."""
    devices = find_hardware("tpu:v5e:2x4").devices
    optimizer = make_optimizer(OptimizerConfig(), 10)
    lines = [
        "| preset | " + " | ".join(map(str, MESHES)) + " |",
        "|---|" + "---|" * len(MESHES),
    ]
    for name in PRESETS:
        recipe, cells = Recipe(preset(name), optimizer, Runtime(), seed=0), []
        for shape in MESHES:
            if recipe.config.heads % shape[2]:
                cells.append("heads not divisible")
                continue
            state = abstract_state(recipe, make_mesh(MeshConfig(*shape), devices))
            cells.append(f"{bytes_per_device(state) / 2**30:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main(_):
    jax.config.update("jax_platforms", "cpu")
    rows = []
    for case in CASES_TABLE:
        wanted = case.target.split(":")[0] in TARGETS.value
        if wanted and CASES.value in f"{case.config} {case.target}":
            rows.append(compile_case(case))
            print(json.dumps(rows[-1]), flush=True)
    print("\n".join([*table(rows), "", *state_table()]))


if __name__ == "__main__":
    app.run(main)
