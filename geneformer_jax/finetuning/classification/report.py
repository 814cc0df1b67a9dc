"""Results of a classification task: tables, figures, one HTML report."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.provenance import RESULTS_TABLE, describe_run, write_provenance
from geneformer_jax.common.tables import read_csv, write_csv
from geneformer_jax.finetuning.classification.baselines import COMMONEST, SVM
from geneformer_jax.finetuning.classification.config import GENE
from geneformer_jax.finetuning.classification.figures import (
    calibration_chart,
    calibration_figure,
    confusion_chart,
    confusion_figure,
    loss_chart,
    loss_figure,
    precision_recall_chart,
    precision_recall_figure,
    probability_figure,
    roc_chart,
    roc_figure,
)
from geneformer_jax.finetuning.classification.folder import SPLIT, TaskFolder
from geneformer_jax.finetuning.classification.metrics import (
    bootstrap_intervals,
    calibration_curve,
    class_table,
    confusion,
    fold_roc,
    fold_table,
    precision_recall,
    summarise,
)
from geneformer_jax.finetuning.classification.predictions import average_by_gene
from geneformer_jax.finetuning.classification.task import ClassificationTask
from geneformer_jax.inference.resume.folder import LOCK
from geneformer_jax.reporting.figures import save_figure
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import refresh_index
from geneformer_jax.training.telemetry import read_metrics

PER_GENE, PER_OCCURRENCE, PER_CELL = "gene", "occurrence", "cell"
LEARN_LONGER = (
    "raise `config.optimizer.learning_rate` or `config.epochs`, or search them with `trials`"
)
REPORT, LOSS = "report.html", "loss"
PUBLISHED = "published (not ours)"
_HEADINGS = {
    "auc": "AUC",
    "auc_sd": "AUC, deviation",
    "auc_plain": "AUC, plain",
    "auc_plain_sd": "AUC, plain, deviation",
    "auc_plain_low": "AUC, plain, from",
    "auc_plain_high": "to (AUC, plain)",
    "macro_f1": "macro F1",
    "macro_f1_low": "macro F1 from",
    "macro_f1_high": "to (macro F1)",
    "accuracy_low": "accuracy from",
    "accuracy_high": "to (accuracy)",
}
_MEASURES = (
    "auc",
    "auc_sd",
    "auc_plain",
    "auc_plain_sd",
    "average_precision",
    "accuracy",
    "macro_f1",
    "calibration_error",
)


def results_table(
    task: ClassificationTask, predictions: Mapping[str, pd.DataFrame], published: Mapping[str, str]
) -> pd.DataFrame:
    """Returns the measures of every method, networks on genes both per occurrence and per gene.

    Columns: `method`, `per` (what a row of its predictions is), the measures of
    `metrics.summarise`, `NAME_low` and `NAME_high` (95 % bootstrap intervals of
    auc_plain, accuracy and macro_f1, drawing genes, donors or cells), `rows`, and PUBLISHED: what
    was published for the method, with the paper's weights and cells. Published methods that did not
    run have a row of their own.
    """
    rows = []
    for method, each in predictions.items():
        figure = published.get(method, "")
        if task.unit != GENE:
            rows.append(_row(method, PER_CELL, each, task.groups, figure))
        elif "id" in each:
            rows.append(_row(method, PER_OCCURRENCE, each, None, figure))
            rows.append(_row(method, PER_GENE, average_by_gene(each), None, ""))
        else:
            rows.append(_row(method, PER_GENE, each, None, figure))
    for method, figure in published.items():
        if method not in predictions:
            rows.append({"method": method, "per": "not run", PUBLISHED: figure})
    return pd.DataFrame(rows)


def verdict(task: ClassificationTask, results: pd.DataFrame, remedy: str = LEARN_LONGER) -> str:
    """Returns one sentence: has the first method learned, and does it beat the classical ones?

    Of genes the AUC is compared, which does not depend on how large the classes are; of cells the
    accuracy. Methods whose value lies within the first one's 95 % interval are level with it. Where
    it has not learned, `remedy` says what to do.
    """
    per = PER_GENE if task.unit == GENE else PER_CELL
    rows = results[results["per"] == per].set_index("method")
    first, commonest = rows.iloc[0], rows.loc[COMMONEST]
    measure, name = ("auc_plain", "AUC") if task.unit == GENE else ("accuracy", "accuracy")
    reached = f"{name} {_with_interval(first, measure)}"
    beside = f"always naming the commonest class {commonest[measure]:.3f}"
    learned = first[f"{measure}_low"] > commonest[measure]
    if learned:
        text = f"{first.name} learned: {reached}, {beside}"
    elif first["auc_plain_low"] > commonest["auc_plain"]:
        text = (
            f"{first.name} ranks classes better than chance (AUC "
            f"{_with_interval(first, 'auc_plain')}), but does NOT name them better than always "
            f"naming the commonest class: {reached} against {commonest[measure]:.3f}"
        )
    else:
        text = f"nothing shows that {first.name} learned: {reached}, {beside}"
    others = rows[measure].drop(index=[first.name, COMMONEST])
    others = others[[" layer" not in each for each in others.index]]
    if len(others):
        text += f"; {_beside_classical(first, measure, others)}"
    if not learned:
        text += f"; {remedy}"
    return text


def _with_interval(row: pd.Series, measure: str) -> str:
    return f"{row[measure]:.3f} ({row[f'{measure}_low']:.3f} to {row[f'{measure}_high']:.3f})"


def _beside_classical(first: pd.Series, measure: str, others: pd.Series) -> str:
    best, value = others.idxmax(), others.max()
    word = "is level with"
    if value > first[f"{measure}_high"]:
        word = "LOSES to"
    elif value < first[f"{measure}_low"]:
        word = "beats"
    return f"it {word} the best classical classifier, {best} ({value:.3f})"


def write_results(
    folder: TaskFolder,
    task: ClassificationTask,
    predictions: Mapping[str, pd.DataFrame],
    results: pd.DataFrame,
    controls: pd.DataFrame,
    configuration: Mapping[str, Any],
    remedy: str = LEARN_LONGER,
) -> None:
    """Writes tables, figures, report.html and, last, provenance.json into the task's folder.

    Args:
      folder: of the task.
      task: that was run.
      predictions: method -> its predictions; the first is shown in detail.
      results: from `results_table`.
      controls: rows of `controls.summarise_control`.
      configuration: the whole one, for provenance.json.
      remedy: see `verdict`.
    """
    folds = pd.concat(
        [fold_table(each).assign(method=method) for method, each in predictions.items()]
    )
    tables = {RESULTS_TABLE: results, "folds.csv": folds, "controls.csv": controls}
    for name, table in tables.items():
        with atomic_write(folder.path / name) as aside:
            write_csv(table, aside)
    facts = describe_run(
        "finetune",
        dataclasses.asdict(folder.config),
        _inputs(folder),
        {"summary": list(task.summary), **configuration},
    )
    report = Report(f"Classification: {task.name}", " ".join(f"{line}." for line in task.summary))
    _add_tables(report, verdict(task, results, remedy), results, controls)
    shown = {method: each for method, each in predictions.items() if method != COMMONEST}
    _add_figures(report, folder.path, task, shown)
    _add_losses(report, folder, task, next(iter(shown)))
    others = (path for path in folder.path.iterdir() if path.name not in (REPORT, LOCK))
    report.files(others)
    report.provenance(facts)
    report.write(folder.path / REPORT)
    refresh_index(folder.path)
    write_provenance(folder.path, facts)


def read_results(folder: TaskFolder) -> pd.DataFrame:
    """Reads the table of results that `write_results` wrote.

    Raises:
      InputError: it is damaged.
    """
    path = folder.path / RESULTS_TABLE
    try:
        # A column without any text would be read as numbers.
        results = read_csv(path, dtype={PUBLISHED: str})
        return results.astype({"method": str, "per": str}).fillna({PUBLISHED: ""})
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it from a copy") from error


def _row(
    method: str, per: str, predictions: pd.DataFrame, groups: pd.Series | None, published: str
) -> dict[str, Any]:
    measures = summarise(predictions)
    row = {"method": method, "per": per, **{name: measures[name] for name in _MEASURES}}
    for name, interval in bootstrap_intervals(predictions, groups).items():
        row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    if method.startswith(SVM):
        # It has no probabilities of its own.
        row["calibration_error"] = float("nan")
    return {**row, "rows": measures["rows"], PUBLISHED: published}


def _levels(
    task: ClassificationTask, predictions: Mapping[str, pd.DataFrame]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Names and predictions as figures show them: those of occurrences averaged by gene too."""
    for method, each in predictions.items():
        yield method, each
        if task.unit == GENE and "id" in each:
            yield f"{method}, per gene", average_by_gene(each)


