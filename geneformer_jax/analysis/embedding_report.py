"""What the embed door says and draws of its embeddings."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.analysis.embedding import KEY
from geneformer_jax.analysis.figures import save_figure, umap_figure, umap_positions
from geneformer_jax.analysis.label_accuracy import (
    FOLDS,
    NEIGHBOURS,
    LabelAccuracy,
    counts_of,
    label_accuracy,
    log_count_components,
)
from geneformer_jax.cells.counts import CountSource
from geneformer_jax.common.errors import InputError, did_you_mean

UMAP_KEY = "X_umap"
COMPONENTS = 50
# Nearest neighbours of more cells take long and say no more.
MOST_CELLS = 20_000


def check_columns(obs: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raises InputError if a column is not in `obs`."""
    for column in columns:
        if column not in obs:
            known = ", ".join(map(str, obs.columns)) or "none"
            raise InputError(
                f'the cells have no obs column "{column}"{did_you_mean(column, obs.columns)}; '
                f"they carry {known} (tokenize carries the columns named by --obs)"
            )


def compare_accuracies(
    embedded: ad.AnnData, columns: Sequence[str], source: CountSource | None
) -> dict[str, dict[str, LabelAccuracy]]:
    """Measures how well embeddings, and components of the counts, tell labels apart.

    Args:
      embedded: cells with their embeddings.
      columns: obs columns; those of numbers are passed over.
      source: raw counts of the cells, or None.

    Returns:
      Column -> name of a representation -> its accuracy, of at most 20,000 cells drawn at random.
    """
    labels = [name for name in columns if not is_number(embedded.obs[name])]
    if not labels:
        return {}
    if embedded.n_obs > MOST_CELLS:
        chosen = np.random.default_rng(0).choice(embedded.n_obs, MOST_CELLS, replace=False)
        embedded = embedded[np.sort(chosen)]
    representations = {KEY: np.asarray(embedded.obsm[KEY])}
    if source is not None:
        components = log_count_components(*counts_of(source, embedded.obs_names), COMPONENTS)
        representations[f"PCA({components.shape[1]}) of log counts"] = components
    return {
        column: {
            name: label_accuracy(features, embedded.obs[column])
            for name, features in representations.items()
        }
        for column in labels
    }


def describe_accuracies(accuracies: dict[str, dict[str, LabelAccuracy]]) -> list[str]:
    """Returns the lines that tell `compare_accuracies`."""
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


def draw_umaps(
    embedded: ad.AnnData, columns: Sequence[str], lengths: np.ndarray, stem: Path
) -> list[Path]:
    """Draws a UMAP for each column, or one coloured by the cells' tokens if there is none.

    The layout is kept in `.obsm["X_umap"]`.

    Args:
      embedded: cells with their embeddings.
      columns: obs columns that colour the cells.
      lengths: [cells] tokens of each cell.
      stem: where to write: stem_umap_<column>.png and .pdf.

    Returns:
      The written files.
    """
    embedded.obsm[UMAP_KEY] = umap_positions(embedded.obsm[KEY])
    values = [embedded.obs[column] for column in columns]
    values = values or [pd.Series(np.asarray(lengths), name="tokens")]
    written = []
    for each in values:
        figure = umap_figure(embedded.obsm[UMAP_KEY], each, "Cell embeddings")
        name = "".join(
            letter if letter.isalnum() or letter in "-_." else "_" for letter in each.name
        )
        written += save_figure(figure, f"{stem}_umap_{name}")
    return written


def is_number(values: pd.Series) -> bool:
    """Whether a column holds numbers and not labels."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
