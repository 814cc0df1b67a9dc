"""Affected genes without what any edit does to them: planted, and beside plain pandas."""

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.perturbation.controls.responsiveness import (
    responsiveness,
    without_responsiveness,
)

EDITS, GENES = 30, 50


def pairs() -> pd.DataFrame:
    """Genes respond to all edits alike; besides, edit E7 moves gene G9."""
    rng = np.random.default_rng(0)
    usual = rng.uniform(0.7, 1.0, GENES)
    means = usual + 0.01 * rng.normal(size=(EDITS, GENES))
    means[7, 9] -= 0.2
    edit, gene = np.indices(means.shape).reshape(2, -1)
    return pd.DataFrame(
        {
            "Ensembl_ID": [f"E{i}" for i in edit],
            "Affected": [f"G{i}" for i in gene],
            "Cosine_sim_mean": means.reshape(-1),
            "N_Detections": 5,
        }
    )


def test_what_an_edit_alone_affects_comes_first_once_the_rest_is_taken_off():
    table = pairs()
    found = responsiveness([table.iloc[:700], table.iloc[700:]], min_cells=5)
    assert found.edits == EDITS
    (piece,) = without_responsiveness([table], found.means)
    expected = table["Cosine_sim_mean"] - table.groupby("Affected")["Cosine_sim_mean"].transform(
        "mean"
    )
    np.testing.assert_allclose(piece["Minus_universal"], expected, atol=1e-12)
    own = piece[piece["Ensembl_ID"] == "E7"]
    assert own.loc[own["Minus_universal"].idxmin(), "Affected"] == "G9"
    # By the shift itself other genes come before it.
    assert own.loc[own["Cosine_sim_mean"].idxmin(), "Affected"] != "G9"


def test_the_part_explained_is_that_of_the_variances():
    table = pairs()
    by_gene = table.groupby("Affected")["Cosine_sim_mean"].transform("mean")
    expected = by_gene.var() / table["Cosine_sim_mean"].var()
    assert responsiveness([table], 5).explained == pytest.approx(expected)
    shuffled = np.random.default_rng(1).permutation(table["Affected"])
    assert responsiveness([table.assign(Affected=shuffled)], 5).explained < 0.1


def test_pairs_of_few_cells_take_no_part():
    table = pairs()
    few = table.assign(N_Detections=4, Cosine_sim_mean=0.0, Ensembl_ID="rare")
    found = responsiveness([pd.concat([table, few])], min_cells=5)
    pd.testing.assert_series_equal(found.means, responsiveness([table], 5).means)
    none = responsiveness([few], min_cells=5)
    assert none.edits == 0 and np.isnan(none.explained)
