"""Several outputs learned at once, classes and numbers, from the obs columns of cells."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics

from geneformer_jax.batches.labelled import LabelledCells
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.provenance import RESULTS_TABLE, describe_run, write_provenance
from geneformer_jax.common.tables import write_csv
from geneformer_jax.finetuning.classification.config import CELL
from geneformer_jax.finetuning.classification.splits import Split, make_split
from geneformer_jax.finetuning.classification.task import FoldData
from geneformer_jax.finetuning.config import MultitaskConfig
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.model.heads import HeadTask

# Of the table of scores, and of a column of naive guesses.
_ALL, _GUESS = "all", "guess"


@dataclass(frozen=True, eq=False)
class MultitaskTask:
    """Several outputs of cells with their folds; a task of `finetune_folds`.

    Attributes:
      name: short.
      outputs: of the head.
      cells: tokenised cells.
      values: float32 [cells, K] class numbers and values; NaN where missing.
      split: of the cells that have at least one.
      dropped: number of cells that have none.
    """

    name: str
    outputs: tuple[HeadTask, ...]
    cells: EncodedCells
    values: np.ndarray
    split: Split
    dropped: int
    unit: str = CELL

    def fold_data(self, fold: int) -> FoldData:
        """Returns the cells of each side of a fold with their values."""
        places = pd.Series(np.arange(len(self.cells.obs)), self.cells.obs.index.astype(str))
        sides = []
        for side in FoldData._fields:
            rows = np.sort(places[self.split.ids(fold, side)].to_numpy(np.int64))
            sides.append(LabelledCells(rows, self.values[rows]))
        return FoldData(*sides)

    @property
    def summary(self) -> tuple[str, ...]:
        """Describes each output and how many cells have it, a line each."""
        lines = [
            f"{output.name}: {'a number' if output.regression else ', '.join(output.labels)}; "
            f"{int((~np.isnan(self.values[:, i])).sum()):,} cells have it"
            for i, output in enumerate(self.outputs)
        ]
        if self.dropped:
            lines.append(f"{self.dropped:,} cells left out, without any of these")
        return tuple(lines)


def prepare_multitask(config: MultitaskConfig, cells: EncodedCells) -> MultitaskTask:
    """Reads the columns and splits the cells into folds.

    Raises:
      InputError: no column is named, one is not there or cannot be learned, or the cells cannot be
        split.
    """
    classes, numbers = config.columns("classes"), config.columns("numbers")
    if not classes + numbers:
        raise InputError(
            "`config.targets.classes` and `config.targets.numbers` are empty; name obs columns "
            "to be learned"
        )
    if repeated := {name for name in classes + numbers if (classes + numbers).count(name) > 1}:
        raise InputError(f'`config.targets` names "{min(repeated)}" twice; name it once')
    check_columns(cells.obs, classes + numbers + ([config.group] if config.group else []))
    weights = _weights(config, classes + numbers)
    read = [_classes(cells.obs[name], weights[name]) for name in classes]
    read += [_numbers(cells.obs[name], weights[name]) for name in numbers]
    values = np.stack([each for _, each in read], axis=1).astype(np.float32)
    known = ~np.isnan(values).all(axis=1)
    ids = cells.obs.index.astype(str)[known]
    strata = _strata(read[0], known, ids)
    groups = None
    if config.group:
        groups = pd.Series(cells.obs[config.group].to_numpy(object)[known], ids, name=config.group)
    split = make_split(strata, config, groups)
    outputs = tuple(output for output, _ in read)
    return MultitaskTask(config.name, outputs, cells, values, split, int((~known).sum()))


def _weights(config: MultitaskConfig, columns: list[str]) -> dict[str, float]:
    weights = dict.fromkeys(columns, 1.0)
    for part in config.columns("weights"):
        name, _, value = part.partition("=")
        if name not in weights:
            hint = did_you_mean(name, columns)
            raise InputError(f'`config.targets.weights` names "{name}", which is not learned{hint}')
        try:
            weights[name] = float(value)
        except ValueError:
            raise InputError(
                f'`config.targets.weights` has "{part}"; write column=number'
            ) from None
    return weights


def _classes(column: pd.Series, weight: float) -> tuple[HeadTask, np.ndarray]:
    missing = column.isna().to_numpy()
    texts = column.astype(str).to_numpy()
    labels = tuple(sorted(set(texts[~missing])))
    numbers = pd.Series(texts).map({name: i for i, name in enumerate(labels)}).to_numpy(float)
    return HeadTask(str(column.name), labels, weight), np.where(missing, np.nan, numbers)


def _numbers(column: pd.Series, weight: float) -> tuple[HeadTask, np.ndarray]:
    values = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(float)
    wrong = column[~np.isfinite(values) & column.notna().to_numpy()]
    if len(wrong):
        raise InputError(
            f'obs column "{column.name}" holds "{wrong.iloc[0]}" ({len(wrong):,} such values), '
            "which is no finite number; learn it as classes, or mend it"
        )
    known = values[~np.isnan(values)]
    if not len(known) or known.std() == 0:
        raise InputError(
            f'obs column "{column.name}" has no two different numbers; there is nothing to learn'
        )
    name = str(column.name)
    center, scale = float(known.mean()), float(known.std())
    output = HeadTask(name, (name,), weight, regression=True, center=center, scale=scale)
    return output, (values - center) / scale


def _strata(read: tuple[HeadTask, np.ndarray], known: np.ndarray, ids: pd.Index) -> pd.Series:
    """Strata of the split: the first column's classes or halves; missing is a class."""
    output, values = read[0], read[1][known]
    if output.regression:
        above, below = (f"{output.name} {side} its median" for side in ("above", "below"))
        halves = np.where(values > np.nanmedian(values), above, below).astype(object)
        return pd.Series(np.where(np.isnan(values), f"no {output.name}", halves), ids)
    names = np.array([*output.labels, f"no {output.name}"], object)
    numbers = np.where(np.isnan(values), len(output.labels), values).astype(int)
    return pd.Series(names[numbers], ids)


