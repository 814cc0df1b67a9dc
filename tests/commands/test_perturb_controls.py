"""Controls of the perturb command that take further encodings: costs, tables, bad input."""

import json

import pandas as pd
import pytest

from geneformer_jax.inference.random_control import random_model
from geneformer_jax.model import pretrained
from geneformer_jax.perturbation import model_controls, prepare
from geneformer_jax.perturbation.api import perturb_cells
from geneformer_jax.perturbation.statistics import report
from tests.helpers.commands import assert_one_line
from tests.helpers.pages import read_page
from tests.helpers.perturb_runs import (
    GENES,
    assert_same_folders,
    command_on_five_cells,
    killed_at_the_second_part,
    make_model,
)

STATES = ["--states=kind", "--start=a", "--goal=b"]


@pytest.fixture(scope="module")
def model() -> pretrained.PretrainedModel:
    return make_model()


@pytest.fixture
def perturb(model, toy_store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "save_figure", lambda figure, stem: [])
    return command_on_five_cells(model, toy_store.folder, tmp_path, monkeypatch, capsys)


def interrupted(*_):
    raise KeyboardInterrupt


def test_costs_are_told_beforehand_and_paid_for_what_is_named_only(
    perturb, model, toy_store, tmp_path, monkeypatch
):
    status, output, error = perturb(*STATES, "--controls=all", "--dry_run")
    assert status == 0, error
    edits = int(output.partition(" edits (delete)")[0].split()[-1])
    assert f"{edits} encodings for the edits, 240 for the states" in output
    assert f"control reranking: {edits} encodings more (100.0% of the edits')" in output
    share = f"{(2 * edits + 240) / edits:.1%} of the edits'"
    assert f"control random_weights: {2 * edits + 240} encodings more ({share})" in output
    assert "control self_deletion: at most 5,040 encodings more" in output
    assert list(tmp_path.iterdir()) == []
    out = tmp_path / "out"
    assert perturb(*STATES)[0] == 0
    assert not (out / "random_weights").exists() and not (out / "self_deletion.parquet").exists()
    # Asked for later, of the same run.
    more = ["--controls=all", "--min_cells=2", "--statistics=goal_state_shift"]
    with monkeypatch.context() as patch:
        patch.setattr(model_controls.without_genes, "self_deletion", interrupted)
        assert perturb(*STATES, *more)[0] == 130
    status, output, error = perturb(*STATES, *more)
    assert status == 0, error
    assert "control self_deletion: at most 5,040 encodings" in output
    assert "model random weights" not in output
    random = perturb_cells(
        random_model(model), toy_store, genes=GENES, max_cells=5,
        states={"column": "kind", "start": "a", "goal": "b"},
    )  # fmt: skip
    found = pd.read_parquet(out / "random_weights" / "shifts")
    assert found["value"].tolist() == pytest.approx(random["value"].tolist(), abs=1e-6)
    genes = pd.read_parquet(out / "self_deletion.parquet")["perturbed"]
    edits = pd.read_parquet(out / "edits.parquet")
    assert set(genes) == set(edits["perturbed"][edits["cells"] >= 2])
    page = (out / "statistics" / "goal_state_shift.html").read_text()
    assert "those of random weights" in page and "embedded without the gene" in page
    assert "nothing to do" in perturb(*STATES, *more)[1]
    provenance = json.loads((out / "random_weights" / "provenance.json").read_text())
    assert provenance["counts"]["checkpoint"] == "random weights"


def test_a_run_answers_first_on_its_own_page(perturb, tmp_path):
    status, output, error = perturb(*STATES, "--statistics=auto", "--min_cells=2")
    assert status == 0, error
    assert "no gene can be compared with genes of like rank" in output
    page = (tmp_path / "out" / "report.html").read_text()
    parts = [
        "In silico perturbation",
        "No gene can be compared with genes of like rank",
        "<img",
        ">cells</th>",
        "Can this be believed?",
        "What the columns say",
        ">cells in which the edit was made: read nothing from a few<",
        "cell_cosine",
        "How this came to be",
    ]
    places = [page.index(part) for part in parts[:-1]] + [page.rindex(parts[-1])]
    assert places == sorted(places)
    first = page.partition("effect size</th>")[2].partition("</tbody>")[0]
    assert first.count("<tr>") == len(GENES)
    # Given again, nothing is made, and the page has everything once.
    assert "nothing to do" in perturb(*STATES, "--statistics=auto", "--min_cells=2")[1]
    assert (tmp_path / "out" / "report.html").read_text().count("Can this be believed?") == 1


