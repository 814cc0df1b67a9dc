"""Screens from Python: estimates, the edits that are settled, and how a screen is judged."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation import screen
from geneformer_jax.perturbation.api import perturb_cells
from geneformer_jax.perturbation.cell_states import CellStates
from geneformer_jax.perturbation.engine.screening import settling
from geneformer_jax.perturbation.statistics.accuracy.screen_accuracy import (
    describe_accuracy,
    describe_poor,
    screen_accuracy,
)
from tests.helpers.slow_perturbation import LIMIT, make_cells, make_model

KEYS = ["cell", "perturbed", "state"]
STATES = CellStates("kind", goal="b", start="a")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def cells(model):
    return make_cells(model, [23, 8, 8, 24, 8, 8, 23])


@pytest.fixture(scope="module")
def exact(model, cells) -> pd.Series:
    table = perturb_cells(model, cells, states=STATES)
    return table[table["measure"] == "state_shift"].set_index(KEYS)["value"]


@pytest.fixture(scope="module")
def estimated(model, cells) -> pd.DataFrame:
    return perturb_cells(model, cells, states=STATES, screen=True)


@pytest.fixture(scope="module")
def everywhere(model, cells) -> pd.DataFrame:
    """Estimates with a split point at every position, where reranking is exact."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "encodings_of_screen", lambda *_: 0)
        return perturb_cells(model, cells, states=STATES, screen=True, split_points=LIMIT)


def test_a_screen_alone_is_all_estimates(estimated, exact):
    assert set(estimated["method"]) == {"estimated"} and not estimated["sampled"].any()
    np.testing.assert_array_equal(estimated["value"], estimated["estimate"])
    parts = estimated["reranking"] + estimated["removal"]
    np.testing.assert_allclose(parts, estimated["value"], atol=1e-6)
    expected = exact.loc[pd.MultiIndex.from_frame(estimated[KEYS])]
    assert len(exact) == len(estimated) == 2 * (23 + 24 + 23)
    assert stats.spearmanr(expected, estimated["value"]).statistic > 0.9
    assert estimated[estimated["state"] == "a"]["rank"].tolist() == [
        rank + 1 for genes in (23, 24, 23) for rank in range(genes)
    ]


def test_the_strongest_and_a_random_sample_are_made_exactly(
    model, cells, estimated, exact, everywhere, monkeypatch, tmp_path
):
    monkeypatch.setattr(settling, "SAMPLE", 10)
    found = perturb_cells(model, cells, states=STATES, screen=True, settle=6)
    goal = found["state"] == "b"
    np.testing.assert_array_equal(found["estimate"], estimated["estimate"])
    assert found[goal]["sampled"].sum() == 10
    strongest = estimated[goal]["estimate"].abs().nlargest(6).index
    is_exact = found["method"] == "exact"
    assert set(found[goal & is_exact].index) == {*strongest, *found[goal & found["sampled"]].index}
    expected = exact.loc[pd.MultiIndex.from_frame(found[is_exact][KEYS])]
    np.testing.assert_allclose(found[is_exact]["value"], expected, atol=1e-6)
    sampled = found["sampled"]
    for rows, expected in ((sampled, everywhere), (~sampled, estimated)):
        np.testing.assert_allclose(found[rows]["reranking"], expected[rows]["reranking"], atol=1e-6)
    numbers = ["value", "reranking", "removal", "rank"]
    pd.testing.assert_frame_equal(found[~is_exact][numbers], estimated[~is_exact][numbers])
    accuracy = pd.DataFrame(found.attrs["screen_accuracy"]).set_index("state").loc["b"]
    sample = found[goal & found["sampled"]]
    correlation = stats.spearmanr(sample["value"], sample["estimate"]).statistic
    assert accuracy["spearman"] == pytest.approx(correlation)
    assert accuracy["edits"] == 10
    found.to_parquet(tmp_path / "found.parquet")
    assert len(pd.concat([found, found])) == 2 * len(found)


def test_all_edits_can_be_settled_and_their_parts_are_exact(model, cells, exact, everywhere):
    found = perturb_cells(model, cells, states=STATES, screen=True, settle=1.0, split_points=2)
    assert set(found["method"]) == {"exact"} and found["sampled"].all()
    expected = exact.loc[pd.MultiIndex.from_frame(found[KEYS])]
    np.testing.assert_allclose(found["value"], expected, atol=1e-6)
    np.testing.assert_allclose(found["reranking"], everywhere["reranking"], atol=1e-6)


def test_cells_that_cost_no_more_exactly_are_exact(model):
    # With 12 split points and two states a screen encodes a cell 22 times.
    cells = make_cells(model, [23, 8, 8, 2, 8, 8, 22])
    exact = perturb_cells(model, cells, states=STATES)
    exact = exact[exact["measure"] == "state_shift"].set_index(KEYS)["value"]
    found = perturb_cells(model, cells, states=STATES, screen=True)
    is_exact = found["method"] == "exact"
    assert set(found["cell"][is_exact]) == {"cell3", "cell6"}
    assert set(found["cell"][~is_exact]) == {"cell0"} and not found["sampled"].any()
    expected = exact.loc[pd.MultiIndex.from_frame(found[is_exact][KEYS])]
    np.testing.assert_allclose(found[is_exact]["value"], expected, atol=1e-6)