def write_multitask_results(
    task: MultitaskTask, predictions: pd.DataFrame, workdir: Path, configuration: Mapping[str, Any]
) -> pd.DataFrame:
    """Writes the split, the predictions, their scores and the provenance; returns the scores.

    The table of scores has accuracy and macro F1 of each output of classes, R2 and mean absolute
    error of each number: a row for each fold, and one, "all", for the cells of all folds. Beside
    them stands what the commonest class, or the mean, of the cells that are learned from reaches.
    """
    rows = []
    for output, own in _by_output(task, predictions):
        for fold, each in [*own.groupby("fold"), (_ALL, own)]:
            rows.append({"target": output.name, "fold": fold, **_scores(each, output)})
    results = pd.DataFrame(rows).set_index(["target", "fold"])
    task.split.write(workdir / "split.parquet")
    with atomic_write(workdir / "predictions.parquet") as aside:
        predictions.to_parquet(aside)
    with atomic_write(workdir / RESULTS_TABLE) as aside:
        write_csv(results, aside, index=True)
    facts = describe_run("finetune", configuration, [], {"left_out": task.dropped})
    write_provenance(workdir, facts)
    return results


def verdict(task: MultitaskTask, predictions: pd.DataFrame) -> str:
    """Returns one sentence: which outputs were learned, judged by their 95 % interval over cells.

    A class is judged by accuracy, a number by its mean absolute error, each beside what the
    commonest class, or the mean, reaches on the same cells.
    """
    parts = []
    for output, own in _by_output(task, predictions):
        scores, gain = _scores(own, output), _gains(own, output)
        least = gain.mean() - 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
        word = "learned" if least > 0 else "NOT shown to be learned"
        if output.regression:
            reached, beside = scores["mean_absolute_error"], scores["mean_absolute_error_of_mean"]
            why = f"mean absolute error {reached:.3g}, of always naming the mean {beside:.3g}"
        else:
            reached, beside = scores["accuracy"], scores["accuracy_of_commonest"]
            why = f"accuracy {reached:.3f}, always naming the commonest class {beside:.3f}"
        parts.append(f"{output.name} {word} ({why})")
    return "; ".join(parts)


def _by_output(
    task: MultitaskTask, predictions: pd.DataFrame
) -> Iterator[tuple[HeadTask, pd.DataFrame]]:
    """Yields each output with the predictions of the cells that have it, and a naive guess."""
    for number, output in enumerate(task.outputs):
        own = predictions
        if "task" in predictions:
            own = predictions[predictions["task"] == output.name]
        own = own[own["value"].notna() if output.regression else own["label"] != ""]
        guesses = {fold: _guess(task, number, fold) for fold in own["fold"].unique()}
        yield output, own.assign(**{_GUESS: own["fold"].map(guesses)})


def _guess(task: MultitaskTask, number: int, fold: int) -> str | float:
    """Returns the commonest class, or the mean, of the cells that a fold learns from."""
    output = task.outputs[number]
    values = task.fold_data(fold).train.labels[:, number]
    values = values[~np.isnan(values)]
    if output.regression:
        return float(values.mean() * output.scale + output.center)
    return output.labels[np.bincount(values.astype(int)).argmax()]


def _gains(known: pd.DataFrame, output: HeadTask) -> np.ndarray:
    """Returns by how much each cell is predicted better than by the guess."""
    if output.regression:
        errors = [
            (known["value"] - known[each]).abs().to_numpy(float)
            for each in (_GUESS, "predicted_value")
        ]
        return errors[0] - errors[1]
    hits = [(known["label"] == known[each]).to_numpy(float) for each in ("predicted", _GUESS)]
    return hits[0] - hits[1]


def _scores(known: pd.DataFrame, output: HeadTask) -> dict[str, float]:
    if output.regression:
        both = known["value"], known["predicted_value"]
        return {
            "cells": len(known),
            "r2": metrics.r2_score(*both),
            "mean_absolute_error": metrics.mean_absolute_error(*both),
            "mean_absolute_error_of_mean": metrics.mean_absolute_error(both[0], known[_GUESS]),
        }
    both = known["label"], known["predicted"]
    return {
        "cells": len(known),
        "accuracy": metrics.accuracy_score(*both),
        "accuracy_of_commonest": metrics.accuracy_score(both[0], known[_GUESS]),
        "macro_f1": metrics.f1_score(*both, average="macro"),
    }
