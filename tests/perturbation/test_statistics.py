"""Statistics of shifts, beside scipy on all values at once."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, ranksums

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.statistics import aggregate, shifts
from geneformer_jax.perturbation.statistics.combinations import combinations
from geneformer_jax.perturbation.statistics.mixture import fit_mixture, mixture_model
from geneformer_jax.perturbation.statistics.moments import RunningMoments, blocks_of
from geneformer_jax.perturbation.statistics.rank_sums import RunningSample
from tests.helpers.shift_pieces import cut


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
    ours = shifts.goal_state_shift(cut(frame, 300), "goal", without_own=without_own)
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
        shifts.goal_state_shift([frame], "goal", without_own=without_own)
        .set_index("Ensembl_ID")
        .loc["G0", "Goal_end_vs_random_pval"]
        for without_own in (False, True)
    )
    assert p_without < p_with * 1e-3


def test_a_sampled_background_depends_on_the_seed_and_not_on_the_order_of_rows():
    frame = made_up(cells=200)
    shuffled = frame.sample(frac=1, random_state=1)

    def run(pieces, **options):
        return shifts.goal_state_shift(pieces, "goal", background=500, **options)

    one = run([frame], seed=42)
    other_order = run(cut(shuffled, 777), seed=42)
    pd.testing.assert_frame_equal(one, other_order, rtol=1e-12)
    assert not one["Goal_end_vs_random_pval"].equals(
        run([frame], seed=7)["Goal_end_vs_random_pval"]
    )
    whole = shifts.goal_state_shift([frame], "goal")
    pair = [table.set_index("Ensembl_ID")["Goal_end_effect_size"] for table in (one, whole)]
    assert pair[0].corr(pair[1]) > 0.98


def test_own_rows_leave_a_sampled_background_too():
    frame = made_up(cells=200)
    table = shifts.goal_state_shift(
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
    shifts.goal_state_shift(pieces, "goal", background=2_000)
    mixture_model(pieces)
    aggregate.aggregate(pieces)
    shifts.sample_shifts(pieces, 2_000)
    shifts.versus_null(pieces, pieces, rows_at_once=16_000)


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


def test_bad_input_is_reported_in_one_line():
    frame = made_up()
    with pytest.raises(InputError, match='state "gaol" \\(did you mean "goal"\\?\\)'):
        shifts.goal_state_shift([frame], "gaol")
    one_cell = frame[frame["cell"] == frame["cell"].iloc[0]]
    with pytest.raises(InputError, match="too few cells"):
        shifts.goal_state_shift([one_cell], "goal")
    elsewhere = frame.assign(perturbed="X" + frame["perturbed"])
    with pytest.raises(InputError, match="no edit was made in both"):
        shifts.versus_null([frame], [elsewhere])
    with pytest.raises(InputError, match="too few cells"):
        shifts.versus_null([frame], [one_cell])
    with pytest.raises(InputError, match="at least 3 edits"):
        mixture_model([frame[frame["perturbed"].isin(["G1", "G2"])]])
    with pytest.raises(InputError, match="no sets of genes"):
        combinations([frame])
    with pytest.raises(InputError, match="perturb the single genes"):
        combinations([sets().query("perturbed in ('A', 'A+B')")])
    with pytest.raises(InputError, match="too few cells"):
        combinations([sets(cells=1)])
