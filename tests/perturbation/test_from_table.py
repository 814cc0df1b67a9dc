"""Statistics of a table in memory beside those of the folder of the same run."""

import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.api import perturb_cells
from geneformer_jax.perturbation.statistics import report
from geneformer_jax.perturbation.statistics.report import perturbation_statistics
from tests.helpers.perturb_runs import GENES, make_model
from tests.helpers.toy import toy_cells

ASKED = {"genes": GENES, "states": {"column": "kind", "goal": "b", "start": "a"}}
MODE = "goal_state_shift"


@pytest.fixture(autouse=True)
def unsaved(monkeypatch):
    monkeypatch.setattr(report, "save_figure", lambda figure, stem: [])


@pytest.mark.slow
def test_a_table_gives_the_statistics_of_its_folder(tmp_path):
    model, cells = make_model(), toy_cells(24)
    table = perturb_cells(model, cells, **ASKED)
    perturb_cells(model, cells, **ASKED, output=tmp_path / "run")
    how = {"min_cells": 2, "controls": ["like_rank", "cells", "coverage", "start"]}
    written = perturbation_statistics(table, MODE, output=tmp_path / "table", **how)
    perturbation_statistics(tmp_path / "run", MODE, **how)
    found, expected = (
        pd.read_parquet(tmp_path / name / "statistics" / f"{MODE}.parquet")
        for name in ("table", "run")
    )
    pd.testing.assert_frame_equal(found, expected, atol=1e-6)
    assert found["Coverage"].notna().all() and all(path.exists() for path in written)
    with pytest.raises(InputError, match="is there already; give it in place of the table"):
        perturbation_statistics(table, "aggregate", output=tmp_path / "table")
    # Joined tables have no facts of one run; then the goal is named.
    joined = pd.concat([table.assign(cell="other"), table]).reset_index(drop=True)
    joined.attrs = {}
    perturbation_statistics(joined, MODE, goal="b", output=tmp_path / "joined", controls="none")


def test_an_estimate_of_a_screen_stays_marked(tmp_path):
    table = pd.DataFrame({
        "cell": ["c1", "c2"] * 4, "edit": "delete", "perturbed": list("AABBAABB"), "rank": 1,
        "perturbed_symbol": list("AABBAABB"), "measure": "state_shift", "state": list("sssstttt"),
        "value": [0.1, 0.2, 0.3, 0.4] * 2, "method": (["exact"] * 3 + ["estimated"]) * 2,
    })  # fmt: skip
    table.attrs["run"] = {"screen": {"exact": 6, "estimated": 2}}
    perturbation_statistics(table, "aggregate", output=tmp_path / "out", controls="none")
    found = pd.read_parquet(tmp_path / "out" / "statistics" / "aggregate.parquet")
    assert found.groupby("Ensembl_ID")["Estimated_fraction"].first().tolist() == [0, 0.5]


@pytest.mark.parametrize(
    ("given", "output", "words"),
    [
        (pd.DataFrame({"cell": ["a"]}), "new", "no column edit, perturbed"),
        (pd.DataFrame(), None, "`output` is None"),
        ("folder", "new", "`output` is for a table"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path, given, output, words):
    output = output and tmp_path / output
    with pytest.raises(InputError) as refused:
        perturbation_statistics(given, MODE, output=output)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
