"""Checks and measures everything on one accelerator: a JSON file as it goes, a table at the end.

    PYTHONPATH=. python benchmarks/accelerator.py --out=accelerator.json [--budget=480]
    PYTHONPATH=. python benchmarks/accelerator.py --tiny       # every stage on a CPU, tiny shapes

Needs jax, flax, optax, orbax-checkpoint, numpy, scipy, pandas, pyarrow, h5py, numba, tqdm and
absl-py, no data and no network; with PyTorch and transformers the same work is done by them too.

Checks come first. Each has the bounds of the tests (tests/helpers/tolerances.py) and compares with
plain attention in float32 on the host: every attention implementation and precision, packed rows,
loss scaling, the optimizer's state in pinned memory, deletions, and a screen beside exact ones.
Measurements follow in the order of their worth, warm, as medians; cells are made up, of full length
or with lengths drawn as in Geneformer's corpora. MFU counts operations on real tokens and masked
genes only, against the dense peak in the maker's data sheet.

Each stage has a time of its own, and none begins that the budget does not hold; one that fails, or
takes its process with it, is recorded and the others go on. The JSON file is whole at any time:
`--show=FILE` prints its table.
"""

import json
import platform
import signal
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from absl import app, flags
from on_device.sizes import PUBLISHED, TINY
from on_device.stages import RESERVE_S, Report, Stage, run_stages
from on_device.table import table

_USUAL_BUDGET_S = 480.0
OUT = flags.DEFINE_string("out", "accelerator.json", "file of results")
BUDGET = flags.DEFINE_float("budget", _USUAL_BUDGET_S, "seconds in all, starts and table included")
TINY_SIZES = flags.DEFINE_bool("tiny", False, "tiny shapes, for a CPU")
STAGES = flags.DEFINE_list("stages", [], "only stages whose name contains one of these")
SHOW = flags.DEFINE_string("show", "", "print the table of such a file, and do nothing else")

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
_PEAK = "Peaks: dense, of the SXM module, in the maker's data sheet."
# In the order of their worth. Seconds are for this budget, and guesses until a device is measured.
ALL_STAGES = (
    Stage("attention is right", "on_device.attention_checks:check", 15, 110),
    Stage("packing is right", "on_device.training_checks:check_packing", 15, 45),
    Stage("state is right", "on_device.training_checks:check_state", 15, 45),
    Stage("deletions are right", "on_device.perturbation_checks:check", 15, 75),
    Stage("train V1-10M", "on_device.training:full_v1", 20, 75),
    Stage("train V2-104M", "on_device.training:full_v2", 30, 90),
    Stage("embed V1-10M", "on_device.inference:embed_v1", 15, 60),
    Stage("delete V1-10M", "on_device.inference:delete", 20, 75),
    Stage("embed V2-104M", "on_device.inference:embed_v2", 20, 75),
    Stage("half precision learns", "on_device.training_checks:check_precisions", 20, 60),
    Stage("train V1-10M, real lengths", "on_device.training:real_v1", 30, 90),
    Stage("embed V2-316M", "on_device.inference:embed_large", 30, 90),
    Stage("heads V1-10M", "on_device.inference:read_heads", 15, 40),
    Stage("attention alone", "on_device.attention_speed:measure", 10, 40),
    Stage("PyTorch, attention alone", "on_device.pytorch:attention", 10, 30, "torch"),
    Stage("PyTorch, train", "on_device.pytorch:train", 15, 60, "torch"),
    Stage("PyTorch, embed", "on_device.pytorch:embed", 15, 60, "torch"),
    Stage("train V2-104M, real lengths", "on_device.training:real_v2", 40, 150),
)


def main(_) -> None:
    began = time.monotonic()
    if SHOW.value:
        print("\n".join(table(json.loads(Path(SHOW.value).read_text()))))
        return
    # So that whoever ends this ends its process too, and sees what was found.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = [
        each._replace(most_s=each.most_s * BUDGET.value / _USUAL_BUDGET_S)
        for each in ALL_STAGES
        if not STAGES.value or any(part in each.name for part in STAGES.value)
    ]
    facts = {
        "began": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "sizes": "tiny" if TINY_SIZES.value else "published",
        "budget_s": BUDGET.value,
        "seconds": 0.0,
        "versions": {"Python": platform.python_version(), **_versions()},
        "peak": _PEAK,
    }
    report = Report(Path(OUT.value), facts)
    sizes = TINY if TINY_SIZES.value else PUBLISHED
    try:
        run_stages(chosen, sizes, report, began + BUDGET.value - RESERVE_S)
    finally:
        report.found["seconds"] = round(time.monotonic() - began, 1)
        report.save()
        print("\n".join(table(report.found)), flush=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    app.run(main)
