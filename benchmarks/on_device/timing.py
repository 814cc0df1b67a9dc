"""Seconds of what has run before, as medians."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from on_device.stages import Row


def warm_seconds(run: Callable[[], object], most_s: float, repeats: int = 5) -> list[float]:
    """Returns the seconds of calls that end when their results are there.

    Args:
      run: what is timed; it has run once before.
      most_s: no further call is begun when this time is over.
      repeats: calls at most; there is always one.
    """
    seconds: list[float] = []
    while not seconds or (len(seconds) < repeats and sum(seconds) < most_s):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


def rates(name: str, unit: str, done: float, seconds: list[float], **more: Any) -> Row:
    """Returns the row of a measurement: so many units a second, in the median."""
    median = statistics.median(seconds)
    spread = [round(done / each, 1) for each in (max(seconds), min(seconds))]
    return {
        "name": name, "unit": unit, "median": round(done / median, 1), "slowest_fastest": spread,
        "repeats": len(seconds), **more,
    }  # fmt: skip


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
