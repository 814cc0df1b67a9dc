"""Real cells in, a model and what it says out: runs the commands one after another.

Without --counts it uses the 700 blood cells that scanpy's own package carries; no network is
needed. Every command is printed before it runs, so that you can run it yourself. Interrupted or
run again, it goes on where it stopped.
"""

import json
import math
import os
import shlex
import sys
import textwrap
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
from quickstart_findings import CLASSIFIER, EMBEDDINGS, MODEL, SCREEN, findings
from run_command import as_arguments, run_command

DEMO_NAME = "pbmc68k_reduced"
DEMO_LABEL = "bulk_labels"
_PURPOSES = {
    "embed": "embed cells from their counts",
    "perturb": "delete every gene of a few cells, one at a time, exactly",
    "predict": "predict the labels of cells",
}
CONFIG, FINETUNE_CONFIG = "configs/quickstart.py", "configs/finetune_cells.py"
# What a few hundred cells take; more of them take no longer. A head that begins as a probe of the
# cells' embeddings is nearly there.
_FINETUNING = {
    "config.head.initial": "probe",
    "config.head.pooling": "mean",
    "config.optimizer.learning_rate": 2e-4,
    "config.steps": 100,
}
_SCREENED_CELLS = 60

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


def commonest_states(labels: pd.Series) -> tuple[str, str] | None:
    """Returns (start, goal): the second commonest label and the commonest; None of fewer than 2."""
    common = labels[labels != ""].dropna().astype(str).value_counts().index[:2]
    return (common[1], common[0]) if len(common) == 2 else None


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


def learn(counts: Path, folder: Path, label: str) -> None:
    """Fine-tunes on the labels, and screens deletions of genes from one label towards another."""
    model, store = {"checkpoint": folder / MODEL}, folder / "cells"
    run_command(
        "finetune",
        **model,
        **{
            "config": FINETUNE_CONFIG,
            "config.data.store": store,
            "config.task.label": label,
            "config.task.drop_small": True,
            **_FINETUNING,
        },
        workdir=folder / CLASSIFIER,
    )
    if states := commonest_states(open_counts(counts).obs()[label]):
        run_command(
            "perturb",
            **model,
            cells=store,
            output=folder / SCREEN,
            screen="true",
            states=label,
            start=states[0],
            goal=states[1],
            max_cells=_SCREENED_CELLS,
            statistics="goal_state_shift",
        )


def print_end(folder: Path) -> None:
    """Prints where everything is, what the numbers say, and which page to open."""
    print(f"\nEverything is in {folder}:")
    for path in sorted(folder.iterdir()):
        print(f"  {path}")
    print("\nWhat the numbers say, each beside what it must beat:")
    for finding in findings(folder):
        print(textwrap.fill(finding, 100, initial_indent="- ", subsequent_indent="  "))
    index = folder / "index.html"
    pages = [index] if index.exists() else sorted(folder.glob("**/*report.html"))
    print("\nOpen in a browser (no network is needed):")
    for page in pages:
        print(f"  {page.resolve().as_uri()}")


def next_commands(counts: Path, folder: Path, label: str) -> dict[str, dict[str, object]]:
    """Returns what can be done with the model: command -> its options, all of which are there."""
    checkpoint, shifts = {"checkpoint": folder / MODEL}, {"output": folder / "shifts"}
    again, predicted = folder / "embedded_again.h5ad", folder / "predicted.h5ad"
    commands = {
        "embed": {**checkpoint, "cells": counts, "output": again},
        "perturb": {**checkpoint, "cells": counts, **shifts, "max_cells": 5},
    }
    if label:
        trained = {"checkpoint": folder / CLASSIFIER}
        commands["predict"] = {**trained, "cells": counts, "output": predicted}
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


def make_model(counts: Path, folder: Path, label: str) -> None:
    """Runs build_vocabulary, tokenize and pretrain."""
    vocabulary, store = folder / "vocabulary", folder / "cells"
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
    data = {"config": CONFIG, "config.data.store": store}
    run_command("pretrain", **data, workdir=folder / MODEL)


def main() -> None:
    """Runs build_vocabulary, tokenize, pretrain, embed, and with labels finetune and perturb."""
    counts, folder, label = prepare()
    make_model(counts, folder, label)
    coloured = {"color": label} if label else {}
    run_command(
        "embed",
        checkpoint=folder / MODEL,
        cells=folder / "cells",
        counts=counts,
        output=folder / f"{EMBEDDINGS}.h5ad",
        figures="true",
        **coloured,
    )
    if label:
        learn(counts, folder, label)
    else:
        print("\nNo obs column of labels: nothing is fine-tuned and no genes are deleted.")
    print_end(folder)
    print_next(next_commands(counts, folder, label))


if __name__ == "__main__":
    command_line.run(main)
