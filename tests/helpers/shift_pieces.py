"""Shifts in pieces, for the tests of their statistics."""

import pandas as pd


def cut(frame: pd.DataFrame, rows: int) -> list[pd.DataFrame]:
    """Pieces of at most `rows` consecutive rows."""
    pieces = [frame.iloc[start : start + rows] for start in range(0, len(frame), rows)]
    return [piece.astype({"perturbed": "category", "cell": "category"}) for piece in pieces]
