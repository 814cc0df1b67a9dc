"""Statistics of a folder of perturbation tables: files, figures, page, and bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.statistics import figures as statistics_figures
from geneformer_jax.perturbation.statistics import report
from geneformer_jax.perturbation.statistics import shifts as statistics_shifts
from geneformer_jax.perturbation.statistics.combinations import combinations
from geneformer_jax.perturbation.statistics.mixture import fit_mixture
from geneformer_jax.perturbation.statistics.modes.choice import MODES
from geneformer_jax.perturbation.statistics.modes.result import StatisticOptions
from geneformer_jax.perturbation.statistics.modes.states import vs_null
from geneformer_jax.perturbation.statistics.report import compute_statistic, perturbation_statistics
from geneformer_jax.reporting.html import Report
from tests.helpers.pages import read_page
from tests.helpers.shift_folders import STATES, gene_shifts, shifts, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("perturbation") / "run", shifts())


@pytest.fixture(scope="module")
def null_run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("null") / "run", shifts(0.02), with_genes=False)


@pytest.fixture
def undrawn(monkeypatch):
    """No figures are written, which take most of the time."""
    monkeypatch.setattr(report, "save_figure", lambda figure, stem: [])
    monkeypatch.setattr(Report, "figure", lambda *arguments: None)


def pieces_of(frame: pd.DataFrame, measure: str, state: str = "") -> list[pd.DataFrame]:
    rows = frame[(frame["measure"] == measure) & (frame["state"] == state)]
    return [rows.astype({"value": np.float32})]


OPTIONS = {
    "goal_state_shift": {},
    "vs_null": {},
    "mixture_model": {"set_size": 1},
    "aggregate": {},
    "aggregate_gene_shifts": {},
    "combinations": {},
}
FIGURES = {
    "goal_state_shift": {"volcano", "ranked", "background"},
    "vs_null": {"volcano", "ranked", "background"},
    "mixture_model": {"components", "ranked"},
    "aggregate": {"ranked"},
    "aggregate_gene_shifts": {"affected_G3_G4", "affected_G2_G4", "affected_G7"},
    "combinations": {"volcano", "ranked", "pairs_sum", "pairs_strongest"},
}


@pytest.mark.parametrize(
    "mode",
    # Those with the most figures, and that reads two runs.
    [pytest.param(mode, marks=pytest.mark.slow) for mode in ("combinations", "vs_null")]
    + [mode for mode in MODES if mode not in ("combinations", "vs_null")],
)
def test_a_statistic_leaves_tables_figures_and_a_page(run, null_run, mode):
    options = {**OPTIONS[mode], **({"null": null_run} if mode == "vs_null" else {})}
    written = perturbation_statistics(run, mode, **options)
    target = run / "statistics"
    table = pd.read_parquet(target / f"{mode}.parquet")
    assert len(table)
    from_csv = pd.read_csv(target / f"{mode}.csv", keep_default_na=False, na_values=["NaN"])
    pd.testing.assert_frame_equal(from_csv, table, check_dtype=False)
    drawn = {path.stem.removeprefix(f"{mode}_") for path in written if path.suffix == ".png"}
    assert drawn == FIGURES[mode]
    assert all(path.exists() for path in written)
    page = (target / f"{mode}.html").read_text()
    assert len(read_page(target / f"{mode}.html").images) == len(FIGURES[mode])
    assert str(table["Gene_name"].iloc[0]) in page
    assert json.loads((target / "provenance.json").read_text())[mode]["counts"]["rows"][mode]
    assert not list(target.glob("*.partial*"))


def test_tables_from_files_are_those_from_memory(run, null_run, undrawn):
    frame, null = shifts(), shifts(0.02)
    states = frame[frame["measure"] == "state_shift"].astype({"value": np.float32})
    expected = {
        "goal_state_shift": statistics_shifts.goal_state_shift([states], "b", ["c"]),
        "vs_null": statistics_shifts.versus_null(
            pieces_of(frame, "mean_gene_cosine"), pieces_of(null, "mean_gene_cosine")
        ),
        "combinations": combinations(pieces_of(frame, "mean_gene_cosine"))[0],
    }
    for mode, table in expected.items():
        perturbation_statistics(run, mode, **({"null": null_run} if mode == "vs_null" else {}))
        read = pd.read_parquet(run / "statistics" / f"{mode}.parquet")
        pd.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-12)


def test_running_means_of_gene_shifts_give_the_table_of_all_of_them(run, tmp_path, undrawn):
    perturbation_statistics(run, "aggregate_gene_shifts")
    whole = pd.read_parquet(run / "statistics" / "aggregate_gene_shifts.parquet")
    frame = shifts()
    names = ["perturbed", "perturbed_symbol", "affected", "affected_symbol"]
    genes = gene_shifts(frame).astype({"value": np.float32})
    values = genes.astype({"value": float}).groupby(names)["value"]
    means = values.agg(mean="mean", sd=lambda each: each.std(ddof=0), n="size").reset_index()
    folder = write_run(tmp_path / "run", frame, with_genes=False)
    means.assign(edit="delete").to_parquet(folder / "gene_shift_means.parquet", index=False)
    perturbation_statistics(folder, "aggregate_gene_shifts")
    from_means = pd.read_parquet(folder / "statistics" / "aggregate_gene_shifts.parquet")
    order = ["Ensembl_ID", "Affected_Ensembl_ID"]
    pd.testing.assert_frame_equal(
        *(each.sort_values(order, ignore_index=True) for each in (whole, from_means))
    )


def test_another_call_replaces_the_first_and_its_figures(run):
    target = run / "statistics"
    perturbation_statistics(run, "aggregate", set_size=2)
    assert (target / "aggregate_ranked.png").exists()
    perturbation_statistics(run, "aggregate", measure="state_shift", state="b")
    assert [path.stem for path in target.glob("aggregate_ranked*.png")] == ["aggregate_ranked_b"]
    table = pd.read_parquet(target / "aggregate.parquet")
    assert set(table["State"]) == {"b"}


def test_the_genes_that_one_edit_has_an_impact_on(run, undrawn):
    perturbation_statistics(run, "mixture_model", anchor="G7")
    table = pd.read_parquet(run / "statistics" / "mixture_model.parquet")
    # Every second gene is moved much farther than the others.
    assert set(table["Ensembl_ID"][table["Impact_component"] == 1]) == {"G0", "G2", "G4", "G6"}


def test_combinations_towards_a_state_start_from_no_shift(run, undrawn):
    perturbation_statistics(run, "combinations", measure="state_shift")
    provenance = json.loads((run / "statistics" / "provenance.json").read_text())["combinations"]
    assert provenance["configuration"]["state"] == "b"
    rows = pd.read_parquet(run / "statistics" / "combinations.parquet")
    expected = rows["Anchor_shift"] + rows["Test_token_shift"]
    np.testing.assert_allclose(rows["Sum_of_indiv_shifts"], expected, atol=1e-12)


def message_of(*arguments, **options) -> str:
    with pytest.raises(InputError) as raised:
        perturbation_statistics(*arguments, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_bad_options_are_reported_in_one_line(run, null_run, tmp_path):
    assert 'did you mean "vs_null"' in message_of(run, "vs_nul")
    assert "name their perturbation in `null`" in message_of(run, "vs_null")
    assert "only for vs_null" in message_of(run, "aggregate", null=null_run)
    assert "background is 0" in message_of(run, "goal_state_shift", background=0)
    assert "hold no cell_cosine" in message_of(run, "aggregate", measure="cell_cosine")
    assert "state_shift" in message_of(run, "aggregate", measure="state_shft")
    assert 'no shifts towards a state "B cell"' in message_of(
        run, "goal_state_shift", goal="B cell"
    )
    assert "states there: a, b, c" in message_of(
        run, "vs_null", measure="state_shift", state="d", null=null_run
    )
    assert "has no states" in message_of(run, "mixture_model", state="b")
    assert "have no edit G77" in message_of(run, "mixture_model", anchor="G77")
    assert "edits of 5 genes" in message_of(run, "aggregate", set_size=5)
    assert "there are no tables shifts" in message_of(tmp_path / "nowhere", "aggregate")
    assert not (tmp_path / "nowhere").exists()


def test_tables_that_do_not_fit_are_reported_in_one_line(null_run, tmp_path):
    assert "with gene shifts" in message_of(null_run, "aggregate_gene_shifts")
    assert "with gene shifts" in message_of(null_run, "mixture_model", anchor="G1")
    frame = shifts()
    cosines = frame[frame["measure"] == "mean_gene_cosine"]
    folder = write_run(tmp_path / "cosines", cosines, with_genes=False)
    assert "hold no state_shift" in message_of(folder, "goal_state_shift")
    other = write_run(tmp_path / "other", cosines.assign(edit="overexpress"), with_genes=False)
    assert "holds overexpress" in message_of(folder, "vs_null", null=other)
    unfinished = tmp_path / "unfinished.parts"
    unfinished.mkdir()
    assert "not finished" in message_of(tmp_path / "unfinished", "aggregate")


def test_a_null_of_the_same_cells_is_remarked(tmp_path, caplog):
    frame = shifts()[lambda rows: rows["measure"] == "mean_gene_cosine"]
    first, null = (write_run(tmp_path / name, frame, with_genes=False) for name in ("run", "null"))
    cells = pd.DataFrame({"cell": frame["cell"].unique()})
    for folder, own in ((first, cells), (null, "other " + cells)):
        own.to_parquet(folder / "cells.parquet")
    options = StatisticOptions(null=str(null))
    vs_null(first, options)
    assert "same cells" not in caplog.text
    cells.to_parquet(null / "cells.parquet")
    remark = f"{null} is of the same cells as {first}"
    assert remark in vs_null(first, options).text and remark in caplog.text


@pytest.mark.parametrize("cut", [0, 100, 0.6, 0.98])
def test_a_damaged_table_is_reported_in_one_line_and_leaves_no_result(tmp_path, cut):
    folder = write_run(tmp_path / "run", shifts(), with_genes=False)
    part = folder / "shifts" / "part-000001.parquet"
    content = part.read_bytes()
    length = cut if cut > 1 or not cut else int(cut * len(content))
    part.write_bytes(content[:length])
    assert "part-000001.parquet is damaged" in message_of(folder, "aggregate")
    assert not (folder / "statistics" / "aggregate.parquet").exists()


def test_damaged_values_within_a_whole_file_are_reported_in_one_line(tmp_path):
    folder = write_run(tmp_path / "run", shifts(), with_genes=False)
    part = folder / "shifts" / "part-000002.parquet"
    content = bytearray(part.read_bytes())
    content[200:900] = b"\xff" * 700
    part.write_bytes(content)
    assert "part-000002.parquet is damaged" in message_of(folder, "goal_state_shift")


def _set(name: str, column: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, column)


_ROWS = len(np.array_split(np.arange(len(shifts())), 3)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("cell", pa.array(np.arange(_ROWS))), "has a column cell of int64, not of texts"),
        (_set("perturbed", pa.nulls(_ROWS)), "has a column perturbed of null, not of texts"),
        (_set("value", pa.array([[1.0]] * _ROWS)), "not of numbers"),
        (_set("measure", pa.array(["x"] * (_ROWS - 1) + [None])), "without a value in 1 rows"),
        (_set("value", pa.array([np.nan] * _ROWS)), "value with values that are NaN or infinite"),
        (lambda table: table.rename_columns({"edit": "perturbed"}), "has 2 columns perturbed"),
        (_set("cell", pa.array(["c1"] * _ROWS)), "more than once in the cell c1"),
    ],
)
def test_a_table_of_other_columns_is_reported_in_one_line(tmp_path, change, message):
    folder = write_run(tmp_path / "run", shifts(), with_genes=False)
    part = folder / "shifts" / "part-000001.parquet"
    pq.write_table(change(pq.read_table(part)), part)
    assert message in message_of(folder, "combinations")


def test_notes_of_pandas_in_a_table_are_not_read(run, tmp_path):
    folder = write_run(tmp_path / "run", shifts())
    for part in folder.glob("*shifts/part-*.parquet"):
        pq.write_table(pq.read_table(part).replace_schema_metadata({"pandas": "{"}), part)
    for mode in ("aggregate", "aggregate_gene_shifts"):
        (table, *_), (as_before, *_) = (
            list(compute_statistic(each, mode, controls=()).tables[mode]) for each in (folder, run)
        )
        pd.testing.assert_frame_equal(table, as_before)


@pytest.mark.parametrize(
    "facts",
    [[], {"counts": -0.0}, {"counts": {"states": "x"}}, {"counts": {"states": {"goal": [-1]}}},
     {"counts": {"states": STATES | {"alternatives": 7}}}, {"counts": {"screen": {"exact": 1}}}],
)  # fmt: skip
def test_a_damaged_provenance_is_reported_in_one_line(tmp_path, facts):
    folder = write_run(tmp_path / "run", shifts(), with_genes=False)
    (folder / "provenance.json").write_text(json.dumps(facts))
    assert "provenance.json is missing or damaged" in message_of(folder, "goal_state_shift")


def test_an_alternative_named_twice_is_compared_once(run):
    once, twice = (
        compute_statistic(run, "goal_state_shift", StatisticOptions(alternatives=names), ())
        for names in (("c",), ("c", "c"))
    )
    pd.testing.assert_frame_equal(
        *(pd.concat(each.tables["goal_state_shift"]) for each in (once, twice))
    )


def test_figures_of_very_few_edits_and_long_names_are_drawn(tmp_path):
    table = pd.DataFrame(
        {
            "Gene_name": ["+".join(f"GENE{i}" for i in range(12)), "B"],
            "Ensembl_ID": ["x", "y"],
            "shift": [0.0, 0.0],
            "rate": [0.0, 1.0],
            "Sig": [1, 0],
        }
    )
    words = {"shift": "shift", "rate": "rate"}
    figures = [
        statistics_figures.volcano_figure(table, "shift", "rate", words),
        statistics_figures.ranked_figure(table, "shift", table["Sig"] == 1, ("shift", "chosen")),
        statistics_figures.background_figure(np.ones(5), {"B": np.ones(1)}, ("shift", "all")),
        statistics_figures.mixture_figure(
            np.array([0.1, 0.1, 0.9]), fit_mixture(np.array([0.1, 0.1, 0.9])), "mean"
        ),
    ]
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.png")
        assert imread(tmp_path / f"{i}.png")[..., :3].std() > 0.02
    anchored = pd.DataFrame(
        {"Ensembl_ID": ["A+B", "A+C", "A+D"], "Gene_name": ["a+b", "a+c", "a+d"], "v": [1, 2, 3]}
    )
    assert statistics_figures.strongest_pairs(anchored, "v") is None


def test_cosines_close_to_one_are_written_out():
    table = pd.DataFrame({"Gene_name": list("abc"), "cosine": [0.99995, 0.99996, 0.99998]})
    figure = statistics_figures.ranked_figure(
        table, "cosine", pd.Series([False] * 3), ("cosine", "chosen")
    )
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    assert axis.get_offset_text().get_text() == ""
    assert "0.999960" in {label.get_text() for label in axis.get_ticklabels()}


def test_the_heat_map_shows_each_pair_at_its_genes():
    pairs = pd.DataFrame(
        {
            "Ensembl_ID": ["A+B", "A+C", "B+C", "A+B+C"],
            "Gene_name": ["a+b", "a+c", "b+c", "a+b+c"],
            "v": [1.0, -2.0, 3.0, 9.0],
        }
    )
    matrix = statistics_figures.strongest_pairs(pairs, "v")
    figure = statistics_figures.pairs_figure(matrix, "effect")
    axes = figure.axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    np.testing.assert_array_equal(shown, [[np.nan, 1, -2], [1, np.nan, 3], [-2, 3, np.nan]])
