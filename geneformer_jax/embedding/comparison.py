"""Embeddings beside what they must beat: components of the counts, random weights, chance."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.embedding.embedder import KEY, Embedded, Embedder
from geneformer_jax.embedding.label_accuracy import (
    FOLDS,
    NEIGHBOURS,
    LabelAccuracy,
    label_accuracy,
    log_count_components,
)
from geneformer_jax.embedding.quality import MAX_MEASURED_CELLS, measure_quality
from geneformer_jax.inference.cells import ChosenCells
from geneformer_jax.inference.counts import counts_of
from geneformer_jax.inference.filters import is_number
from geneformer_jax.inference.random_control import MODEL, RANDOM, random_model

COMPONENTS = 50
# Nearest neighbours and layouts of more cells take long and show no more.
MAX_DRAWN_CELLS = 20_000


def draw_rows(rows: int, max_rows: int) -> np.ndarray:
    """Returns at most `max_rows` row numbers, ascending, drawn at random but always the same."""
    if rows <= max_rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, max_rows, replace=False))


def count_components(source: CountSource, cell_ids: pd.Index) -> dict[str, np.ndarray]:
    """Returns the name and values of the first principal components of the cells' log counts."""
    components = log_count_components(*counts_of(source, cell_ids), COMPONENTS)
    return {f"PCA({components.shape[1]}) of log counts": components}


def compare_accuracies(
    embedded: Embedded, columns: Sequence[str], source: CountSource | None
) -> dict[str, dict[str, LabelAccuracy]]:
    """Measures how well embeddings, and components of the counts, separate labels.

    Args:
      embedded: cells with their embeddings, of which the first layer is taken.
      columns: obs columns; those of numbers are passed over.
      source: raw counts of the cells, or None.

    Returns:
      Column -> name of a representation -> its accuracy, of at most 20,000 cells drawn at random.
    """
    labels = [name for name in columns if not is_number(embedded.table[name])]
    if not labels:
        return {}
    drawn = draw_rows(len(embedded.table), MAX_DRAWN_CELLS)
    obs = embedded.table.iloc[drawn]
    representations = {KEY: np.asarray(embedded.rows[drawn, 0])}
    if source is not None:
        representations |= count_components(source, obs.index)
    return {
        column: {
            name: label_accuracy(features, obs[column])
            for name, features in representations.items()
        }
        for column in labels
    }


def describe_accuracies(accuracies: dict[str, dict[str, LabelAccuracy]]) -> list[str]:
    """Returns `compare_accuracies` as lines for the user."""
    lines = []
    for column, results in accuracies.items():
        first = next(iter(results.values()))
        lines.append(
            f"{column}: accuracy of {NEIGHBOURS} nearest neighbours in {FOLDS} folds, "
            f"{first.cells:,} cells of {first.classes} labels ({first.left_out:,} left out: no "
            "label, or too rare a one)"
        )
        for name, result in results.items():
            lines.append(f"  {name:<26} {result.accuracy:.3f}   (shuffled {result.shuffled:.3f})")
        lines.append(f"  {'chance: commonest label':<26} {first.majority:.3f}")
    return lines


def conclude_accuracies(accuracies: dict[str, dict[str, LabelAccuracy]]) -> list[str]:
    """Returns a sentence for each column of `compare_accuracies` on what to conclude.

    Accuracies are level where they differ by less than two standard errors of their difference.
    """
    return [_conclude(column, results) for column, results in accuracies.items()]


def _conclude(column: str, results: dict[str, LabelAccuracy]) -> str:
    found = results[KEY]
    text = (
        f"{column}: nearest neighbours among the embeddings name it right for "
        f"{found.accuracy:.1%} of {found.cells:,} cells"
    )
    others = [(name, each.accuracy) for name, each in results.items() if name != KEY]
    chance = max(found.majority, found.shuffled)
    if found.accuracy <= chance + _two_errors(found.accuracy, chance, found.cells):
        return f"{text}, no more than by chance ({chance:.1%}): they tell nothing of {column}."
    if not others:
        return f"{text} (by chance {chance:.1%}); what the counts alone give was not measured."
    name, other = others[0]
    room = _two_errors(found.accuracy, other, found.cells)
    if found.accuracy < other - room:
        return (
            f"{text}, but {name} for {other:.1%}: for {column} the counts tell more than these "
            "embeddings; a model trained longer, or on more cells, may do better."
        )
    if found.accuracy > other + room:
        return f"{text}, {name} for {other:.1%}: the model adds to what the counts tell of it."
    return f"{text}, {name} for {other:.1%}: the model adds nothing to what the counts tell of it."


def _two_errors(first: float, second: float, cells: int) -> float:
    return 2 * float(np.sqrt((first * (1 - first) + second * (1 - second)) / cells))


def accuracy_table(accuracies: dict[str, dict[str, LabelAccuracy]]) -> pd.DataFrame:
    """Returns `compare_accuracies` as a table, a row for each column and representation."""
    return pd.DataFrame(
        {"column": column, "representation": name, **result._asdict()}
        for column, results in accuracies.items()
        for name, result in results.items()
    )


def compare_quality(
    embedder: Embedder,
    embedded: Embedded,
    columns: Iterable[str],
    batch_key: str,
    source: CountSource | None,
) -> dict[str, pd.DataFrame]:
    """Measures embeddings beside a random model's and components of the counts.

    Args:
      embedder: that made the embeddings; the random model is run in the same way.
      embedded: cells with their embeddings, of which the first layer is taken.
      columns: obs columns.
      batch_key: obs column of batches, "" for none.
      source: raw counts of the cells, or None.

    Returns:
      Column -> table of `measure_quality`, of at most 5,000 cells drawn at random.
    """
    drawn = draw_rows(len(embedded.table), MAX_MEASURED_CELLS)
    obs = embedded.table.iloc[drawn]
    representations = {
        MODEL: np.asarray(embedded.rows[drawn, 0]),
        RANDOM: _random_embeddings(embedder, drawn),
    }
    if source is not None:
        representations |= count_components(source, obs.index)
    return {column: measure_quality(representations, obs, column, batch_key) for column in columns}


def _random_embeddings(embedder: Embedder, drawn: np.ndarray) -> np.ndarray:
    random = Embedder(
        random_model(embedder.model),
        ChosenCells(embedder.cells, drawn, {}),
        embedder.pass_.mode,
        embedder.layers[0],
        embedder.pass_.runtime,
        devices=list(embedder.pass_.mesh.devices.flat),
    )
    with random.progress() as progress:
        return random.rows(0, len(drawn), progress)[:, 0]