def test_what_a_run_cannot_say_by_itself_costs_no_result(perturb, tmp_path):
    status, output, error = perturb(*STATES, "--statistics=auto", "--max_cells=1")
    assert status == 0, error
    assert "no goal_state_shift: too few cells" in output
    assert (tmp_path / "out" / "shifts").is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--controls=random_weihgts"], 'did you mean "random_weights"'),
        (["--controls=self_deletion"], "needs a start state"),
        ([*STATES, "--controls=self_deletion", "--edit=overexpress"], "needs deletions of one"),
        ([*STATES, "--controls=self_deletion", "--positions=keep"], "needs deletions of one"),
        ([*STATES, "--controls=reranking", "--positions=keep"], "needs deletions of one"),
        (["--controls=covariance"], "needs cell states to compare: name their column by --states"),
        ([*STATES, "--controls=donors"], "needs an obs column of donors: name it by --group"),
        (
            [*STATES, "--controls=donors", "--group=kind", "--dry_run"],
            'at least 3 donors, but column "kind" has 1 among the chosen cells: name another',
        ),
    ],
)
def test_controls_that_the_run_does_not_allow_are_refused(perturb, tmp_path, arguments, words):
    status, _, error = perturb(*arguments)
    assert status == 1
    assert_one_line(error)
    assert words in error and list(tmp_path.iterdir()) == []


def test_the_parts_of_exact_shifts_are_made_where_asked_and_after_a_kill(perturb, tmp_path):
    named, whole = [*STATES, "--controls=reranking"], tmp_path / "whole"
    assert perturb(*named, f"--output={whole}")[0] == 0
    with killed_at_the_second_part():
        assert perturb(*named)[0] == 130
    # Parts without them would not fit.
    assert "reranking = True, not False" in perturb(*STATES)[2]
    assert perturb(*named)[0] == 0
    assert_same_folders(tmp_path / "out", whole)
    status, _, error = perturb(*named, "--statistics=goal_state_shift", "--min_cells=2")
    assert status == 0, error
    shifts = pd.concat(map(pd.read_parquet, sorted((tmp_path / "out" / "shifts").iterdir())))
    towards = shifts[shifts["measure"] == "state_shift"]
    means = towards[towards["state"] == "b"].groupby("perturbed", observed=True).mean(True)
    table = pd.read_parquet(tmp_path / "out" / "statistics" / "goal_state_shift.parquet")
    table = table.set_index("Ensembl_ID")
    for column, part in (("Reranking_shift", "reranking"), ("Removal_shift", "removal")):
        expected = means[part].reindex(table.index)
        assert table[column].tolist() == pytest.approx(expected.tolist(), abs=1e-7)
    header = {name for row in read_page(tmp_path / "out" / "report.html").rows for name in row}
    assert {"reranking", "removal"} <= header and "exact" not in header


def test_parts_are_made_unasked_where_they_cost_little_only(perturb, tmp_path, monkeypatch):
    status, output, error = perturb(*STATES)
    assert status == 0, error
    assert "(100.0% of the edits'), left out unless --controls name it" in output
    later = [*STATES, "--controls=reranking", "--statistics=goal_state_shift"]
    status, _, error = perturb(*later)
    assert status == 1 and "perturb with --controls=reranking into another output" in error
    monkeypatch.setattr(prepare, "LITTLE", 1.0)
    assert perturb(*STATES, f"--output={tmp_path / 'dear'}")[0] == 0
    columns = [pd.read_parquet(tmp_path / each / "shifts").columns for each in ("out", "dear")]
    assert ["removal" in each for each in columns] == [False, True]
