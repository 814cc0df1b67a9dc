"""Controls beside the statistic of a folder: columns, page, and what they need."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.controls.choice import (
    CONTROLS,
    dear_controls,
    require_controls,
)
from geneformer_jax.perturbation.controls.requirements import why_none
from geneformer_jax.perturbation.statistics import report
from geneformer_jax.perturbation.statistics.report import perturbation_statistics
from tests.helpers.shift_pieces import made_up_shifts

PARTS = ("reranking", "removal")
PLANTED = {"G3": 1.5, "G4": -1.5}
CELLS, GENES, CHOSEN = 30, 400, 90


def write(folder: Path, frame: pd.DataFrame, states: dict[str, str]) -> Path:
    (folder / "shifts").mkdir(parents=True)
    frame = frame.assign(edit="delete", measure="state_shift")
    rows = [
        frame.assign(state=state, value=sign * frame["value"].astype(np.float32))
        for state, sign in (("goal", 1.0), ("start", 0.5))
    ]
    pd.concat(rows).to_parquet(folder / "shifts" / "part-000000.parquet")
    counts = {"states": {"column": "kind", **states}, "chosen_cells": CHOSEN}
    (folder / "provenance.json").write_text(json.dumps({"counts": counts}))
    return folder


@pytest.fixture(autouse=True, scope="module")
def unsaved():
    """Figures are on the page only; files of them take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "save_figure", lambda figure, stem: [])
        yield


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return made_up_shifts(CELLS, GENES, detection=0.7, effects=PLANTED)


@pytest.fixture(scope="module")
def run(tmp_path_factory, frame) -> Path:
    folder = tmp_path_factory.mktemp("controls") / "run"
    return write(folder, frame, {"goal": "goal", "start": "start"})


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def table(run, lines) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.logger, "info", lines.append)
        perturbation_statistics(run, "goal_state_shift", min_cells=5)
    return pd.read_parquet(run / "statistics" / "goal_state_shift.parquet")


def test_genes_with_an_effect_of_their_own_are_told_from_genes_of_like_rank(table):
    assert set(table["Ensembl_ID"][table["Matched_FDR"] < 0.05]) == set(PLANTED)
    # Against all edits many more genes stand out, by nothing but their rank.
    assert (table["Sig"] == 1).sum() > 20


def test_columns_say_what_they_are_called(table, frame):
    rows = table.set_index("Ensembl_ID")
    seen = frame.groupby("perturbed")["cell"].size()
    pd.testing.assert_series_equal(rows["Coverage"].sort_index(), seen / CHOSEN, check_names=False)
    np.testing.assert_allclose(
        rows["Goal_minus_start"], rows["Shift_to_goal_end"] / 2, rtol=1e-5, atol=1e-6
    )


def test_the_page_answers_first_and_then_says_whether_it_can_be_believed(run, table, lines):
    page = (run / "statistics" / "goal_state_shift.html").read_text()
    told = int(table["Matched_FDR"].notna().sum())
    pool = f"from the pool of all edits {(table['Sig'] == 1).sum()} of 400 differ"
    parts = [
        f"2 of {told} genes differ from genes of like rank at 5%",
        pool,
        "<img",
        '{"name":"Gene_name","words":"gene"',
        '{"name":"N_Detections","words":"cells"',
        "Can this be believed?",
        f"{(table['Coverage'] < 0.25).sum()} of 400 genes are within the model&#39;s sight in ",
        f"fewer than 25% of {CHOSEN} cells",
        "correlate at 1.00",
        "What the columns say",
    ]
    assert any(parts[0] in line for line in lines)
    places = [page.index(part) for part in parts]
    assert places == sorted(places)


def test_genes_in_few_cells_are_not_compared(run):
    perturbation_statistics(run, "goal_state_shift", min_cells=CELLS + 1, controls="cells")
    table = pd.read_parquet(run / "statistics" / "goal_state_shift.parquet")
    assert table["Paired_FDR"].isna().all()
    assert (
        "400 genes are in fewer than 31 cells"
        in (run / "statistics" / "goal_state_shift.html").read_text()
    )


