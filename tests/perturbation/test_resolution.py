"""Shifts near the resolution of float32 are told as such, others are not."""

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.perturbation.statistics.accuracy.resolution import STEP, describe_resolution


def summary(scale: float, offset: float) -> pd.DataFrame:
    """Means and deviations of edits, from rows of shifts."""
    shifts = offset + scale * np.random.default_rng(0).standard_normal((50, 40))
    return pd.DataFrame({"mean": shifts.mean(1), "sd": shifts.std(1), "n": 40})


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_few_steps_of_float32_are_warned_of_wherever_the_shifts_lie(offset):
    assert np.float32(1) - np.nextafter(np.float32(1), np.float32(0)) == STEP
    said = describe_resolution(summary(10 * STEP, offset))
    assert "10 times the step of float32" in said and "100% of the edits" in said
    assert describe_resolution(summary(1000 * STEP, offset)) == ""


def test_edits_far_from_each_other_are_none_of_it():
    rows = summary(STEP, 0.0)
    assert describe_resolution(rows) != ""
    rows.loc[::2, "mean"] += 1e-3
    assert describe_resolution(rows) == ""
