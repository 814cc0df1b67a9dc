"""Perturbation from Python into a folder: its table, controls, and going on after a kill."""

import anndata as ad
import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.api import perturb_cells
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.statistics import report
from geneformer_jax.perturbation.statistics.report import perturbation_statistics
from tests.helpers.perturb_runs import GENES, killed_at_the_second_part, make_model
from tests.helpers.toy import toy_cells

STATES = {"column": "kind", "goal": "b", "start": "a"}
ASKED = {"genes": GENES, "states": STATES}


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return toy_cells(24)


def test_a_killed_call_goes_on_to_the_table_of_one_without_a_folder(
    model, cells, tmp_path, monkeypatch
):
    expected = perturb_cells(model, cells, **ASKED)
    named = {**ASKED, "output": tmp_path / "run"}
    with killed_at_the_second_part(), pytest.raises(KeyboardInterrupt):
        perturb_cells(model, cells, **named)
    found = perturb_cells(model, cells, **named)
    pd.testing.assert_frame_equal(found, expected, atol=1e-6)
    assert found.attrs["left_out"] == expected.attrs["left_out"]
    with monkeypatch.context() as patch:
        patch.setattr(Perturber, "shifts", None)
        pd.testing.assert_frame_equal(perturb_cells(model, cells, **named), found)
    with pytest.raises(InputError, match="was not written by this command"):
        perturb_cells(model, cells[:20].copy(), **named)


@pytest.mark.slow
def test_all_controls_can_be_had_from_python(model, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "save_figure", lambda figure, stem: [])
    monkeypatch.setattr("geneformer_jax.perturbation.in_folder.MIN_CELLS", 2)
    folder = tmp_path / "run"
    table = perturb_cells(model, cells, **ASKED, output=folder, controls="all")
    assert "removal" in table
    perturbation_statistics(folder, "goal_state_shift", min_cells=2)
    found = pd.read_parquet(folder / "statistics" / "goal_state_shift.parquet")
    columns = ["Reranking_shift", "DE_pval", "Random_weights_shift", "Self_deleted_fraction"]
    assert found[columns].notna().any().all()
    assert "expression (counts)" in (folder / "statistics" / "goal_state_shift.html").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"controls": "random_weights"}, 'control "random_weights" needs a folder to be written'),
        ({"controls": "random_weihgts"}, 'did you mean "random_weights"'),
        ({"output": 3}, "`output` is 3"),
        ({"output": "there", "devices": []}, "takes all"),
    ],
)
def test_bad_input_is_told_in_one_line(model, cells, options, words):
    with pytest.raises(InputError) as refused:
        perturb_cells(model, cells, **ASKED, **options)
    assert words in str(refused.value) and "\n" not in str(refused.value)
