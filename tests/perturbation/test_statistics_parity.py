"""Statistics of shifts, beside the original's tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from geneformer_jax.perturbation.statistics import aggregate, shifts
from geneformer_jax.perturbation.statistics.combinations import combinations
from geneformer_jax.perturbation.statistics.mixture import mixture_model
from tests.helpers.shift_pieces import cut

GOAL, ALTERNATIVES = "CD14+ Mono", ("B", "NK")
DICTIONARIES = {"v1": "v1_gc30M", "v2": "v2_gc104M"}


@pytest.fixture(scope="module")
def gene_ids(data_dir) -> dict[str, np.ndarray]:
    """By version: Ensembl id of each token, "cell_emb" for -1, the last."""
    ids = {}
    for version, folder in DICTIONARIES.items():
        vocabulary = read_original_vocabulary(data_dir / "dictionaries" / folder)
        names = [*vocabulary.special_tokens, *vocabulary.gene_ids, "cell_emb"]
        ids[version] = np.array(names, object)
    return ids


class Raw:
    """The original's raw shifts as our pieces; small ones, so that several are needed."""

    def __init__(self, reference: Path, ids: dict[str, np.ndarray], name: str, rows: int = 700):
        raw = pd.read_parquet(reference / "perturb" / f"{name}.parquet")
        names = ids["v2" if name.startswith("v2") else "v1"]
        edits = raw["perturbed"].astype(str)
        named = {
            edit: "+".join(names[int(token)] for token in edit.split(",")) for edit in set(edits)
        }
        frame = pd.DataFrame(
            {
                "cell": raw["cell_id"].astype(str),
                "perturbed": edits.map(named),
                "state": raw["state"].astype(str),
                "affected": names[raw["affected"].to_numpy()],
                "value": raw["value"],
            }
        )
        frame["perturbed_symbol"] = "s" + frame["perturbed"]
        frame["affected_symbol"] = "s" + frame["affected"]
        self.cells = cut(frame[frame["affected"] == "cell_emb"], rows)
        self.genes = cut(frame[frame["affected"] != "cell_emb"], 20 * rows)


@pytest.fixture(scope="module")
def raw(reference_dir, gene_ids):
    return lambda name: Raw(reference_dir, gene_ids, name)


@pytest.fixture(scope="module")
def original(reference_dir):
    """A table of the original; ids of a set, which it writes as a Python tuple, joined by "+"."""

    def read(name: str) -> pd.DataFrame:
        (path,) = (reference_dir / "stats").glob(f"{name}.csv*")
        table = pd.read_csv(path, index_col=0)
        if "Ensembl_ID" in table:
            table["Ensembl_ID"] = (
                table["Ensembl_ID"].str.replace(", ", "+").str.replace(r"[()']", "", regex=True)
            )
        return table

    return read


def assert_equal(ours: pd.DataFrame, theirs: pd.DataFrame, keys=("Ensembl_ID",)) -> None:
    """Every number within 1e-9, p-values and their FDR within 1e-6 of themselves, by gene."""
    keys = list(keys)
    assert len(ours) == len(theirs)
    ours, theirs = ours.set_index(keys).sort_index(), theirs.set_index(keys).sort_index()
    assert (ours.index == theirs.index).all()
    columns = [name for name in theirs if pd.api.types.is_numeric_dtype(theirs[name])]
    columns = [name for name in columns if name not in ("Gene", "Perturbed", "Affected")]
    assert columns
    for name in columns:
        small = "pval" in name or "FDR" in name
        tolerance = {"rtol": 1e-6, "atol": 0} if small else {"rtol": 0, "atol": 1e-9}
        np.testing.assert_allclose(ours[name], theirs[name], **tolerance, err_msg=name)


