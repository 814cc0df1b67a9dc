"""Whether shifts are so small that the arithmetic, not the model, may decide their order."""

import numpy as np
import pandas as pd

# Cosines just below 1 are multiples of it in float32.
STEP = 2.0**-24
_FEW_STEPS, _NEAR = 64, 8


def describe_resolution(rows: pd.DataFrame) -> str:
    """Returns a warning where shifts spread by few steps of float32 only; else "".

    Args:
      rows: mean, sd and n of each edit, of one measure and state.
    """
    cells = rows["n"].to_numpy(float)
    centre = np.average(rows["mean"], weights=cells)
    away = rows["mean"].to_numpy(float) - centre
    spread = np.sqrt(np.average(away**2 + rows["sd"].to_numpy(float) ** 2, weights=cells))
    if spread >= _FEW_STEPS * STEP or len(rows) < 2:
        return ""
    near = np.mean(np.abs(away) < _NEAR * STEP)
    return (
        f"the shifts spread by {spread:.1e} (standard deviation), {spread / STEP:.0f} times the "
        f"step of float32 near 1 ({STEP:.0e}), and {near:.0%} of the edits lie within {_NEAR} "
        "steps of the mean: rounding may decide their order; train the model longer, or edit "
        "more cells"
    )
