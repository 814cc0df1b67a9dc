"""Shifts compared within cells, beside a slow version that loops over cells and edits."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from geneformer_jax.perturbation.controls.within_cells import (
    WithinCells,
    paired_p_values,
    within_cells,
)
from tests.helpers.shift_pieces import cut, made_up_shifts


def slow_version(frame: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Differences of each edit in each of its cells, by plain loops."""
    found: dict[str, dict[str, list[float]]] = {"centred": {}, "like_rank": {}, "ranks": {}}
    for _, own in frame.groupby("cell"):
        length = max(own["rank"].max(), 1)
        rows = list(own[["perturbed", "rank", "value"]].itertuples(index=False))
        for edit, rank, value in rows:
            all_values = [each for _, _, each in rows]
            found["centred"].setdefault(edit, []).append(value - np.mean(all_values))
            if not rank:
                continue
            found["ranks"].setdefault(edit, []).append(rank / length)
            others = [
                each
                for name, place, each in rows
                if name != edit and (max(place, 1) - 1) * 20 // length == (rank - 1) * 20 // length
            ]
            if others:
                found["like_rank"].setdefault(edit, []).append(value - np.mean(others))
    return found


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    frame = made_up_shifts(cells=9, genes=90, detection=0.6)
    # A gene that is not in sight has no rank.
    frame.loc[frame.index % 17 == 0, "rank"] = 0
    return frame


@pytest.mark.parametrize("rows", [7, 10_000])
def test_differences_within_cells_are_those_of_plain_loops(frame, rows):
    within, expected = within_cells(cut(frame, rows)), slow_version(frame)
    assert within.cells == 9
    for name, values in expected.items():
        moments = getattr(within, name)
        for edit, mean, count in zip(
            within.edits.names, moments.means, moments.counts, strict=True
        ):
            assert count == len(values.get(edit, []))
            if count:
                assert mean == pytest.approx(np.mean(values[edit]), abs=1e-12)
    assert within.seen.sum() == (frame["rank"] > 0).sum()


def test_paired_tests_are_those_of_scipy(frame):
    within, expected = within_cells([frame]), slow_version(frame)["like_rank"]
    p_values = dict(zip(within.edits.names, paired_p_values(within.like_rank), strict=True))
    for edit, values in expected.items():
        known = ttest_1samp(values, 0).pvalue if len(values) > 1 else np.nan
        assert p_values[edit] == pytest.approx(known, rel=1e-9, nan_ok=True)


def between(offset: float) -> WithinCells:
    frame = made_up_shifts(cells=12, genes=200)
    number = frame["cell"].str[1:].astype(int)
    return within_cells([frame.assign(value=frame["value"] + offset * number)])


def test_the_share_between_cells_is_that_of_the_variances():
    level, noise = np.var(np.arange(12)), made_up_shifts(cells=12, genes=200)["value"].var()
    assert between(0).between < 0.02
    expected = level / (level + noise)
    assert between(1).between == pytest.approx(expected, abs=0.02)