@pytest.mark.reference_data
@pytest.mark.parametrize(
    ("name", "experiment", "alternatives"),
    [
        ("delete_all", "v1_states_delete_all_cell", ALTERNATIVES),
        ("mini", "mini_states_delete_all_cell", ALTERNATIVES),
        ("mini_no_alt", "mini_states_delete_all_cell", ()),
        ("panel", "panel_states_delete_all_cell", ALTERNATIVES),
        ("v2_delete_all", "v2_states_delete_all_cls", ALTERNATIVES),
    ],
)
def test_goal_state_shift_is_the_original_s(raw, original, name, experiment, alternatives):
    ours = shifts.goal_state_shift(raw(experiment).cells, GOAL, alternatives)
    theirs = original(f"goal_state_shift_{name}")
    assert_equal(ours, theirs)
    assert set(theirs) - {"Gene"} <= set(ours)
    assert (ours["Shift_to_goal_end"].diff().dropna() <= 0).all(), "no Sig: ranked by shift"


@pytest.mark.reference_data
@pytest.mark.parametrize("edit", ["delete", "overexpress"])
def test_goal_state_shift_of_one_set_is_the_original_s(raw, original, edit):
    pieces = raw(f"v1_states_{edit}_list2_cell").cells
    ours = shifts.goal_state_shift(pieces, GOAL, ALTERNATIVES)
    theirs = original(f"goal_state_shift_{edit}_list2")
    assert not any("pval" in name or "Sig" in name for name in ours)
    np.testing.assert_allclose(ours[list(theirs)], theirs, rtol=0, atol=1e-9)


@pytest.mark.reference_data
@pytest.mark.parametrize("name", ["mini", "panel"])
def test_vs_null_is_the_original_s(raw, original, name):
    test, null = (raw(f"{name}_{which}_delete_all_cell").cells for which in ("test", "null"))
    theirs = original(f"vs_null_{name}")
    ours = shifts.versus_null(test, null)
    assert_equal(ours, theirs)
    assert set(theirs) - {"Gene"} <= set(ours)
    in_passes = shifts.versus_null(test, null, rows_at_once=100)
    pd.testing.assert_frame_equal(ours, in_passes)


MIXTURES = {
    "delete_all": "v1_delete_all_cell",
    "mini": "mini_test_delete_all_cell",
    "panel": "panel_test_delete_all_cell",
}


@pytest.mark.reference_data
@pytest.mark.parametrize("name", [*MIXTURES, "anchor_effect_on_genes_mini"])
def test_mixture_model_is_the_original_s_but_for_which_component_is_the_impact(raw, original, name):
    """The original takes component 0 for the impact; in three of its tables that is the higher.

    Its rule (above the mean of component 1: no impact; else below that of component 0: impact) is
    then the same as asking for values below the lower mean.
    """
    theirs = original(f"mixture_model_{name}")
    if name in MIXTURES:
        pieces, of = raw(MIXTURES[name]).cells, "perturbed"
    else:
        genes = raw("mini_test_delete_all_cell_and_gene").genes
        pieces = [piece[piece["perturbed"] == "ENSG00000265681"] for piece in genes]
        of = "affected"
    ours, fitted = mixture_model(pieces, of)
    if name == "panel":
        assert_equal(ours, theirs)
        return
    rows = pd.concat(pieces)
    swapped = rows["value"].astype(float) <= fitted.means[0]
    percent = 100 * swapped.groupby(rows[of].to_numpy()).mean()
    their_way = ours.assign(
        Impact_component=(ours["Test_avg_shift"] <= fitted.means[0]).astype(int),
        Impact_component_percent=percent[ours["Ensembl_ID"]].to_numpy(),
    )
    assert_equal(their_way, theirs)
    corrected = ours.set_index("Ensembl_ID")["Impact_component"]
    original_impact = theirs.set_index("Ensembl_ID")["Impact_component"]
    lost = corrected.index[corrected > original_impact.reindex(corrected.index)]
    assert len(lost) >= 30, "the original misses genes of the component that it means"


