"""Numbers of tokens of real cells, without tokenising them."""

from pathlib import Path

import h5py
import numpy as np

FILES = ("pbmc_facs_zheng", "pbmc3k", "combat_covid")


def real_lengths(data: Path, longest: int = 2_048) -> np.ndarray:
    """Returns the lengths [cells] that the cells of three files have in the 30M vocabulary."""
    lengths = []
    for name in FILES:
        with h5py.File(data / "cells" / f"{name}.h5ad") as file:
            known = file["var/in_gc30M"][:]
            counted = known[file["X/indices"][:]] & (file["X/data"][:] > 0)
            ends = file["X/indptr"][:]
        up_to = np.concatenate([[0], np.cumsum(counted)])[ends]
        lengths.append(np.diff(up_to))
    return np.clip(np.concatenate(lengths), 1, longest).astype(np.int32)


def simulated_lengths(cells: int, *, longest: int = 2_048, seed: int = 0) -> np.ndarray:
    """Returns lengths drawn like those of a corpus: 7 % of the cells reach the longest.

    Log-normal. Geneformer's corpora have 7 % of their cells cut off, at 2,048 tokens in the first
    and at 4,096 in the second, whose mean is about 1,440.
    """
    median, spread = {2_048: (1_000, 0.486), 4_096: (1_085, 0.9)}[longest]
    rng = np.random.default_rng(seed)
    lengths = np.empty(cells, np.int32)
    for start in range(0, cells, 1_000_000):
        drawn = rng.lognormal(np.log(median), spread, min(1_000_000, cells - start))
        lengths[start : start + len(drawn)] = np.clip(drawn, 7, longest)
    return lengths
