"""Measures of predictions, against sklearn, slow versions and the original's published folds."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn import metrics
from sklearn.calibration import calibration_curve as sklearn_calibration

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification import figures
from geneformer_jax.finetuning.classification.metrics import (
    average_precision,
    bootstrap_intervals,
    calibration_curve,
    calibration_error,
    class_table,
    confusion,
    fold_roc,
    fold_table,
    precision_recall,
    summarise,
    weighted_auc,
    weighted_mean_and_sd,
)
from geneformer_jax.finetuning.classification.predictions import (
    average_by_gene,
    classes_of,
    make_predictions,
    read_predictions,
    write_predictions,
)


def made_up(classes: int = 2, rows: int = 300, folds: int = 3, seed: int = 0) -> pd.DataFrame:
    """Predictions that are better than chance, in folds of different sizes."""
    rng = np.random.default_rng(seed)
    names = [f"k{i}" for i in range(classes)]
    truth = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + 1.2 * np.eye(classes)[truth]
    # Two decimals: scores are tied, as those of trees are.
    probabilities = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 2)
    fold = np.sort(rng.integers(0, 2 * folds, rows) % folds * (rng.random(rows) < 0.8))
    parts = [
        make_predictions(
            [f"c{i}" for i in np.flatnonzero(fold == each)],
            "cell",
            each,
            np.array(names)[truth[fold == each]],
            probabilities[fold == each],
            names,
        )
        for each in range(folds)
    ]
    return pd.concat(parts, ignore_index=True)


def occurrences(genes: int = 40, seed: int = 0) -> pd.DataFrame:
    """Predictions of genes in many cells: votes of a gene resemble each other."""
    rng = np.random.default_rng(seed)
    rows = []
    for gene in range(genes):
        label = gene % 2
        lean = rng.normal(0.8 * (2 * label - 1), 1.0)
        for cell in range(rng.integers(3, 40)):
            p = 1 / (1 + np.exp(-(lean + 0.3 * rng.normal())))
            rows.append(
                (f"c{cell}", f"g{gene}", gene % 5 % 2, f"k{label}", f"k{int(p > 0.5)}", 1 - p, p)
            )
    names = ["id", "gene", "fold", "label", "predicted", "probability_k0", "probability_k1"]
    return pd.DataFrame(rows, columns=names)


def original_roc(predictions: pd.DataFrame) -> tuple[np.ndarray, float, float]:
    """The original's way, written out plainly: points, weights, weighted mean and sd."""
    rates = [i / 99 for i in range(100)]
    curves, aucs, sizes = [], [], []
    for _, rows in predictions.groupby("fold"):
        false, true, _ = metrics.roc_curve(rows["label"] == "k1", rows["probability_k1"])
        curve = [float(np.interp(rate, false, true)) for rate in rates]
        curve[0] = 0.0
        curves.append(curve)
        aucs.append(metrics.auc(false, true))
        sizes.append(len(true))
    weights = [size / sum(sizes) for size in sizes]
    mean = [sum(w * c[i] for w, c in zip(weights, curves, strict=True)) for i in range(100)]
    mean[-1] = 1.0
    auc = sum(w * a for w, a in zip(weights, aucs, strict=True))
    variance = sum(w * (a - auc) ** 2 for w, a in zip(weights, aucs, strict=True))
    return np.array(mean), auc, variance**0.5


def test_folds_are_weighted_as_the_original_does():
    predictions = made_up()
    mean, auc, sd = original_roc(predictions)
    roc = fold_roc(predictions)
    np.testing.assert_allclose(roc.mean_curve, mean, rtol=0, atol=1e-12)
    assert roc.auc == pytest.approx(auc, abs=1e-12)
    assert roc.sd == pytest.approx(sd, abs=1e-12)
    assert roc.plain_auc == pytest.approx(np.mean(roc.aucs), abs=1e-12)
    assert abs(roc.auc - roc.plain_auc) > 1e-4  # the folds are unequal, so weighting shows


def test_a_single_fold_has_no_deviation():
    predictions = made_up()
    roc = fold_roc(predictions[predictions["fold"] == 0])
    assert roc.auc == roc.plain_auc == roc.aucs[0]
    assert np.isnan([roc.sd, roc.plain_sd]).all()


def test_the_originals_fold_figures_give_its_published_mean():
    """Folds .937 .941 .964 .890 .878 were published as .914 +/- .032.

    Their plain mean is .922 and sd .033, so they were weighted. The weights were not published;
    these are some that fit, by the original's mean and its sd of a population.
    """
    folds = np.array([0.937, 0.941, 0.964, 0.890, 0.878])
    plain = weighted_mean_and_sd(folds, np.full(5, 0.2))
    assert (round(plain[0], 3), round(plain[1], 3)) == (0.922, 0.033)
    points = np.array([80, 60, 60, 110, 110])
    weighted = weighted_mean_and_sd(folds, points / points.sum())
    assert (round(weighted[0], 3), round(weighted[1], 3)) == (0.914, 0.032)


