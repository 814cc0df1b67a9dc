"""Weighs what commands cost before they do anything: processor seconds, which load hardly moves.

    python benchmarks/startup.py [--repeats=5]

Two tables. `--help` of every command, beside Python alone. Then a tokenisation of 20 cells, and
what of it is due to each library: each row imports one more than the row above, in the order in
which the command needs them; the last rows are our own modules, and all that is left (the probe of
the file in a process of its own, compiled kernels loaded, reading, writing). Medians of user and
system time, of child processes too; the first run of each, which writes bytecode, does not count.
Then the fixed costs of a tokenisation itself: what the same cells take in a process that has
tokenised before, by the clock and in processor seconds.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from tokenization import tokenize_files

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary

PROJECT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(
    path.stem for path in (PROJECT / "geneformer_jax").glob("*.py") if "__" not in path.name
)
# In the order in which a tokenisation needs them, and why it does.
LIBRARIES = {
    "numpy": "arrays",
    "h5py": "the reader of HDF5",
    "pandas": "obs",
    "scipy.sparse": "counts",
    "pyarrow.parquet, pyarrow.compute": "ids, tables of the store",
    "numba": "ranking, records",
    "array_record.python.array_record_data_source": "shards",
    "tensorflow_datasets": "description of the store",
}
OURS = "geneformer_jax.cells.store.builder, geneformer_jax.cells.store.join"
GENES, CELLS = 50, 20


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each row")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ, "PYTHONPATH": str(PROJECT), "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"
        }  # fmt: skip
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        weigh = Weigh(Path(folder), environment, repeats)
        print_helps(weigh)
        print_tokenisation(weigh)
        print_fixed_costs(weigh.folder, repeats)


class Weigh:
    """Weighs runs of Python in one folder and environment."""

    def __init__(self, folder: Path, environment: Mapping[str, str], repeats: int):
        self.folder, self._environment, self._repeats = folder, environment, repeats

    def __call__(self, arguments: Sequence[str]) -> float:
        """Returns the median of the processor seconds of `python ARGUMENTS`."""
        return statistics.median([self._once(arguments) for _ in range(self._repeats + 1)][1:])

    def _once(self, arguments: Sequence[str]) -> float:
        before = _child_seconds()
        # Each into a folder of its own, as a complete store is not written again.
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            filled = [each.replace("PLACE", place) for each in arguments]
            subprocess.run(
                [sys.executable, *filled], cwd=self.folder, env=self._environment, check=True,
                capture_output=True,
            )  # fmt: skip
        return _child_seconds() - before


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def print_helps(weigh: Weigh) -> None:
    """Prints what `--help` of each command takes."""
    print("| command | CPU s |\n|---|---|")
    print(f"| Python alone | {weigh(['-c', 'pass']):.3f} |")
    for name in COMMANDS:
        seconds = weigh(["-m", f"geneformer_jax.{name}", "--help"])
        print(f"| `{name} --help` | {seconds:.3f} |", flush=True)


def print_tokenisation(weigh: Weigh) -> None:
    """Prints what a small tokenisation takes, library by library."""
    write_inputs(weigh.folder)
    print("\n| a small tokenisation | CPU s, in all | of these |\n|---|---|---|")
    before = print_row("Python", weigh(["-c", "pass"]), 0.0)
    imported = ""
    for names, purpose in LIBRARIES.items():
        imported += f"import {names}\n"
        before = print_row(f"{names} ({purpose})", weigh(["-c", imported]), before)
    before = print_row("our modules", weigh(["-c", f"{imported}import {OURS}"]), before)
    arguments = ["--counts=cells.h5ad", "--vocabulary=vocabulary", "--output=PLACE/store"]
    print_row("the rest", weigh(["-m", "geneformer_jax.tokenize", *arguments]), before)


def print_fixed_costs(folder: Path, repeats: int) -> None:
    """Prints what a tokenisation takes where all is imported and loaded; the first is left out."""
    runs = [tokenize_again(folder, number) for number in range(repeats + 1)][1:]
    wall, cpu = (statistics.median(each) for each in zip(*runs, strict=True))
    print(f"\nonce more in the same process: {wall:.3f} s, {cpu:.3f} s of CPU")


def tokenize_again(folder: Path, number: int) -> tuple[float, float]:
    """Tokenises the cells, and returns the seconds by the clock and of this process."""
    # A copy: a file that was read before is not probed again.
    cells = shutil.copy(folder / "cells.h5ad", folder / f"cells{number}.h5ad")
    wall, cpu = time.perf_counter(), time.process_time()
    tokenize_files([cells], folder / "vocabulary", folder / f"store{number}")
    return time.perf_counter() - wall, time.process_time() - cpu


def print_row(name: str, seconds: float, before: float) -> float:
    """Prints a row with its share; returns its seconds."""
    print(f"| {name} | {seconds:.3f} | {seconds - before:.3f} |", flush=True)
    return seconds


def write_inputs(folder: Path) -> None:
    """Writes a vocabulary, and an h5ad of a few cells."""
    rng = np.random.default_rng(0)
    ids = np.array([f"ENSG{number:011d}" for number in range(GENES)])
    GeneVocabulary(ids, np.full(GENES, ""), np.ones(GENES)).save(folder / "vocabulary")
    counts = rng.poisson(1.0, (CELLS, GENES)).astype(np.float32)
    anndata.AnnData(counts, var=pd.DataFrame(index=ids)).write_h5ad(folder / "cells.h5ad")


if __name__ == "__main__":
    main()
