"""The perturb command with --screen: tables, report, statistics, and taken up after a kill."""

import json

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.model import pretrained
from geneformer_jax.perturbation.engine.screening import settling
from geneformer_jax.perturbation.engine.screening.screener import Screener
from geneformer_jax.perturbation.engine.screening.settling import Settler
from tests.helpers.commands import assert_one_line
from tests.helpers.pages import read_page
from tests.helpers.perturb_runs import assert_same_folders, command_on_five_cells, make_model

STATES = ("--states=kind", "--start=a", "--goal=b")
SCREEN = (*STATES, "--genes=all", "--screen", "--settle=0.1", "--split_points=4")


@pytest.fixture(scope="module")
def model() -> pretrained.PretrainedModel:
    return make_model()


@pytest.fixture
def perturb(model, toy_store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(settling, "SAMPLE", 40)
    return command_on_five_cells(model, toy_store.folder, tmp_path, monkeypatch, capsys)


def test_tables_report_and_statistics_tell_what_is_estimated(perturb, tmp_path):
    status, output, error = perturb(*SCREEN, "--statistics=goal_state_shift")
    assert status == 0, error
    out = tmp_path / "out"
    table = pd.concat(map(pd.read_parquet, sorted((out / "shifts").iterdir())))
    counts = json.loads((out / "provenance.json").read_text())["counts"]
    is_exact = table["method"] == "exact"
    assert counts["screen"]["exact"] == is_exact.sum() / 2 > 0.1 * len(table) / 2
    assert counts["screen"]["estimated"] == (~is_exact).sum() / 2
    assert counts["measures"] == ["state_shift"]
    (accuracy,) = [row for row in counts["screen"]["accuracy"] if row["state"] == "b"]
    sample = table[table["sampled"] & (table["state"] == "b")]
    expected = sample[["value", "estimate"]].rank().corr().iloc[0, 1]
    assert accuracy["spearman"] == pytest.approx(expected) and accuracy["edits"] == 40
    assert f"Spearman {expected:.3f}" in output
    page = read_page(out / "report.html")
    assert {"reranking", "removal", "exact"} <= {name for row in page.rows for name in row}
    statistic = pd.read_parquet(out / "statistics" / "goal_state_shift.parquet")
    fractions = (~is_exact).groupby(table["perturbed"].astype(str)).mean()
    found = statistic.set_index("Ensembl_ID")["Estimated_fraction"]
    np.testing.assert_allclose(found, fractions[found.index])
    assert "estimates of a screen" in (out / "statistics" / "goal_state_shift.html").read_text()
    assert not (out / "estimates").exists() and not (tmp_path / "out.parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [(Screener, "shifts"), (Settler, "settle")])
def test_an_interrupted_screen_goes_on_to_identical_tables(
    perturb, tmp_path, monkeypatch, kind, name
):
    whole, run, calls = tmp_path / "whole", getattr(kind, name), []
    assert perturb(*SCREEN, f"--output={whole}")[0] == 0

    def interrupted(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, interrupted)
        assert perturb(*SCREEN)[0] == 130
    status, _, error = perturb(*SCREEN[:-1])
    assert status == 1 and "split_points = 4, not 12" in error
    monkeypatch.setattr(kind, name, lambda *a: (calls.append(a), run(*a))[1])
    assert perturb(*SCREEN)[0] == 0
    assert_same_folders(tmp_path / "out", whole)


@pytest.mark.slow
def test_shards_settle_when_all_have_screened(perturb, tmp_path):
    whole = tmp_path / "whole"
    assert perturb(*SCREEN, f"--output={whole}")[0] == 0
    status, output, _ = perturb(*SCREEN, "--shard=0/2")
    assert status == 0 and "run the same command again" in output
    status, output, _ = perturb(*SCREEN, "--shard=1/2")
    assert status == 0 and "shard 1/2 is done" in output
    status, _, error = perturb(*SCREEN, "--finish")
    assert status == 1 and "parts are missing" in error and "with --shard=0/2, and" in error
    assert perturb(*SCREEN, "--shard=0/2")[0] == 0
    assert perturb(*SCREEN, "--finish")[0] == 0
    assert_same_folders(tmp_path / "out", whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--screen"], "--states are missing"),
        (["--screen", *STATES, "--edit=inhibit", "--ranks=3"], "--edit is 'inhibit'"),
        (["--screen", *STATES, "--settle=1.2"], "--settle is 1.2"),
        (["--screen", *STATES, "--settle=0"], "--settle is 0"),
        (["--screen", *STATES, "--settle=some"], "--settle is 'some'"),
        (["--screen", *STATES, "--split_points=1"], "--split_points is 1"),
        (["--screen", *STATES, "--genes=all", "--split_points=150"], "exact shifts take less"),
        (
            ["--screen", *STATES, "--edit=delte"],
            "--edit is 'delte', but a screen knows only 'delete'",
        ),
        (["--screen", "--states=kind", "--goal=c"], 'has no value "c"'),
        ([*STATES, "--settle=5"], "--settle is 5, but nothing is screened; add --screen"),
    ],
)
def test_bad_input_ends_in_one_line_before_work(perturb, tmp_path, arguments, words):
    status, _, error = perturb(*arguments)
    assert status == 1
    assert_one_line(error)
    assert words in error
    assert not (tmp_path / "out.parts").exists()