def test_more_than_two_classes_are_averaged_one_against_the_others():
    predictions = made_up(classes=4)
    expected = [
        np.mean(
            [
                metrics.roc_auc_score(rows["label"] == name, rows[f"probability_{name}"])
                for name in ("k0", "k1", "k2", "k3")
            ]
        )
        for _, rows in predictions.groupby("fold")
    ]
    roc = fold_roc(predictions)
    np.testing.assert_allclose(roc.aucs, expected, rtol=0, atol=1e-12)
    assert roc.auc == pytest.approx(np.mean(expected)) == roc.plain_auc


@pytest.mark.parametrize("classes", [2, 4])
def test_measures_are_those_of_sklearn(classes):
    predictions = made_up(classes)
    names = list(classes_of(predictions))
    label, predicted = predictions["label"], predictions["predicted"]
    found = summarise(predictions)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(label, predicted))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(label, predicted, average="macro"))
    matrix = confusion(predictions)
    assert matrix.to_numpy().tolist() == metrics.confusion_matrix(label, predicted).tolist()
    assert list(matrix.index) == list(matrix.columns) == names
    table = class_table(predictions)
    precision, recall, f1, members = metrics.precision_recall_fscore_support(label, predicted)
    np.testing.assert_allclose(table[["precision", "recall", "f1"]].T, [precision, recall, f1])
    assert table["members"].tolist() == members.tolist()
    by_fold = fold_table(predictions)
    assert by_fold["rows"].sum() == len(predictions)
    assert by_fold["weight"].sum() == pytest.approx(1)
    for (_, rows), accuracy in zip(predictions.groupby("fold"), by_fold["accuracy"], strict=True):
        assert accuracy == pytest.approx((rows["label"] == rows["predicted"]).mean())


def test_precision_recall_is_of_the_second_class():
    predictions = made_up()
    expected = metrics.average_precision_score(
        predictions["label"] == "k1", predictions["probability_k1"]
    )
    assert average_precision(predictions) == pytest.approx(expected)
    precision, recall = precision_recall(predictions, "k1")
    assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(expected)


def test_calibration_is_that_of_sklearn_and_of_a_slow_version():
    predictions = made_up(3, rows=500)
    curve = calibration_curve(predictions)
    confidence = predictions.filter(like="probability_").max(axis=1).to_numpy(float)
    right = (predictions["label"] == predictions["predicted"]).to_numpy()
    accuracy, mean = sklearn_calibration(right, confidence, n_bins=10)
    error = 0.0
    for bin_ in range(10):
        inside = (confidence > bin_ / 10) & (confidence <= (bin_ + 1) / 10)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert calibration_error(curve) == pytest.approx(error, abs=1e-6)
    np.testing.assert_allclose(curve["accuracy"], accuracy, atol=1e-6)
    np.testing.assert_allclose(curve["confidence"], mean, atol=1e-6)
    assert curve["rows"].sum() == 500


def test_votes_of_all_cells_on_a_gene_are_averaged():
    predictions = occurrences()
    table = average_by_gene(predictions)
    assert len(table) == predictions["gene"].nunique()
    for _, row in table.iterrows():
        votes = predictions[predictions["gene"] == row["gene"]]
        mean = votes["probability_k1"].mean()
        assert row["probability_k1"] == pytest.approx(mean)
        assert row["predicted"] == ("k1" if mean > 0.5 else "k0")
        assert (row["occurrences"], row["label"]) == (len(votes), votes["label"].iloc[0])