def _inputs(folder: TaskFolder) -> list[Path]:
    given = (folder.config.genes, folder.config.split)
    return [folder.path / SPLIT, *(Path(path) for path in given if path and "=" not in path)]


def _add_losses(report: Report, folder: TaskFolder, task: ClassificationTask, name: str) -> None:
    """Draws the loss of a network's folds, where the method is one."""
    metrics = {each.name: read_metrics(each) for each in folder.folds(name)}
    if not any(metrics.values()):
        return
    frequencies = task.labels.value_counts(normalize=True).to_numpy()
    # Losses on genes are of their occurrences, whose frequencies are others.
    chance = None if task.unit == GENE else float(-(frequencies * np.log(frequencies)).sum())
    figure = loss_figure(metrics, chance)
    save_figure(figure, folder.path / LOSS)
    caption = (
        f"Loss of {name}, in nats, on the cells it learns from and on the validation side, where "
        "there is one."
    )
    report.figure(figure, caption, loss_chart(metrics))


def _add_tables(report: Report, answer: str, results: pd.DataFrame, controls: pd.DataFrame) -> None:
    report.conclude(f"{answer[0].upper()}{answer[1:]}.".replace("`", ""))
    explained = (
        "AUC: mean over folds as the original weighs them (by the points of their ROC curves), "
        "with the weighted standard deviation; plain: all folds alike. Intervals: 95 %, "
        "bootstrap over genes, donors or cells."
    )
    if results[PUBLISHED].astype(bool).any():
        explained += (
            f" The column '{PUBLISHED}' repeats what was published with the paper's weights and "
            "cells; it was not measured here."
        )
    else:
        results = results.drop(columns=PUBLISHED)
    report.section("Results", explained)
    report.table(
        results, "Every method on the same folds.", RESULTS_TABLE, name="results", words=_HEADINGS
    )
    if len(controls):
        report.section(
            "Controls",
            "Permuted labels. Shuffled labels must give 0.5: more would be a leak. Labels "
            "shuffled among equally frequent genes give what frequency alone explains; p is the "
            "fraction of permutations that reach the true labels' AUC.",
        )
        report.table(controls, "AUC with permuted labels, mean and 99 % interval.", "controls.csv")


