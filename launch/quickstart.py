"""Real cells in, a pretrained model and a picture out: runs the commands one after another.

Without --counts it uses the 700 blood cells that scanpy's own package carries; no network is
needed. Every command is printed before it runs, so that you can run it yourself. Interrupted or
run again, it goes on where it stopped.
"""

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from absl import flags
from scipy import sparse

from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.common import command_line
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, fingerprint

DEMO_NAME = "pbmc68k_reduced"
DEMO_LABEL = "bulk_labels"
_PURPOSES = {
    "embed": "embed cells from their counts",
    "perturb": "delete every gene of a few cells, one at a time",
    "finetune": "learn to tell the labels apart",
    "predict": "predict them in other cells",
}
CONFIG, FINETUNE_CONFIG = "configs/quickstart.py", "configs/finetune_cells.py"

# The demonstration cells hold log(1 + counts per 10,000), rounded to this many decimals.
_DECIMALS = 3
_ROUNDING = 0.5 * 10.0**-_DECIMALS
_FLOAT32_ROOM = 1e-6
_MAX_LABELS = 50
# In the few minutes of this run a model cannot learn genes that it hardly ever meets.
_RARE_FRACTION = 0.03
# The highest ranked genes matter most, and attention over longer cells is slow on a laptop.
_MAX_LENGTH = 512

_COUNTS = flags.DEFINE_string("counts", "", "Raw-count h5ad file; empty for the demonstration.")
_LABEL = flags.DEFINE_string(
    "label", "", "obs column with cell types; empty to take the first that looks like one."
)
_OUTPUT = flags.DEFINE_string("output", "quickstart", "Folder that gets one folder for each input.")


def recover_counts(logged: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """Recovers integer counts from log(1 + counts per 10,000) that was rounded to 3 decimals.

    A count is taken only if it alone explains the stored value: it must give that value to within
    the rounding, and one count more or less must not.

    Args:
      logged: [cells, genes].
      totals: [cells] all counts of each cell, genes that `logged` lacks included.

    Returns:
      int32 [cells, genes].

    Raises:
      InputError: some value is explained by no count, or by more than one, or a cell has more
        counts than its total.
    """
    total_of = np.repeat(np.asarray(totals, np.float64), np.diff(logged.indptr))
    stored = logged.data.astype(np.float64)

    def misfit(counts: np.ndarray) -> np.ndarray:
        return np.abs(np.log1p(counts / total_of * 1e4) - stored)

    counts = np.round(np.expm1(stored) * total_of / 1e4)
    room = _ROUNDING + _FLOAT32_ROOM
    explained = (misfit(counts) <= room) & (counts >= 1)
    if not explained.all():
        example = stored[np.argmin(explained)]
        raise InputError(
            f"{(~explained).sum():,} of {len(stored):,} values, such as {example:.6g}, are not "
            "log(1 + counts per 10,000) of an integer; give a file of raw counts with --counts"
        )
    unique = (misfit(counts + 1) > room) & (misfit(counts - 1) > room)
    recovered = sparse.csr_matrix(
        (counts.astype(np.int32), logged.indices, logged.indptr), shape=logged.shape
    )
    if not unique.all() or np.any(recovered.sum(axis=1).A1 > totals):
        raise InputError(
            "the values allow more than one integer count, or more counts than the cell has; "
            "give a file of raw counts with --counts"
        )
    return recovered


def demo_cells() -> ad.AnnData:
    """Returns scanpy's 700 blood cells with raw counts, gene symbols and `bulk_labels`."""
    try:
        import scanpy as sc
    except ModuleNotFoundError as error:
        raise InputError(
            "the demonstration cells come with scanpy, which is not installed; "
            'run make quickstart, or pip install "geneformer_jax[demo]"'
        ) from error
    reduced = sc.datasets.pbmc68k_reduced()
    counts = recover_counts(
        sparse.csr_matrix(reduced.raw.X), reduced.obs["n_counts"].to_numpy(np.float64)
    )
    obs = reduced.obs[["n_counts", DEMO_LABEL]].copy()
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=reduced.raw.var_names))


def choose_label(obs: pd.DataFrame) -> str:
    """Returns the first obs column of categories (2 to 50 of them), or '' if there is none."""
    for name in obs.columns:
        column = obs[name]
        is_number = pd.api.types.is_numeric_dtype(column)
        if not is_number and 2 <= column.nunique() <= _MAX_LABELS:
            return str(name)
    return ""