def test_small_cells_take_nothing_of_what_is_settled():
    estimates = np.array([9.0, 1.0, -3.0, 2.0, 8.0])
    chosen = settling.choose_edits(estimates, 0.4, 0, cheap=np.array([0, 4]))
    assert chosen.strongest.tolist() == [2, 3] and chosen.sampled.tolist() == [1, 2, 3]
    assert chosen.all.tolist() == [0, 1, 2, 3, 4]


def test_named_genes_alone_are_screened(model, cells, estimated, caplog):
    gene = estimated["perturbed"][20]
    found = perturb_cells(model, cells, states=STATES, screen=True, genes=[gene])
    own = estimated[estimated["perturbed"] == gene]
    np.testing.assert_allclose(found["estimate"], own["estimate"], atol=1e-6)
    np.testing.assert_array_equal(found["rank"], own["rank"])
    assert set(found["method"]) == {"exact"}
    # A screen encodes each cell 22 times, and then its one edit.
    edits = len(own) // 2
    expected = f"takes {23 * edits} encodings, and exact shifts of all its edits {edits}: leave"
    assert expected in caplog.text


@pytest.mark.slow
def test_a_screen_has_changes_of_class_probabilities_settled_too(cells):
    model = make_model(classifier=True)
    asked = {"states": STATES, "classes": True}
    exact = perturb_cells(model, cells, **asked).set_index(
        ["measure", "cell", "perturbed", "state"]
    )
    found = perturb_cells(model, cells, **asked, screen=True, settle=1.0)
    found = found[found["measure"] == "class_probability_shift"].set_index(KEYS)
    after, before = (
        exact.loc[f"class_probability_{when}"]["value"].loc[found.index]
        for when in ("after", "before")
    )
    np.testing.assert_allclose(found["value"], after - before, atol=1e-6)


def test_a_classifier_with_one_more_layer_is_not_screened(cells):
    model = make_model(classifier=True)
    model = replace(model, head=replace(model.head, extra_layer=True))
    with pytest.raises(InputError, match="has one more transformer layer"):
        perturb_cells(model, cells, states=STATES, classes=True, screen=True)


def rows(exact: np.ndarray, estimate: np.ndarray) -> pd.DataFrame:
    named = {"measure": "state_shift", "state": "goal"}
    return pd.DataFrame({**named, "value": exact, "estimate": estimate})


def test_accuracy_is_that_of_scipy_and_its_interval_holds_the_truth():
    rng = np.random.default_rng(0)
    estimate = rng.normal(size=200).astype(np.float32)
    exact = 2 * estimate + rng.normal(size=200)
    (row,) = screen_accuracy(rows(exact, estimate)).itertuples()
    assert row.spearman == pytest.approx(stats.spearmanr(exact, estimate).statistic)
    assert row.slope == pytest.approx(stats.linregress(estimate, exact).slope)
    strongest = np.argsort(-np.abs(exact))[:10]
    hits = np.isin(strongest, np.argsort(-np.abs(estimate))[:30])
    assert row.recall == pytest.approx(hits.mean())
    assert row.slope_low < 2 < row.slope_high and row.slope_high - row.slope_low < 0.6
    assert row.spearman_low < row.spearman < row.spearman_high
    assert not describe_poor(screen_accuracy(rows(exact, estimate)))


def test_a_poor_screen_says_so_and_names_the_remedy():
    rng = np.random.default_rng(0)
    table = screen_accuracy(rows(*rng.normal(size=(2, 200))))
    (line,) = describe_poor(table)
    assert "the screen is poor" in line and "`split_points`" in line and "`screen`" in line
    (line, *_) = describe_accuracy(table)
    assert "of the shift towards goal against 200 exact ones" in line
    assert line.endswith("; by chance 0.15)")
    # Without any spread nothing can be said for it.
    assert describe_poor(screen_accuracy(rows(np.zeros(5), np.zeros(5))))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"states": None}, "`states` are missing"),
        ({"edit": "overexpress"}, "`edit` is 'overexpress', but a screen knows only 'delete'"),
        ({"combine": "pairs"}, "`combine` is 'pairs'"),
        ({"truncation": "refill"}, "`truncation` is 'refill'"),
        ({"positions": "keep"}, "`positions` is 'keep'"),
        ({"gene_shifts": "full"}, "`gene_shifts` is 'full'"),
        ({"split_points": 1}, "`split_points` is 1; give a whole number of at least 2"),
        ({"split_points": 8.0}, "`split_points` is 8.0; give a whole number"),
        ({"settle": 1.5}, "`settle` is 1.5"),
        ({"settle": 0}, "`settle` is 0"),
        ({"settle": -0.1}, "`settle` is -0.1"),
        ({"settle": float("nan")}, "`settle` is nan"),
        ({"settle": True}, "`settle` is True"),
        ({"settle": "5%"}, "`settle` is '5%'"),
        ({"screen": False, "settle": 5}, "`settle` is 5, but nothing is screened"),
        ({"screen": False, "split_points": 9}, "`split_points` is 9, but nothing is screened"),
        ({"screen": 1}, "`screen` is 1"),
    ],
)
def test_bad_input_is_reported_in_one_line(model, cells, options, words):
    with pytest.raises(InputError) as refused:
        perturb_cells(model, cells, **{"states": STATES, "screen": True, **options})
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
