"""What is read of results, beside the same found the slow way."""

import h5py
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.common.errors import InputError
from geneformer_jax.explorer import cells, genes, runs, shifts
from geneformer_jax.explorer.chosen import chosen_keys
from geneformer_jax.explorer.folder import find_results
from geneformer_jax.reporting import charts
from tests.helpers import results_folder as made

GENE = made.IDS[3]


@pytest.fixture(scope="module")
def store(results_folder):
    return CellStore.open(results_folder / "store")


def test_cells_are_coloured_by_how_high_a_gene_ranks(results_folder, store):
    cell_map = cells.read_cells(results_folder / "cells.h5ad")
    heights = cells.values_of(cell_map, "kind", store.folder, GENE)
    slow = made.ranks_the_slow_way(store, GENE)
    lengths = dict(zip(store.cell_ids, store.lengths, strict=True))
    expected = [1 - (slow[c] - 1) / lengths[c] if c in slow else 0 for c in cell_map.obs.index]
    assert 0 < sum(value == 0 for value in expected) < len(expected)
    np.testing.assert_allclose(heights, expected)


def test_a_gene_is_found_by_id_and_by_symbol(store):
    token = store.vocabulary.tokens_of([GENE])[0]
    assert [cells.token_named(store.folder, each) for each in (GENE, "GENE3")] == [token] * 2


def test_unknown_genes_and_foreign_cells_are_refused(results_folder, store):
    cell_map = cells.read_cells(results_folder / "cells.h5ad")
    with pytest.raises(InputError, match=f'did you mean .*"{GENE}"'):
        cells.values_of(cell_map, None, store.folder, GENE + "0")
    with pytest.raises(InputError, match="none of these cells"):
        cells.gene_of_cells(store.folder, GENE, pd.Index(["x", "y"]))
    with pytest.raises(InputError, match="no cell store"):
        cells.values_of(cell_map, None, None, GENE)


def test_a_part_of_many_cells_is_drawn_and_this_is_said(tmp_path):
    obs = pd.DataFrame({"n": range(25_000)}, index=[f"c{i}" for i in range(25_000)])
    positions = made.write_cells(tmp_path / "many.h5ad", obs)
    cell_map = cells.read_cells(tmp_path / "many.h5ad")
    assert len(cell_map.obs) == 20_000 and cell_map.obs["n"].is_monotonic_increasing
    np.testing.assert_array_equal(cell_map.positions, positions[cell_map.obs["n"]])
    assert cells.describe(cell_map) == "20,000 of 25,000 cells, drawn at random."


def test_cells_without_an_embedding_are_left_out(tmp_path):
    obs = pd.DataFrame(index=[f"c{i}" for i in range(5)])
    made.write_cells(tmp_path / "cells.h5ad", obs)
    with h5py.File(tmp_path / "cells.h5ad", "a") as file:
        file["obsm/X_umap"][1] = np.nan
    cell_map = cells.read_cells(tmp_path / "cells.h5ad")
    assert list(cell_map.obs.index) == ["c0", "c2", "c3", "c4"]
    assert cells.describe(cell_map).startswith("4 of 5 cells; ")


def test_cells_are_listed_whatever_their_columns_are_called():
    obs = pd.DataFrame({"cell": [1], "cell id": [2], 3: [4]}, index=["c0"])
    table = cells.obs_table(cells.CellMap(np.zeros((1, 2)), obs, 1))
    assert table.columns.tolist() == ["cell id id", "cell", "cell id", "3"]
    assert table.iloc[0].tolist() == ["c0", 1, 2, 4]


def test_ranks_of_a_gene_are_counted(store):
    chart, words = genes.rank_chart(store.folder, GENE)
    slow = list(made.ranks_the_slow_way(store, GENE).values())
    counted = chart.data
    for _, row in counted.iterrows():
        is_last = row["high"] == counted["high"].max()
        inside = [row["low"] <= rank < row["high"] + is_last for rank in slow]
        assert row["count"] == sum(inside)
    assert counted["count"].sum() == len(slow)
    assert words.startswith(f"Among the genes of {len(slow)} of {len(store)} cells")
    assert f"at rank {np.median(slow):,.0f}." in words


