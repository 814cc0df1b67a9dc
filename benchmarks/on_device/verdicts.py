"""Rows of checks: how far results are from what they must be, and whether that is near enough."""

from collections.abc import Callable, Mapping

import numpy as np

from geneformer_jax.common.errors import InputError
from on_device.stages import Row, in_a_line


def attempt(name: str, make: Callable[[], Row]) -> Row:
    """Returns the row that `make` gives, or one of this name that says why there is none.

    What this device cannot do is left out; whatever else goes wrong counts as wrong, and does not
    keep other rows from being made.
    """
    try:
        return make()
    except InputError as obstacle:
        return {"name": name, "left_out": str(obstacle).partition(":")[0]}
    except Exception as error:
        return {"name": name, "passed": False, "failed": in_a_line(error)}


def verdict(name: str, errors: Mapping[str, float], bounds: Mapping[str, float] | float) -> Row:
    """Returns the row of a check, passed if every error is within its bound; NaN never is.

    Args:
      name: of the row.
      errors: part -> how far it is off.
      bounds: part -> how far it may be; one number for all parts.
    """
    if not isinstance(bounds, Mapping):
        bounds = dict.fromkeys(errors, bounds)
    passed = all(errors[part] <= bounds[part] for part in errors)
    worst = {part: float(f"{value:.3g}") for part, value in errors.items()}
    # JSON knows neither NaN nor infinity.
    shown = {part: value if np.isfinite(value) else str(value) for part, value in worst.items()}
    return {"name": name, "errors": shown, "bounds": dict(bounds), "passed": passed}


def largest(actual: np.ndarray, expected: np.ndarray, relative: bool = False) -> float:
    """Returns the largest difference; relative to the largest expected value if asked."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    difference = np.abs(actual - expected).max(initial=0.0)
    return float(difference / np.abs(expected).max() if relative else difference)


def largest_of(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Returns the largest difference in lists of arrays, such as the leaves of two trees."""
    pairs = zip(actual, expected, strict=True)
    return float(np.max([largest(*pair) for pair in pairs]))
