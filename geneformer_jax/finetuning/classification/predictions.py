"""Tables of predictions: who was predicted what in which fold, with what probability.

Columns: `id` (cell), `gene` (gene tasks only), `fold` (int), `label` and `predicted` (class names)
and `probability_<class>` for each class, in the order of the logits.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write

PROBABILITY = "probability_"


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
    names = np.asarray(classes, object)
    predicted = names[probabilities.argmax(axis=1)]
    table = pd.DataFrame(
        {
            "gene" if unit == "gene" else "id": np.asarray(ids, object),
            "fold": fold,
            "label": np.asarray(labels, object),
            "predicted": predicted,
        }
    )
    for number, name in enumerate(classes):
        table[PROBABILITY + name] = probabilities[:, number].astype(np.float32)
    return table


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
    """Writes a table of predictions as Parquet, whole or not at all."""
    text = [name for name in ("id", "gene", "label", "predicted") if name in predictions]
    with atomic_write(path) as aside:
        predictions.astype(dict.fromkeys(text, "category")).to_parquet(aside, index=False)


def read_predictions(path: Path) -> pd.DataFrame:
    """Reads a table that `write_predictions` wrote."""
    return pd.read_parquet(path)