def prepare() -> tuple[Path, Path, str]:
    """Returns (file of raw counts, folder for the outputs, label column)."""
    if _COUNTS.value:
        counts = Path(_COUNTS.value)
        obs = open_counts(counts).obs()
        label = _LABEL.value or choose_label(obs)
        if label and label not in obs:
            known = ", ".join(map(str, obs.columns))
            raise InputError(f'{counts} has no obs column "{label}"; it has {known}')
        folder = Path(_OUTPUT.value) / counts.stem
        claim(folder, counts)
        return counts, folder, label
    folder = Path(_OUTPUT.value) / DEMO_NAME
    counts = folder / "counts.h5ad"
    if not counts.exists():
        cells = demo_cells()
        with atomic_write(counts) as aside:
            cells.write_h5ad(aside)
        print(f"Recovered the integer counts of {cells.n_obs} cells x {cells.n_vars} genes.")
    claim(folder, counts)
    return counts, folder, _LABEL.value or DEMO_LABEL


def claim(folder: Path, counts: Path) -> None:
    """Marks `folder` as made from `counts`; raises InputError if it was made from another file."""
    mark = folder / "quickstart.json"
    source = fingerprint(counts)
    if mark.exists():
        if json.loads(mark.read_text()) != source:
            raise InputError(
                f"{folder} was made from another {counts.name}; remove it, or name another folder "
                "with --output"
            )
        return
    with atomic_write(mark) as aside:
        aside.write_text(json.dumps(source) + "\n")


def as_arguments(options: Mapping[str, object]) -> list[str]:
    """Returns options as the words of a command."""
    return [f"--{option}={value}" for option, value in options.items()]


def run_command(name: str, **options: object) -> None:
    """Prints and runs `python -m geneformer_jax.<name>`; ends this program if it fails."""
    command = as_arguments(options)
    shown = " ".join(map(shlex.quote, command)).replace(" --", " \\\n    --")
    print(f"\n$ python -m geneformer_jax.{name} \\\n    {shown}", flush=True)
    status = subprocess.run([sys.executable, "-m", f"geneformer_jax.{name}", *command]).returncode
    if status:
        sys.exit(status)


def next_commands(counts: Path, folder: Path, label: str) -> dict[str, dict[str, object]]:
    """Returns what can be done with the model: command -> its options, all of which are there."""
    checkpoint, classifier = {"checkpoint": folder / "model"}, folder / "classifier"
    again, shifts = {"output": folder / "embedded_again.h5ad"}, {"output": folder / "shifts"}
    commands = {
        "embed": {**checkpoint, "cells": counts, **again},
        "perturb": {**checkpoint, "cells": counts, **shifts, "max_cells": 5},
    }
    if label:
        learning = {"config.optimizer.learning_rate": 1e-3, "config.epochs": 5}
        task = {"config.data.store": folder / "cells", "config.task.label": label}
        commands["finetune"] = {
            **checkpoint, "config": FINETUNE_CONFIG, **task, **learning, "workdir": classifier,
        }  # fmt: skip
        predicted = {"output": folder / "predicted.h5ad"}
        commands["predict"] = {"checkpoint": classifier, "cells": counts, **predicted}
    return commands


def print_next(commands: Mapping[str, Mapping[str, object]]) -> None:
    """Prints commands, a line each, for the folder and the environment that this program ran in."""
    python = os.path.relpath(sys.executable)
    if python.startswith(os.pardir):
        python = sys.executable
    print("\nWhat to do next; each line works as it is, and with --cells of your own:")
    for name, options in commands.items():
        line = shlex.join([python, "-m", f"geneformer_jax.{name}", *as_arguments(options)])
        print(f"# {_PURPOSES[name]}\n{line}")
    print(f"# all there is\n{python} -m geneformer_jax")


def main() -> None:
    """Runs build_vocabulary, tokenize, pretrain and embed."""
    counts, folder, label = prepare()
    vocabulary, store, model = folder / "vocabulary", folder / "cells", folder / "model"
    embeddings = folder / "embeddings.h5ad"
    # A vocabulary folder appears whole; the other commands find out themselves what is left to do.
    if not vocabulary.exists():
        seldom = math.ceil(_RARE_FRACTION * open_counts(counts).n_cells)
        run_command("build_vocabulary", counts=counts, output=vocabulary, min_cells=seldom)
    columns = {"obs": label} if label else {}
    run_command(
        "tokenize",
        counts=counts,
        vocabulary=vocabulary,
        output=store,
        max_length=_MAX_LENGTH,
        **columns,
    )
    run_command("pretrain", **{"config": CONFIG, "config.data.store": store, "workdir": model})
    coloured = {"color": label} if label else {}
    run_command(
        "embed",
        checkpoint=model,
        cells=store,
        counts=counts,
        output=embeddings,
        figures="true",
        **coloured,
    )
    print(f"\nEverything is in {folder}:")
    for path in sorted(folder.iterdir()):
        print(f"  {path}")
    print_next(next_commands(counts, folder, label))


if __name__ == "__main__":
    command_line.run(main)
