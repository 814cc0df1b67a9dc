"""Intervals over donors, beside a bootstrap by plain loops and beside cells as if independent."""

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.perturbation.controls.donors import donor_intervals
from geneformer_jax.perturbation.statistics.moments import GeneIndex
from tests.helpers.shift_pieces import cut

DONORS, CELLS, GENES = 8, 20, 3


def shifts() -> tuple[pd.DataFrame, pd.Series]:
    """Cells of a donor are alike; donors have different numbers of cells; one has no name."""
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(DONORS), CELLS)[: DONORS * CELLS - 15]
    level = rng.normal(size=(DONORS, GENES))
    cells = [f"c{i}" for i in range(len(donor))]
    frames = [
        pd.DataFrame({"cell": cells, "perturbed": f"G{gene}", "value": level[donor, gene]})
        for gene in range(GENES)
    ]
    frame = pd.concat(frames, ignore_index=True)
    frame["value"] += 0.1 * rng.normal(size=len(frame))
    names = pd.Series([f"d{i}" for i in donor], cells)
    return frame.assign(perturbed_symbol=frame["perturbed"]), names[names != "d3"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    frame, donors = shifts()
    edits = GeneIndex()
    edits.add(frame["perturbed"], frame["perturbed_symbol"])
    return donor_intervals(cut(frame, 37), donors, edits)


def test_intervals_are_those_of_drawing_donors_one_by_one(table):
    frame, donors = shifts()
    frame = frame.assign(donor=frame["cell"].map(donors)).dropna()
    rng = np.random.default_rng(1)
    for gene, own in frame.groupby("perturbed"):
        values = [each.to_numpy() for _, each in own.groupby("donor")["value"]]
        draws = rng.integers(0, len(values), (2_000, len(values)))
        means = [np.concatenate([values[i] for i in draw]).mean() for draw in draws]
        expected = np.percentile(means, [2.5, 97.5])
        width = expected[1] - expected[0]
        assert table.loc[gene, "Donors"] == DONORS - 1
        found = table.loc[gene, ["Shift_low", "Shift_high"]].to_numpy(float)
        np.testing.assert_allclose(found, expected, atol=0.1 * width)


def test_donors_are_less_certain_than_their_cells(table):
    frame, _ = shifts()
    per_cell = frame.groupby("perturbed")["value"].sem() * 2 * 1.96
    assert (table["Shift_high"] - table["Shift_low"] > 2 * per_cell).all()


def test_an_edit_in_the_cells_of_two_donors_has_no_interval():
    frame, donors = shifts()
    few = donors[donors.isin(["d0", "d1"])]
    edits = GeneIndex()
    edits.add(frame["perturbed"], frame["perturbed_symbol"])
    table = donor_intervals([frame], few, edits)
    assert (table["Donors"] == 2).all()
    assert table[["Shift_low", "Shift_high"]].isna().all(axis=None)