@pytest.mark.reference_data
def test_aggregate_data_is_the_original_s(raw, original):
    pieces = raw("mini_delete_list1_cell_and_gene").cells
    ours = pd.concat(aggregate.aggregate_cells(pieces))
    theirs = original("aggregate_data_mini_delete_list1")
    np.testing.assert_allclose(ours["Cosine_sim"], theirs["Cosine_sim"], rtol=0, atol=1e-9)
    assert set(theirs) <= set(ours)


@pytest.mark.reference_data
def test_aggregate_data_takes_sets_of_genes_at_which_the_original_fails(raw):
    pieces = raw("v1_delete_list2_cell").cells
    rows = pd.concat(aggregate.aggregate_cells(pieces))
    assert len(rows) == 20
    assert rows["Cell"].is_unique
    assert set(rows["Ensembl_ID"]) == {"ENSG00000198851+ENSG00000120742"}
    (mean,) = aggregate.aggregate(pieces)["Cosine_sim_mean"]
    assert mean == pytest.approx(rows["Cosine_sim"].astype(float).mean(), abs=1e-12)


@pytest.mark.reference_data
@pytest.mark.parametrize(
    ("name", "experiment"),
    [
        ("mini", "mini_test_delete_all_cell_and_gene"),
        ("mini_delete_list1", "mini_delete_list1_cell_and_gene"),
        ("delete_list2", "v1_delete_list2_cell_and_gene"),
    ],
)
def test_aggregate_gene_shifts_is_the_original_s(raw, original, name, experiment):
    theirs = original(f"aggregate_gene_shifts_{name}")
    whole = theirs["Affected"] == "cell_emb"
    theirs["Affected_Ensembl_ID"] = theirs["Affected_Ensembl_ID"].mask(whole, "")
    pieces = raw(experiment)
    ours = list(aggregate.aggregate_gene_shifts(pieces.cells, pieces.genes, pairs_at_once=9_000))
    assert (len(ours) > 3) == (name == "mini"), "several passes over the genes"
    assert_equal(pd.concat(ours), theirs, ("Ensembl_ID", "Affected_Ensembl_ID"))
    assert set(theirs) - {"Perturbed"} <= set(ours[0])
    assert all(piece["Cosine_sim_mean"].is_monotonic_increasing for piece in ours)


@pytest.mark.reference_data
def test_combinations_work_on_tables_at_which_the_original_s_statistics_fail(raw):
    """The original stores the pair's value alone, under the name of the gene beside the anchor,
    and its statistics expect triples.
    """
    anchor = "ENSG00000265681"
    pairs = pd.concat(raw("mini_delete_anchor_combos1_cell").cells)
    pairs["perturbed"] = anchor + "+" + pairs["perturbed"].astype(str)
    singles = pd.concat(raw("mini_test_delete_all_cell").cells)
    table, left_out = combinations([pairs, singles])
    assert (len(table), left_out) == (pairs["perturbed"].nunique(), 0)
    best = table.loc[table["N_Detections"].idxmax()]
    first, second = best["Ensembl_ID"].split("+")
    assert first == anchor
    values = pd.concat([pairs, singles]).pivot_table("value", "cell", "perturbed", observed=True)
    x = values[[best["Ensembl_ID"], first, second]].dropna().to_numpy(float)
    assert best["N_Detections"] == len(x)
    expected = 1 - ((1 - x[:, 1]) + (1 - x[:, 2]))
    means = x.mean(0)
    farthest = min(means[1:])
    for name, value in {
        "Combo_shift": means[0],
        "Anchor_shift": means[1],
        "Test_token_shift": means[2],
        "Sum_of_indiv_shifts": expected.mean(),
        "Combo_minus_sum_shift": means[0] - expected.mean(),
        "Strongest_single_shift": farthest,
        "Combo_minus_strongest_shift": means[0] - farthest,
        "Combo_vs_sum_pval": wilcoxon(x[:, 0], expected).pvalue,
    }.items():
        assert best[name] == pytest.approx(value, abs=1e-9), name