def message_of(*arguments, **options) -> str:
    with pytest.raises(InputError) as raised:
        perturbation_statistics(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_control_that_the_tables_do_not_allow_is_left_out_or_refused(tmp_path, frame):
    folder = write(tmp_path / "no_start", frame, {"goal": "goal"})
    perturbation_statistics(folder, "goal_state_shift")
    page = (folder / "statistics" / "goal_state_shift.html").read_text()
    assert "not made: it needs a start state" in page
    named = {"controls": ["cells", "start"]}
    assert "needs a start state" in message_of(folder, "goal_state_shift", **named)
    old = write(tmp_path / "old", frame.drop(columns="rank"), {"goal": "goal"})
    assert "needs ranks" in message_of(old, "goal_state_shift", controls="like_rank")
    perturbation_statistics(old, "goal_state_shift", controls="none")
    assert "Coverage" not in pd.read_parquet(old / "statistics" / "goal_state_shift.parquet")


def test_names_of_controls_are_checked_before_anything_else():
    with pytest.raises(InputError, match=r'no control "coverge" \(did you mean "coverage"'):
        require_controls(["coverge"], "start", "goal", "")
    for name in ("start", "self_deletion"):
        with pytest.raises(InputError, match="needs a start state"):
            require_controls(name, "goal", "goal", "donor")
    for name in ("covariance", "differential_expression", "reranking"):
        with pytest.raises(InputError, match="needs cell states to compare"):
            require_controls(name, "", "", "donor")
    with pytest.raises(InputError, match="name it by `group`"):
        require_controls("donors", "start", "goal", "")
    with pytest.raises(InputError, match="`controls` is None; give"):
        require_controls(None, "start", "goal", "")
    require_controls(CONTROLS, "start", "goal", "donor")
    require_controls("all", "", "", "")


def test_only_what_is_named_takes_further_encodings():
    assert dear_controls(["free"]) == dear_controls("none") == dear_controls(["cells"]) == ()
    assert dear_controls(["cells", "self_deletion"]) == ("self_deletion",)
    assert (
        dear_controls("all")
        == dear_controls(["all"])
        == (
            "reranking",
            "random_weights",
            "self_deletion",
        )
    )


def test_donors_are_those_of_the_cells_and_named_wrongly_are_told(run, frame):
    cells = frame["cell"].unique()
    donors = pd.DataFrame({"cell": cells, "obs:donor": [f"d{i % 5}" for i in range(len(cells))]})
    named = {"controls": ["donors"], "group": "donor"}
    assert "cells.parquet is missing" in message_of(run, "goal_state_shift", **named)
    donors.to_parquet(run / "cells.parquet")
    perturbation_statistics(run, "goal_state_shift", **named)
    table = pd.read_parquet(run / "statistics" / "goal_state_shift.parquet")
    shift = table["Shift_to_goal_end"]
    inside = (table["Shift_low"] <= shift) & (shift <= table["Shift_high"])
    assert inside[table["Donors"] == 5].mean() > 0.95
    wrong = named | {"group": "doner"}
    assert 'did you mean "donor"' in message_of(run, "goal_state_shift", **wrong)
    donors.assign(**{"obs:donor": "d0"}).to_parquet(run / "cells.parquet")
    expected = 'at least 3 donors, but column "donor" has 1 among the chosen cells'
    assert expected in message_of(run, "goal_state_shift", **named)


def test_a_screen_says_what_reranking_alone_would_do(tmp_path, frame):
    half = frame.assign(**dict.fromkeys(PARTS, (frame["value"] / 2).astype(np.float32)))
    folder = write(tmp_path / "screen", half, {"goal": "goal"})
    perturbation_statistics(folder, "goal_state_shift", controls="reranking")
    table = pd.read_parquet(folder / "statistics" / "goal_state_shift.parquet")
    np.testing.assert_allclose(table["Reranking_shift"], table["Shift_to_goal_end"] / 2, rtol=1e-4)
    page = (folder / "statistics" / "goal_state_shift.html").read_text()
    assert "only later genes moved up, correlate at 1.00" in page


def test_lists_that_need_no_model_are_set_beside_and_equal_ones_are_told(tmp_path, frame):
    folder = write(tmp_path / "same", frame, {"goal": "goal", "start": "start"})
    names = ["differential_expression", "covariance"]
    assert "compare: perturb again" in message_of(folder, "goal_state_shift", controls=names)
    means = frame.groupby("perturbed")["value"].mean()
    noise = np.random.default_rng(0).normal(size=len(means))
    table = pd.DataFrame({"perturbed": means.index, "DE_effect_size": -(means.to_numpy() ** 3)})
    table = table.assign(DE_pval=1.0, DE_FDR=1.0, Covariance_shift=noise)
    table.to_parquet(folder / "baselines.parquet")
    perturbation_statistics(folder, "goal_state_shift", controls=names)
    page = (folder / "statistics" / "goal_state_shift.html").read_text()
    places = [
        page.index(words)
        for words in (
            "expression (ranks) between goal and start correlate at -1.00",
            "the model adds nothing there",
            "predicts correlate at",
            "the list is another one",
        )
    ]
    assert places == sorted(places)
    rows = pd.read_parquet(folder / "statistics" / "goal_state_shift.parquet")
    beside = rows.set_index("Ensembl_ID")["Covariance_shift"]
    np.testing.assert_array_equal(beside.reindex(means.index), noise)


@pytest.mark.parametrize(
    ("file", "control"),
    [
        ("baselines.parquet", "covariance"),
        ("self_deletion.parquet", "self_deletion"),
        ("cells.parquet", "donors"),
    ],
)
def test_a_damaged_table_of_a_control_is_told_in_one_line(tmp_path, frame, file, control):
    folder = write(tmp_path / "run", frame, {"goal": "goal", "start": "start"})
    (folder / file).write_bytes(b"PAR1 and no more")
    named = {"controls": control, "group": "donor" if control == "donors" else ""}
    message = message_of(folder, "goal_state_shift", **named)
    assert file in message and "damaged" in message


def test_random_weights_and_states_without_the_gene_are_set_beside(tmp_path, frame):
    states = {"goal": "goal", "start": "start"}
    folder = write(tmp_path / "run", frame, states)
    names = ["random_weights", "self_deletion"]
    for name in names:
        message = message_of(folder, "goal_state_shift", controls=name)
        assert f"perturb with `controls`={name}" in message
    cubed = frame.assign(value=frame["value"] ** 3)
    write(folder / "random_weights", cubed, states)
    columns = ("Self_deletion_cells", "Sampled_goal_minus_start", "Self_deleted_goal_minus_start")
    own = pd.DataFrame({"perturbed": ["G3", "G4", "G5"], **dict.fromkeys(columns, 1.0)})
    own.assign(Self_deleted_fraction=[0.1, 0.25, 0.9]).to_parquet(folder / "self_deletion.parquet")
    perturbation_statistics(folder, "goal_state_shift", controls=names)
    page = (folder / "statistics" / "goal_state_shift.html").read_text()
    assert "training adds nothing there" in page
    assert "the median keeps 25% of it" in page and "2 keep less than half" in page
    table = pd.read_parquet(folder / "statistics" / "goal_state_shift.parquet")
    table = table.set_index("Ensembl_ID")
    means = cubed.groupby("perturbed")["value"].mean()
    found = table["Random_weights_shift"]
    np.testing.assert_allclose(found, means.reindex(found.index), rtol=1e-5)
    assert table["Self_deleted_fraction"].dropna().to_dict() == {"G3": 0.1, "G4": 0.25, "G5": 0.9}


def write_cosines(folder: Path, frame: pd.DataFrame) -> Path:
    (folder / "shifts").mkdir(parents=True)
    named = {"edit": "delete", "measure": "cell_cosine", "state": ""}
    frame = frame.assign(value=1 - frame["value"].astype(np.float32) / 1e4, **named)
    frame.to_parquet(folder / "shifts" / "part-000000.parquet")
    (folder / "provenance.json").write_text(json.dumps({"counts": {"chosen_cells": CHOSEN}}))
    return folder


@pytest.fixture(scope="module")
def cosines(tmp_path_factory, frame) -> Path:
    return write_cosines(tmp_path_factory.mktemp("cosines") / "run", frame)


@pytest.fixture(scope="module")
def null(tmp_path_factory, frame) -> Path:
    """The same edits in other cells, of which none has an effect of its own."""
    noise = 0.3 * np.random.default_rng(1).normal(size=len(frame))
    planted = frame["perturbed"].map(PLANTED).fillna(0)
    frame = frame.assign(value=frame["value"] - planted + noise, cell="null " + frame["cell"])
    return write_cosines(tmp_path_factory.mktemp("null") / "run", frame)


@pytest.mark.parametrize("mode", ["aggregate", "mixture_model", "vs_null"])
def test_shifts_without_states_are_compared_with_genes_of_like_rank_too(cosines, null, mode):
    perturbation_statistics(cosines, mode, null=null if mode == "vs_null" else "", min_cells=5)
    table = pd.read_parquet(cosines / "statistics" / f"{mode}.parquet")
    assert set(table["Ensembl_ID"][table["Matched_FDR"] < 0.05]) == set(PLANTED)
    page = (cosines / "statistics" / f"{mode}.html").read_text()
    assert f"2 of {table['Matched_FDR'].notna().sum()} genes differ from genes of like" in page
    goal = "<td>not made: it needs shifts towards a goal: ask for goal_state_shift"
    assert page.count(goal) == 5
    alone = "<td>not made: it needs shifts of one set of cells, not their difference"
    assert page.count(alone) == (3 if mode == "vs_null" else 0)
    assert ("Within_cell_shift" in table) == (mode != "vs_null")


def test_where_no_control_stands_beside_it_is_said_why(tmp_path, cosines, caplog):
    caplog.set_level("INFO", logger="geneformer_jax")
    assert "are sets" in why_none("combinations", "") and not why_none("mixture_model", "")
    folder = shutil.copytree(cosines, tmp_path / "run")
    (folder / "gene_shifts").mkdir()
    rows = pd.read_parquet(folder / "shifts" / "part-000000.parquet")
    affected = rows.assign(affected=rows["perturbed"], affected_symbol=rows["perturbed_symbol"])
    affected.assign(perturbed="G1").to_parquet(folder / "gene_shifts" / "part-000000.parquet")
    perturbation_statistics(folder, "mixture_model", anchor="G1")
    why = "controls stand beside it: they compare edits"
    assert why in (folder / "statistics" / "mixture_model.html").read_text()
    assert why in caplog.text
    perturbation_statistics(folder, "mixture_model", anchor="G1", controls="none")
    assert why not in (folder / "statistics" / "mixture_model.html").read_text()


def test_of_several_states_one_must_be_named_for_controls(run):
    perturbation_statistics(run, "aggregate")
    page = (run / "statistics" / "aggregate.html").read_text()
    assert "not made: it needs shifts towards one state: name it by `state`" in page
    perturbation_statistics(run, "aggregate", state="goal", controls="like_rank")
    assert "Matched_FDR" in pd.read_parquet(run / "statistics" / "aggregate.parquet")


@pytest.mark.parametrize("genes", [1, 2, 400])
def test_too_few_cells_or_genes_are_told_and_cost_no_result(tmp_path, frame, genes):
    few = frame[frame["perturbed"].isin([f"G{i}" for i in range(genes)])]
    folder = write(tmp_path / "few", few, {"goal": "goal", "start": "start"})
    perturbation_statistics(folder, "goal_state_shift", min_cells=CELLS + 1)
    page = (folder / "statistics" / "goal_state_shift.html").read_text()
    assert "no gene can be compared with genes of like rank" in page
    assert "too few cells or genes to tell" in page
    assert "correlate at nan" not in page and "cannot be compared: 0 genes have both" in page
    assert not (folder / "statistics" / "goal_state_shift_percentiles.png").exists()
