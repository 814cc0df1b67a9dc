"""Statistics of shifts, beside the original's tables and beside scipy on all values at once."""

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, ranksums, wilcoxon

from geneformer_jax.analysis import shift_statistics
from geneformer_jax.analysis.shift_combinations import combinations
from geneformer_jax.analysis.shift_mixture import fit_mixture, mixture_model
from geneformer_jax.analysis.shift_ranks import RunningMoments, RunningSample, blocks_of
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.original_files import read_original_vocabulary

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


def cut(frame: pd.DataFrame, rows: int) -> list[pd.DataFrame]:
    pieces = [frame.iloc[start : start + rows] for start in range(0, len(frame), rows)]
    return [piece.astype({"perturbed": "category", "cell": "category"}) for piece in pieces]


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
    ours = shift_statistics.goal_state_shift(raw(experiment).cells, GOAL, alternatives)
    theirs = original(f"goal_state_shift_{name}")
    assert_equal(ours, theirs)
    assert set(theirs) - {"Gene"} <= set(ours)
    assert (ours["Shift_to_goal_end"].diff().dropna() <= 0).all(), "no Sig: ranked by shift"


@pytest.mark.reference_data
@pytest.mark.parametrize("edit", ["delete", "overexpress"])
def test_goal_state_shift_of_one_set_is_the_original_s(raw, original, edit):
    pieces = raw(f"v1_states_{edit}_list2_cell").cells
    ours = shift_statistics.goal_state_shift(pieces, GOAL, ALTERNATIVES)
    theirs = original(f"goal_state_shift_{edit}_list2")
    assert not any("pval" in name or "Sig" in name for name in ours)
    np.testing.assert_allclose(ours[list(theirs)], theirs, rtol=0, atol=1e-9)


@pytest.mark.reference_data
@pytest.mark.parametrize("name", ["mini", "panel"])
def test_vs_null_is_the_original_s(raw, original, name):
    test, null = (raw(f"{name}_{which}_delete_all_cell").cells for which in ("test", "null"))
    theirs = original(f"vs_null_{name}")
    ours = shift_statistics.versus_null(test, null)
    assert_equal(ours, theirs)
    assert set(theirs) - {"Gene"} <= set(ours)
    in_passes = shift_statistics.versus_null(test, null, rows_at_once=100)
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
    ours = pd.concat(shift_statistics.aggregate_cells(pieces))
    theirs = original("aggregate_data_mini_delete_list1")
    np.testing.assert_allclose(ours["Cosine_sim"], theirs["Cosine_sim"], rtol=0, atol=1e-9)
    assert set(theirs) <= set(ours)


@pytest.mark.reference_data
def test_aggregate_data_takes_sets_of_genes_at_which_the_original_fails(raw):
    pieces = raw("v1_delete_list2_cell").cells
    rows = pd.concat(shift_statistics.aggregate_cells(pieces))
    assert len(rows) == 20
    assert rows["Cell"].is_unique
    assert set(rows["Ensembl_ID"]) == {"ENSG00000198851+ENSG00000120742"}
    (mean,) = shift_statistics.aggregate(pieces)["Cosine_sim_mean"]
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
    ours = list(
        shift_statistics.aggregate_gene_shifts(pieces.cells, pieces.genes, pairs_at_once=9_000)
    )
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


