"""Tables of predictions: the class predicted for each cell or gene, and every probability.

Columns: `id` (cell), `gene` (gene tasks only), `fold` (int), `label` and `predicted` (class names)
and `probability_<class>` for each class, in the order of the logits.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.tables import PARQUET_ERRORS
from geneformer_jax.model.heads import HeadConfig, HeadTask

PROBABILITY = "probability_"


class Outputs(NamedTuple):
    """Logits of cells, or of labelled genes in cells, in the order of cells and ranks.

    Attributes:
      cells: int64 [n] numbers of the cells in their source.
      tokens: int32 [n] the genes; empty for cells.
      targets: float32 [n, K]; NaN where there is no label.
      logits: float32 [n, C].
    """

    cells: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    logits: np.ndarray


def classes_of(predictions: pd.DataFrame) -> tuple[str, ...]:
    """Returns the class names of a table of predictions, in the order of the logits.

    Raises:
      InputError: it lacks a column, or has a label that is no class.
    """
    lacking = {"fold", "label", "predicted"} - set(predictions.columns)
    if lacking:
        raise InputError(
            f"predictions lack the columns {', '.join(sorted(lacking))}; see analysis.predictions"
        )
    columns = [str(column) for column in predictions.columns]
    classes = tuple(
        column.removeprefix(PROBABILITY) for column in columns if column.startswith(PROBABILITY)
    )
    strange = sorted(set(predictions["label"].astype(str)) - set(classes))
    if strange:
        raise InputError(
            f'predictions have the label "{strange[0]}" but no column {PROBABILITY}{strange[0]}; '
            "every class needs its own"
        )
    return classes


def make_predictions(
    ids: Sequence[str] | np.ndarray | pd.Index,
    unit: str,
    fold: int,
    labels: Sequence[str] | np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
) -> pd.DataFrame:
    """Returns a table of predictions with one row per gene or cell.

    Args:
      ids: [n] of genes or cells.
      unit: "gene" or "cell".
      fold: in which they were tested.
      labels: [n] their classes.
      probabilities: [n, C].
      classes: [C] names; the first of equally probable ones is predicted.
    """
    columns = {"gene" if unit == "gene" else "id": np.asarray(ids, object), "fold": fold}
    return pd.DataFrame(columns | _class_columns(labels, probabilities, classes))


def _class_columns(
    labels: Sequence[str] | np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    names = np.asarray(classes, object)
    return {
        "label": np.asarray(labels, object),
        "predicted": names[probabilities.argmax(axis=1)],
        **{
            PROBABILITY + name: probabilities[:, number].astype(np.float32)
            for number, name in enumerate(classes)
        },
    }


def per_task(
    head: HeadConfig, outputs: Outputs
) -> Iterator[tuple[HeadTask, np.ndarray, np.ndarray]]:
    """Yields (task, targets [n], its outputs [n, C of the task], float64) of each task.

    Outputs are log-probabilities of classes, or values of a regression on their own scale.
    """
    start = 0
    for number, task in enumerate(head.outputs):
        own = outputs.logits[:, start : start + len(task.labels)].astype(np.float64)
        start += len(task.labels)
        targets = (
            outputs.targets[:, number] if outputs.targets.shape[1] else np.full(len(own), np.nan)
        )
        if task.regression:
            yield task, targets * task.scale + task.center, own * task.scale + task.center
        else:
            yield task, targets, log_softmax(own, axis=1)


def prediction_table(
    cells: EncodedCells, head: HeadConfig, outputs: Outputs, fold: int
) -> pd.DataFrame:
    """Returns a table with one row for each cell, or each gene of a cell, and each task.

    Columns: `id` of the cell, `gene` (of genes), `fold`, `task` (where there are several); of
    classes `label`, `predicted` and `probability_<class>`, of numbers `value` and
    `predicted_value`. Cells are in input order, genes in that of their ranks.
    """
    base = {"id": cells.obs.index.to_numpy().astype(object)[outputs.cells]}
    if len(outputs.tokens):
        genes = cells.vocabulary.gene_ids.astype(object)
        base["gene"] = genes[outputs.tokens - cells.vocabulary.first_gene_token]
    base["fold"] = fold
    tables = []
    for task, targets, own in per_task(head, outputs):
        columns = base | ({"task": task.name} if len(head.outputs) > 1 else {})
        if task.regression:
            columns |= {"value": targets, "predicted_value": own[:, 0]}
        else:
            known = ~np.isnan(targets)
            labels = np.full(len(targets), "", object)
            labels[known] = np.array(task.labels, object)[targets[known].astype(int)]
            columns |= _class_columns(labels, np.exp(own), task.labels)
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def average_by_gene(predictions: pd.DataFrame) -> pd.DataFrame:
    """Averages the votes of all cells on each gene.

    Args:
      predictions: one row per occurrence of a gene in a cell.

    Returns:
      One row per gene and fold: mean probabilities, the class of the highest, and `occurrences`.
    """
    classes = classes_of(predictions)
    columns = [PROBABILITY + name for name in classes]
    grouped = predictions.groupby(["fold", "gene"], sort=False, observed=True)
    table = grouped[columns].mean()
    table["label"] = grouped["label"].first()
    table["occurrences"] = grouped.size()
    names = np.asarray(classes, object)
    table["predicted"] = names[table[columns].to_numpy().argmax(axis=1)]
    return table.reset_index()[["gene", "fold", "label", "predicted", "occurrences", *columns]]


def write_predictions(predictions: pd.DataFrame, path: Path) -> None:
    """Writes a table of predictions as Parquet."""
    text = [name for name in ("id", "gene", "label", "predicted") if name in predictions]
    predictions.astype(dict.fromkeys(text, "category")).to_parquet(path, index=False)


def read_predictions(path: Path) -> pd.DataFrame:
    """Reads a table that `write_predictions` wrote; raises InputError if it is damaged."""
    try:
        return pd.read_parquet(path)
    except PARQUET_ERRORS as error:
        raise InputError(f"{path} is damaged ({error}); fine-tune again in a new folder") from error