def test_the_nearest_genes_have_the_highest_cosines(results_folder, tmp_path):
    vectors = made.write_genes(tmp_path / "genes.h5ad")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = {made.IDS[i]: float(unit[3] @ unit[i]) for i in range(made.GENES) if i != 3}
    near = genes.neighbours(tmp_path / "genes.h5ad", GENE)
    assert near["gene_id"].tolist() == sorted(cosines, key=lambda gene: -cosines[gene])
    np.testing.assert_allclose(near["cosine"], sorted(cosines.values())[::-1], rtol=1e-5)
    assert near["gene"][0] == f"GENE{made.IDS.index(near['gene_id'][0])}"
    assert genes.neighbours(tmp_path / "genes.h5ad", "unknown").empty


def test_classes_of_a_gene_are_means_over_its_cells(tmp_path):
    rows = made.write_classifier(tmp_path / "task")
    found = genes.classes_of_gene(tmp_path / "task", GENE).iloc[0]
    mean = rows.loc[rows["gene"] == GENE, "probability_a"].mean()
    assert found["probability_a"] == pytest.approx(mean)
    assert found["predicted"] == ("a" if mean > 0.5 else "b")
    assert (found["method"], found["occurrences"]) == ("Geneformer", 3)
    assert genes.classes_of_gene(tmp_path / "task", "unknown").empty


def test_all_genes_are_known_once(results_folder):
    known = genes.known_genes(find_results(results_folder))
    assert known["gene_id"].is_unique and not known["gene_id"].str.startswith("<").any()
    assert set(known["gene_id"]) == {f"ENSG{i:011d}" for i in range(150)}


@pytest.mark.parametrize("means", [True, False])
def test_edits_and_the_genes_they_move_are_found_from_either_side(tmp_path, means):
    of_cells = made.write_perturbation(tmp_path / "run", means)
    for find, given, other in (
        (shifts.affected_by, "perturbed", "affected"),
        (shifts.affecting, "affected", "perturbed"),
    ):
        found = find(tmp_path / "run", GENE)
        slow = of_cells[of_cells[given] == GENE].groupby(other)["value"].mean().sort_values()
        assert found["gene_id"].tolist() == slow.index.tolist()
        np.testing.assert_allclose(found["cosine"], slow, rtol=1e-6)
        assert set(found["cells"]) == {4} and found["gene"].str.startswith("GENE").all()
        assert find(tmp_path / "run", "unknown").empty


def test_statistics_are_of_edits_and_a_gene_has_its_rows(results_folder):
    run = results_folder / "shifts"
    assert shifts.statistics_of(run) == ["goal_state_shift"]
    table = shifts.read_statistic(run, "goal_state_shift")
    pd.testing.assert_frame_equal(table, made.statistic())
    pairs = shifts.edits_of_gene(run, "goal_state_shift", GENE)
    assert pairs["Ensembl_ID"].tolist() == [GENE]


def test_a_perturbation_without_gene_shifts_says_so(tmp_path):
    made.write_perturbation(tmp_path / "run")
    (tmp_path / "run" / "gene_shift_means.parquet").unlink()
    with pytest.raises(InputError, match="gene_shifts=means"):
        shifts.affected_by(tmp_path / "run", GENE)


def test_the_last_losses_of_a_run_are_those_of_its_last_whole_lines(results_folder):
    row = runs.last_values({"run": results_folder / "run"}).iloc[0]
    assert row.tolist() == ["run", 30, 4.0, 4.5]
    assert runs.runs_chart({}) is None


@pytest.mark.parametrize("named", [False, True])
def test_a_rectangle_chooses_the_points_within(named):
    table = made.statistic()
    labels = {"Shift_to_goal_end": "x", "Goal_end_FDR": "y"}
    if named:
        chart = charts.volcano(table, *labels, labels, "N_Detections")
        across, up = "shift", "height"
        values = table["Shift_to_goal_end"], -np.log10(table["Goal_end_FDR"])
    else:
        values = table["Shift_to_goal_end"], table["Goal_end_FDR"]
        points = np.column_stack(values)
        chart = charts.embedding_map(points, table["Sig"], table["Ensembl_ID"])
        across, up = "x", "y"
    low, high = values[1].quantile([0.3, 0.8])
    rectangle = {across: [-0.005, 0.015], up: [high, low]}
    expected = table["Ensembl_ID"][values[0].between(-0.005, 0.015) & values[1].between(low, high)]
    assert 0 < len(expected) < len(table)
    assert chosen_keys(chart, {"brush": rectangle}) == expected.tolist()
    assert chosen_keys(chart, {"brush": {}}) is None and chosen_keys(chart, {}) is None