def test_predictions_are_written_and_read_back(tmp_path):
    predictions = occurrences()
    write_predictions(predictions, tmp_path / "p.parquet")
    again = read_predictions(tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(again, predictions, check_dtype=False, check_categorical=False)
    assert summarise(again) == summarise(predictions)
    pd.testing.assert_frame_equal(
        average_by_gene(again), average_by_gene(predictions), check_dtype=False,
        check_categorical=False,
    )  # fmt: skip


def test_weighted_area_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    truth, score = rng.random(200) < 0.3, np.round(rng.random(200), 1)
    weights = rng.integers(0, 4, 200).astype(float)
    expected = metrics.roc_auc_score(truth, score, sample_weight=weights)
    assert weighted_auc(truth, score)(weights) == pytest.approx(expected)
    assert np.isnan(weighted_auc(truth, score)(weights * truth))


def slow_bootstrap(predictions: pd.DataFrame, samples: int, seed: int) -> dict[str, list[float]]:
    """Draws genes of each fold and copies their rows."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"auc_plain": [], "accuracy": [], "macro_f1": []}
    for _ in range(samples):
        drawn = []
        for fold, rows in predictions.groupby("fold"):
            genes = rows["gene"].unique()
            for gene in genes[rng.integers(0, len(genes), len(genes))]:
                drawn.append(rows[rows["gene"] == gene].assign(fold=fold))
        sample = pd.concat(drawn)
        found["auc_plain"].append(fold_roc(sample).plain_auc)
        found["accuracy"].append(metrics.accuracy_score(sample["label"], sample["predicted"]))
        found["macro_f1"].append(
            metrics.f1_score(sample["label"], sample["predicted"], average="macro")
        )
    return found


def test_intervals_are_those_of_drawing_whole_genes():
    """The same draws in the same order, so the intervals are the same numbers."""
    predictions = occurrences(20)
    found = bootstrap_intervals(predictions, samples=25, seed=3)
    for name, values in slow_bootstrap(predictions, 25, seed=3).items():
        expected = np.percentile(values, [2.5, 97.5])
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-9, err_msg=name)


def test_intervals_over_genes_are_wider_than_over_their_occurrences():
    predictions = occurrences(60)
    whole = bootstrap_intervals(predictions, samples=200)["accuracy"]
    alone = bootstrap_intervals(predictions.drop(columns="gene"), samples=200)["accuracy"]
    assert whole.high - whole.low > 2 * (alone.high - alone.low)


def test_donors_are_drawn_whole():
    predictions = occurrences().drop(columns="gene")
    predictions["id"] = [f"c{i}" for i in range(len(predictions))]
    donors = pd.Series(occurrences()["gene"].to_numpy(), index=predictions["id"], name="donor")
    expected = bootstrap_intervals(occurrences(), samples=50)
    assert bootstrap_intervals(predictions, donors, samples=50) == expected


def test_bad_predictions_are_refused():
    predictions = made_up()
    with pytest.raises(InputError, match="lack the columns predicted"):
        classes_of(predictions.drop(columns="predicted"))
    with pytest.raises(InputError, match='label "k9" but no column'):
        fold_roc(predictions.replace({"label": {"k1": "k9"}}))
    one = predictions[(predictions["fold"] != 1) | (predictions["label"] == "k1")]
    with pytest.raises(InputError, match='fold 1 tests the class "k1" only'):
        fold_roc(one)


@pytest.mark.parametrize("classes", [2, 3])
def test_figures_show_what_was_measured(classes, tmp_path):
    predictions = made_up(classes)
    roc = fold_roc(predictions)
    drawn = figures.roc_figure({"network": roc, "SVM": roc}, "a task")
    lines = {line.get_label(): line for line in drawn.axes[0].lines}
    label = f"network: {roc.auc:.2f} ± {roc.sd:.2f}"
    np.testing.assert_array_equal(lines[label].get_ydata(), roc.mean_curve)
    assert len(drawn.axes[0].lines) == 1 + len(roc.folds) + 2
    assert drawn.axes[0].get_title() == "a task"
    assert drawn.axes[0].get_legend().get_title().get_text() == "AUC, mean ± sd over folds"
    one = figures.roc_figure({"network": fold_roc(predictions[predictions["fold"] == 0])})
    assert one.axes[0].get_legend().get_title().get_text() == "AUC"
    matrix = confusion(predictions)
    drawn = figures.confusion_figure(matrix)
    assert [text.get_text() for text in drawn.axes[0].texts] == [
        f"{count:,}" for count in matrix.to_numpy().ravel()
    ]
    curve = calibration_curve(predictions)
    drawn = figures.calibration_figure({"network": curve})
    np.testing.assert_array_equal(drawn.axes[0].lines[1].get_ydata(), curve["accuracy"])
    drawn = figures.precision_recall_figure({"network": precision_recall(predictions, "k1")}, 0.5)
    np.testing.assert_array_equal(
        drawn.axes[0].lines[1].get_xdata(), precision_recall(predictions, "k1")[1]
    )
    drawn = figures.probability_figure(predictions)
    assert isinstance(drawn, Figure)
    texts = (
        drawn.axes[0].get_legend().get_texts() if classes == 2 else drawn.axes[0].get_yticklabels()
    )
    names = [text.get_text() for text in texts]
    sizes = predictions["label"].value_counts()
    assert names == [f"k{i} ({sizes[f'k{i}']})" for i in range(classes)]