def made_up(seed: int = 0, edits: int = 40, cells: int = 60, ties: bool = False) -> pd.DataFrame:
    """Edits made in differently many cells; gene G0 moves them most."""
    rng = np.random.default_rng(seed)
    made = rng.random((edits, cells)) < rng.uniform(0.15, 0.9, (edits, 1))
    edit, cell = np.nonzero(made)
    value = rng.normal(0, 0.01, len(edit)) + 0.02 * (edit == 0)
    return pd.DataFrame(
        {
            "cell": [f"c{i}" for i in cell],
            "perturbed": [f"G{i}" for i in edit],
            "perturbed_symbol": [f"g{i}" for i in edit],
            "state": "goal",
            "value": (np.round(value, 2) if ties else value).astype(np.float32),
        }
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("without_own", [False, True])
def test_goal_tests_are_scipy_s_rank_sum_tests(ties, without_own):
    frame = made_up(ties=ties)
    ours = shift_statistics.goal_state_shift(cut(frame, 300), "goal", without_own=without_own)
    ours = ours.set_index("Ensembl_ID")
    for edit, values in frame.groupby("perturbed")["value"]:
        others = frame["value"][frame["perturbed"] != edit] if without_own else frame["value"]
        x, y = values.to_numpy(float), others.to_numpy(float)
        row = ours.loc[edit]
        assert row["Goal_end_vs_random_pval"] == pytest.approx(ranksums(x, y).pvalue, rel=1e-9)
        above = (x[:, None] > y).mean() - (x[:, None] < y).mean()
        assert row["Goal_end_effect_size"] == pytest.approx(above, abs=1e-12)
    p_values = ours["Goal_end_vs_random_pval"].to_numpy()
    np.testing.assert_allclose(ours["Goal_end_FDR"], false_discovery_control(p_values))
    assert ours.index[0] == "G0"
    assert ours["Sig"].iloc[0] == 1


def test_a_background_without_the_tested_edit_shows_what_hides_in_one_that_holds_it():
    """Two edits of many cells, half the background each: with itself in it, an edit looks tame."""
    frame = made_up(edits=2, cells=400)
    p_with, p_without = (
        shift_statistics.goal_state_shift([frame], "goal", without_own=without_own)
        .set_index("Ensembl_ID")
        .loc["G0", "Goal_end_vs_random_pval"]
        for without_own in (False, True)
    )
    assert p_without < p_with * 1e-3


def test_a_sampled_background_depends_on_the_seed_and_not_on_the_order_of_rows():
    frame = made_up(cells=200)
    shuffled = frame.sample(frac=1, random_state=1)

    def run(pieces, **options):
        return shift_statistics.goal_state_shift(pieces, "goal", background=500, **options)

    one = run([frame], seed=42)
    other_order = run(cut(shuffled, 777), seed=42)
    pd.testing.assert_frame_equal(one, other_order, rtol=1e-12)
    assert not one["Goal_end_vs_random_pval"].equals(
        run([frame], seed=7)["Goal_end_vs_random_pval"]
    )
    whole = shift_statistics.goal_state_shift([frame], "goal")
    pair = [table.set_index("Ensembl_ID")["Goal_end_effect_size"] for table in (one, whole)]
    assert pair[0].corr(pair[1]) > 0.98


def test_own_rows_leave_a_sampled_background_too():
    frame = made_up(cells=200)
    table = shift_statistics.goal_state_shift(
        cut(frame, 900), "goal", background=800, without_own=True
    ).set_index("Ensembl_ID")
    sample = RunningSample(800, 42)
    numbers = frame["perturbed"].str[1:].to_numpy(int)
    sample.add(frame["cell"], frame["perturbed"], numbers, frame["value"].to_numpy(float))
    background = sample.background()
    assert len(background.values) == 800
    x = frame["value"][numbers == 3].to_numpy(float)
    y = background.values[background.owners != 3]
    expected = ranksums(x, y).pvalue
    assert table.loc["G3", "Goal_end_vs_random_pval"] == pytest.approx(expected, rel=1e-9)


def test_samples_are_uniform():
    """Each of 2,000 rows comes into a tenth of many samples, whatever its cell and edit."""
    cells = pd.Series([f"c{i}" for i in np.repeat(np.arange(100), 20)])
    edits = pd.Series([f"G{i}" for i in np.tile(np.arange(20), 100)])
    rows = np.arange(2000)
    drawn = np.zeros(2000)
    for seed in range(300):
        sample = RunningSample(200, seed)
        sample.add(cells, edits, rows, np.zeros(2000))
        drawn[sample.background().owners] += 1
    expected = 30
    chi = ((drawn - expected) ** 2 / (expected * 0.9)).sum()
    assert abs(chi - 2000) < 5 * np.sqrt(2 * 2000)


def test_the_impact_is_the_component_with_the_lower_mean():
    """The original takes component 0, which here is the higher one, and turns the table round."""
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(1)
    weak, strong = rng.normal(0.99, 0.002, 70), rng.normal(0.9, 0.01, 30)
    means = np.concatenate([weak, strong])
    component = GaussianMixture(2, random_state=0).fit(means[:, None]).means_[:, 0]
    assert component[0] > component[1], "choose a case in which the original is wrong"
    fitted = fit_mixture(means)
    assert fitted.means[0] < fitted.means[1]
    np.testing.assert_array_equal(fitted.impact(means), np.arange(100) >= 70)


def test_moments_of_pieces_are_those_of_all_values():
    rng = np.random.default_rng(0)
    keys, values = rng.integers(0, 50, 20_000), 1 - rng.random(20_000) * 1e-7
    running = RunningMoments()
    for part in np.array_split(np.arange(20_000), 13):
        running.add(keys[part], values[part])
    moments = running.result()
    by_key = pd.Series(values).groupby(keys)
    np.testing.assert_array_equal(moments.counts, by_key.size())
    np.testing.assert_allclose(moments.means, by_key.mean(), rtol=1e-14)
    np.testing.assert_allclose(moments.deviations, by_key.std(ddof=0), rtol=1e-6)


def test_blocks_hold_every_group_once_and_no_more_rows_than_allowed():
    sizes = np.array([5, 5, 30, 1, 9, 10])
    blocks = blocks_of(sizes, 11)
    assert blocks == [range(0, 2), range(2, 3), range(3, 5), range(5, 6)]


class Endless:
    """Pieces made as they are asked for: 40 edits of 200 new cells in each."""

    def __init__(self, pieces: int):
        self._pieces = pieces

    def __iter__(self):
        genes = [f"G{i}" for i in range(40)]
        edits = np.tile(np.arange(40), 200)
        for seed in range(self._pieces):
            cells = [f"c{seed}-{i}" for i in range(200)]
            yield pd.DataFrame(
                {
                    "cell": pd.Categorical.from_codes(np.repeat(np.arange(200), 40), cells),
                    "perturbed": pd.Categorical.from_codes(edits, genes),
                    "perturbed_symbol": pd.Categorical.from_codes(edits, genes),
                    "state": pd.Categorical.from_codes(np.zeros_like(edits), ["goal"]),
                    "value": np.random.default_rng(seed).normal(0, 1, 8000) - 3 * (edits < 9),
                }
            )


def everything(pieces: Endless) -> None:
    shift_statistics.goal_state_shift(pieces, "goal", background=2_000)
    mixture_model(pieces)
    shift_statistics.aggregate(pieces)
    shift_statistics.sample_shifts(pieces, 2_000)
    shift_statistics.versus_null(pieces, pieces, rows_at_once=16_000)


def test_memory_does_not_grow_with_cells():
    everything(Endless(1))
    peaks = []
    for pieces in (4, 16):
        tracemalloc.start()
        everything(Endless(pieces))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # All values of the 12 further pieces would be 0.77 MB.
    assert peaks[1] - peaks[0] < 0.3e6


def sets(cells: int = 30, no_change: float = 1.0) -> pd.DataFrame:
    """A and B alone, and together twice as far as their sum; C alone; A with C as far as C."""
    rng = np.random.default_rng(0)
    a, b, c = rng.uniform(0.01, 0.03, (3, cells))
    shifts = {"A": a, "B": b, "C": 2 * c, "A+B": 2 * (a + b), "A+C": 2 * c, "A+D": a}
    frames = [
        pd.DataFrame(
            {
                "cell": [f"c{i}" for i in range(cells)],
                "perturbed": name,
                "perturbed_symbol": name.lower(),
                "state": "",
                "value": no_change - shift if no_change else shift,
            }
        )
        for name, shift in shifts.items()
    ]
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize("no_change", [1.0, 0.0])
def test_combinations_against_sum_and_strongest_single(no_change):
    frame = sets(no_change=no_change)
    # In two cells B was not edited: they do not count for A+B.
    frame = frame[~((frame["perturbed"] == "B") & frame["cell"].isin(["c0", "c1"]))]
    table, left_out = combinations(cut(frame, 50), no_change)
    assert left_out == 1, "D was never edited alone"
    in_passes, _ = combinations(cut(frame, 50), no_change, rows_at_once=1)
    pd.testing.assert_frame_equal(table, in_passes)
    rows = table.set_index("Ensembl_ID")
    sign = -1 if no_change else 1
    assert rows["N_Detections"].to_dict() == {"A+B": 28, "A+C": 30}
    assert rows.loc["A+B", "Combo_minus_sum_shift"] * sign > 0.02
    assert rows.loc["A+B", "Combo_vs_sum_effect_size"] == sign
    assert rows.loc["A+C", "Combo_minus_strongest_shift"] == pytest.approx(0, abs=1e-12)
    assert rows.loc["A+C", "Combo_vs_strongest_pval"] == 1
    assert rows.loc["A+C", "Strongest_single"] == "c"
    assert rows.loc["A+C", "Combo_vs_sum_effect_size"] == -sign, "less than the sum"


def test_bad_input_is_told_in_one_line():
    frame = made_up()
    with pytest.raises(InputError, match='state "gaol" \\(did you mean "goal"\\?\\)'):
        shift_statistics.goal_state_shift([frame], "gaol")
    one_cell = frame[frame["cell"] == frame["cell"].iloc[0]]
    with pytest.raises(InputError, match="too few cells"):
        shift_statistics.goal_state_shift([one_cell], "goal")
    elsewhere = frame.assign(perturbed="X" + frame["perturbed"])
    with pytest.raises(InputError, match="no edit was made in both"):
        shift_statistics.versus_null([frame], [elsewhere])
    with pytest.raises(InputError, match="too few cells"):
        shift_statistics.versus_null([frame], [one_cell])
    with pytest.raises(InputError, match="at least 3 edits"):
        mixture_model([frame[frame["perturbed"].isin(["G1", "G2"])]])
    with pytest.raises(InputError, match="no sets of genes"):
        combinations([frame])
    with pytest.raises(InputError, match="perturb the single genes"):
        combinations([sets().query("perturbed in ('A', 'A+B')")])
    with pytest.raises(InputError, match="too few cells"):
        combinations([sets(cells=1)])
