"""Shifts in pieces, for the tests of their statistics."""

import numpy as np
import pandas as pd


def cut(frame: pd.DataFrame, rows: int) -> list[pd.DataFrame]:
    """Pieces of at most `rows` consecutive rows."""
    pieces = [frame.iloc[start : start + rows] for start in range(0, len(frame), rows)]
    return [piece.astype({"perturbed": "category", "cell": "category"}) for piece in pieces]


def made_up_shifts(
    cells: int, genes: int, detection: float = 1.0, effects: dict[str, float] | None = None
) -> pd.DataFrame:
    """Shifts that follow rank, with noise; some genes have an effect of their own besides.

    Args:
      cells, genes: numbers of them.
      detection: fraction of the cells that have a gene.
      effects: gene (G0, G1...) -> what its deletion adds to the shift.
    """
    rng = np.random.default_rng(0)
    # Every gene has its usual place, near which it stands in each cell.
    places = rng.uniform(size=genes)
    has = rng.uniform(size=(cells, genes)) < detection
    has[:, 0] = True
    noisy = np.where(has, places + 0.1 * rng.normal(size=has.shape), np.inf)
    ranks = noisy.argsort(axis=1).argsort(axis=1) + 1
    cell, gene = np.nonzero(has)
    rank = ranks[cell, gene]
    own = np.array([(effects or {}).get(f"G{i}", 0.0) for i in range(genes)])
    usual = 0.1 * rng.normal(size=genes)
    value = 2 * rank / has.sum(axis=1)[cell] + own[gene] + usual[gene]
    names = {"cell": [f"c{i}" for i in cell], "perturbed": [f"G{i}" for i in gene], "rank": rank}
    frame = pd.DataFrame({**names, "value": value + 0.3 * rng.normal(size=len(rank))})
    return frame.assign(perturbed_symbol=frame["perturbed"].str.replace("G", "gene"))