def _add_figures(
    report: Report, path: Path, task: ClassificationTask, predictions: Mapping[str, pd.DataFrame]
) -> None:
    predictions = dict(_levels(task, predictions))
    first, detail = next(iter(predictions.items()))
    second = task.classes[1]
    fraction = float((detail["label"].astype(str) == second).mean())
    curves = {method: precision_recall(each, second) for method, each in predictions.items()}
    calibrations = {
        method: calibration_curve(each)
        for method, each in predictions.items()
        if not method.startswith(SVM)
    }
    rocs = {method: fold_roc(each) for method, each in predictions.items()}
    curve = f"Precision and recall of one class against all others, all folds together: {second}"
    if len(task.classes) > 2:
        curve += ", of many; pick any other above the figure"
    matrix = confusion(detail)
    others = [name for name in task.classes if name != second]
    figures = {
        "roc": (
            roc_figure(rocs, task.name),
            "ROC, mean over folds.",
            roc_chart(rocs),
        ),
        "precision_recall": (
            precision_recall_figure(curves, fraction, f"{task.name}: {second}"),
            f"{curve}.",
            precision_recall_chart(predictions, [second, *others]),
        ),
        "confusion": (
            confusion_figure(matrix, f"{task.name}: {first}"),
            f"Predictions of {first}.",
            confusion_chart(matrix),
        ),
        "probabilities": (
            probability_figure(detail, f"{task.name}: {first}"),
            f"How {first} distributes its probabilities.",
            None,
        ),
        "calibration": (
            calibration_figure(calibrations, task.name),
            "Calibration: on the diagonal, probabilities are right as often as they state.",
            calibration_chart(calibrations),
        ),
    }
    report.section("Figures")
    for name, (figure, caption, chart) in figures.items():
        save_figure(figure, path / name)
        report.figure(figure, caption, chart)
    report.table(class_table(detail), f"Classes, as {first} predicts them.", name="classes")
