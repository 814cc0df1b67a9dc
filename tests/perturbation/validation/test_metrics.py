"""Scores of predicted effects beside slow versions, planted effects, and nothing planted."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel
from sklearn.linear_model import LinearRegression

from geneformer_jax.perturbation.validation.scoring import calibration, metrics, verdict
from geneformer_jax.perturbation.validation.scoring.compare import SOURCES


def test_retrieval_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(9, 4))
    predicted = measured + rng.normal(size=(9, 4))
    scores = metrics.retrieval(predicted, measured)
    for i, shift in enumerate(predicted):
        cosines = [shift @ m / np.linalg.norm(shift) / np.linalg.norm(m) for m in measured]
        rank = sorted(cosines, reverse=True).index(cosines[i])
        assert scores["discrimination_score_cosine"][i] == pytest.approx(1 - rank / 9)
        assert scores["reciprocal_rank"][i] == pytest.approx(1 / (rank + 1))
        assert scores["recall_at_1"][i] == (rank == 0)
        assert scores["recall_at_5"][i] == (rank < 5)


def test_one_shift_for_all_is_at_chance_and_none_is_no_answer():
    measured = np.eye(6)
    same = metrics.retrieval(np.ones((6, 6)), measured)
    assert same["discrimination_score_cosine"] == pytest.approx(np.full(6, 1 - 2.5 / 6))
    nothing = metrics.retrieval(np.zeros((6, 6)), measured)
    assert np.isnan(nothing["discrimination_score_cosine"]).all()


def test_areas_are_counted_pairs():
    rng = np.random.default_rng(1)
    scores, changed = rng.normal(size=40), rng.uniform(size=40) < 0.3
    scores[3] = np.nan
    known = np.isfinite(scores)
    pairs = [a > b for a in scores[known & changed] for b in scores[known & ~changed]]
    areas = metrics.gene_areas(scores, changed)
    assert areas["roc_auc"] == pytest.approx(np.mean(pairs))
    ranked = changed[known][np.argsort(-scores[known])]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    assert areas["pr_auc"] == pytest.approx(precision[ranked].mean())
    assert np.isnan(list(metrics.gene_areas(scores, np.ones(40, bool)).values())).all()


def test_the_mean_of_others_leaves_out_the_row_and_what_is_missing():
    values = np.array([[1.0, np.nan], [3.0, 5.0], [8.0, np.nan]])
    expected = [[5.5, 5.0], [4.5, np.nan], [2.0, 5.0]]
    np.testing.assert_allclose(metrics.mean_of_others(values), expected)


def test_held_out_correlations_are_those_of_a_plain_regression():
    rng = np.random.default_rng(2)
    changes, shifts = rng.normal(size=(5, 30)), rng.normal(size=(5, 30)) * 7
    found = metrics.held_out_correlations(changes, changes, shifts, seed=0)
    standard = (shifts - shifts.mean(axis=1)[:, None]) / shifts.std(axis=1)[:, None]
    for held_out in range(5):
        rest = [p for p in range(5) if p != held_out]
        rows, truth = [], []
        for p in rest:
            others = np.mean([changes[q] for q in rest if q != p], axis=0)
            rows += list(zip(others, standard[p], strict=True))
            truth += list(changes[p])
        model = LinearRegression().fit(rows, truth)
        tested = np.stack([changes[rest].mean(axis=0), standard[held_out]], axis=1)
        expected = np.corrcoef(model.predict(tested), changes[held_out])[0, 1]
        assert found[held_out] == pytest.approx(expected)


def test_what_shifts_add_to_the_gene_is_found_if_it_is_there():
    rng = np.random.default_rng(3)
    gene = rng.normal(size=80)
    shifts = rng.normal(size=(12, 80))
    for strength in (1.0, 0.0):
        changes = gene + strength * shifts + 0.3 * rng.normal(size=(12, 80))
        alone = metrics.held_out_correlations(changes, changes, None, seed=0)
        both = metrics.held_out_correlations(changes, changes, shifts, seed=0)
        assert np.mean(both - alone) > 0.2 if strength else abs(np.mean(both - alone)) < 0.01


def scores_of(sources: dict[str, list[float]], protocol: str = "roc_auc") -> pd.DataFrame:
    rows = [
        (protocol, f"p{i}", source, value)
        for source, values in sources.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["protocol", "perturbation", "source", "value"])


def test_the_range_between_the_controls_is_what_a_score_is_a_fraction_of():
    values = ([0.7, 0.8], [0.5, 0.6], [0.6, 0.9], [0.9, 1.01])
    scores = scores_of(dict(zip(SOURCES, values, strict=True)))
    row = calibration.summarise(scores).iloc[0]
    assert row["minus_like_rank"] == pytest.approx(0.2)
    test = ttest_rel([0.7, 0.8], [0.6, 0.9])
    assert row["minus_all_perturbed_mean_pval"] == pytest.approx(test.pvalue)
    interval = test.confidence_interval()
    assert row["minus_all_perturbed_mean_low"] == pytest.approx(interval.low)
    assert row["minus_all_perturbed_mean_high"] == pytest.approx(interval.high)
    assert row["drf_like_rank"] == pytest.approx(0.2 / 0.405)
    # Two perturbations do not say for sure that the ceiling is above this control.
    assert np.isnan(row["drf_all_perturbed_mean"])
    rows = calibration.drf(scores)
    assert rows["drf"].tolist() == pytest.approx([0.5, 0.1 / 0.3, 0.2 / 0.41, -0.1 / 0.11])
    assert rows["negative"].tolist() == ["like_rank", "all_perturbed_mean"] * 2
    wide = calibration.results(scores)
    assert wide.to_dict("list") == {"perturbation": ["p0", "p1"], "roc_auc": [0.7, 0.8]}
    statistics = calibration.agg_results(wide).set_index("statistic")["roc_auc"]
    assert statistics["mean"] == pytest.approx(0.75) and statistics["null_count"] == 0


@pytest.mark.parametrize(
    ("prediction", "tech_dup", "words"),
    [
        (0.8, 0.9, "beat all their controls in 1 of the 1 questions"),
        (0.6, 0.9, "Nothing specific"),
        (0.5, 0.9, "Nothing specific"),
        (0.8, 0.5, "Nothing can be told"),
    ],
)
def test_the_verdict_says_what_is_beaten(prediction, tech_dup, words):
    noise = np.random.default_rng(4).normal(0, 0.02, (4, 20))
    means = np.array([prediction, 0.5, 0.65, tech_dup])[:, None]
    values = dict(zip(SOURCES, (means + noise).tolist(), strict=True))
    lines = verdict.describe(calibration.summarise(scores_of(values)))
    assert words in lines[0] and "roc_auc" in lines[1]


def test_equal_differences_of_a_few_perturbations_prove_nothing():
    values = pd.Series([0.5, 0.6, 0.7]), pd.Series([0.3, 0.4, 0.5])
    found = calibration.mean_difference(*values)
    assert found.mean == pytest.approx(0.2) and np.isnan([found.low, found.high]).all()
    # Three of three: a quarter of the ways to deal out signs.
    assert found.pval == 0.25
    assert calibration.mean_difference(values[0], values[0]).pval == 1
    many = pd.Series(np.arange(12.0))
    assert calibration.mean_difference(many + 0.2, many).pval == pytest.approx(2 / 2**12)
    scores = scores_of(
        dict(zip(SOURCES, ([0.7] * 3, [0.5] * 3, [0.6] * 3, [0.9] * 3), strict=True))
    )
    lines = verdict.describe(calibration.summarise(scores))
    assert lines[0].startswith("Nothing can be told") and "+0.200, in each, p 0.25" in lines[1]


def test_of_noise_hardly_ever_anything_is_said():
    """Random shifts of six perturbations, which a second half of the cells repeats well."""
    rng, told = np.random.default_rng(5), 0
    for _ in range(60):
        truth, predicted, *others = rng.normal(size=(4, 6, 5))
        sources = dict(zip(SOURCES, [predicted, *others, truth], strict=True))
        name = "discrimination_score_cosine"
        values = {
            source: metrics.retrieval(each, truth)[name].tolist()
            for source, each in sources.items()
        }
        summary = calibration.summarise(scores_of(values, name))
        told += "beat all" in verdict.describe(summary)[0]
    assert told <= 3


def test_a_range_that_is_nothing_but_rounding_has_no_fractions():
    noise = 1e-16 * np.arange(1, 4)

    def fractions(*values) -> list[str]:
        """Against genes of like rank, which are below the second half by rounding, and the mean."""
        scores = scores_of(dict(zip(SOURCES, values, strict=True)))
        return [f"{value:.3f}" for value in calibration.drf(scores)["drf"]]

    half, like_rank, mean = [0.7] * 3, 0.7 - noise, [0.3] * 3
    assert fractions(0.7 - 2 * noise, like_rank, mean, half) == ["nan", "1.000"] * 3
    # As good as the negative control is 0, not -0.
    assert fractions(0.3 - noise, like_rank, mean, half) == ["nan", "0.000"] * 3
