"""The part of shifts that follows from rank alone, beside made-up shifts of known parts."""

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.perturbation.report import describe_by_rank
from geneformer_jax.perturbation.statistics.rank_effect import variance_by_rank
from tests.helpers.shift_pieces import cut


def shifts(by_rank: float, by_gene: float, cells: int = 12, genes: int = 200) -> pd.DataFrame:
    """Shifts with a part that falls evenly with rank, one by chance, and another level per cell."""
    rng = np.random.default_rng(0)
    rank = np.tile(np.arange(1, genes + 1), cells)
    cell = np.repeat(np.arange(cells), genes)
    even = (rank / genes - 0.5) * np.sqrt(12)
    value = by_rank * even + by_gene * rng.normal(size=len(rank)) + 50 * cell
    named = {"cell": [f"c{i}" for i in cell], "rank": rank, "measure": "state_shift"}
    named["perturbed"] = "ENSG00000000000"
    return pd.DataFrame({**named, "state": "goal", "value": value})


@pytest.mark.parametrize(("by_rank", "by_gene"), [(3, 1), (1, 1), (0, 1), (1, 0)])
def test_the_part_explained_is_that_of_the_variances(by_rank, by_gene):
    (row,) = variance_by_rank(cut(shifts(by_rank, by_gene), 1_000)).itertuples()
    expected = by_rank**2 / (by_rank**2 + by_gene**2)
    assert row.explained == pytest.approx(expected, abs=0.03)
    assert (row.measure, row.state, row.edits) == ("state_shift", "goal", 2_400)


def test_what_cannot_be_told_is_not_told():
    frame = shifts(1, 1)
    few = frame.groupby("cell").head(2)
    assert np.isnan(variance_by_rank([few])["explained"][0])
    assert np.isnan(variance_by_rank([frame.assign(value=1.0)])["explained"][0])
    absent = frame.assign(rank=0)
    assert variance_by_rank([absent]).empty
    # Measures are told apart, and edits without a rank or a value are left out.
    some = pd.concat([frame, absent, frame.assign(measure="cell_cosine", value=np.nan)])
    whole = variance_by_rank([frame])
    pd.testing.assert_frame_equal(variance_by_rank([some]), whole)


def test_the_sentence_names_a_class_as_such():
    row = {"state": "B", "explained": 0.5}
    assert "shifts towards B within" in describe_by_rank({"measure": "state_shift", **row})
    found = describe_by_rank({"measure": "class_probability_shift", **row})
    assert "shifts (class_probability_shift B) within" in found
