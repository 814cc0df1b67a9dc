"""What the embed door says and draws of its embeddings."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_jax.analysis.embedder import KEY, Embedded, Embedder
from geneformer_jax.analysis.embedding_figures import (
    cell_heatmap_figure,
    choose_genes,
    gene_similarity_figure,
    quality_figure,
)
from geneformer_jax.analysis.embedding_files import table_path
from geneformer_jax.analysis.embedding_quality import MODEL, MOST_CELLS, RANDOM, measure_quality
from geneformer_jax.analysis.label_accuracy import (
    FOLDS,
    NEIGHBOURS,
    LabelAccuracy,
    label_accuracy,
    log_count_components,
)
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.inference.cells import ChosenCells, is_number
from geneformer_jax.inference.counts import counts_of
from geneformer_jax.inference.random_control import random_model
from geneformer_jax.reporting.figures import (
    PALETTE,
    Drawing,
    save_figure,
    umap_figure,
    umap_positions,
)
from geneformer_jax.reporting.html import Report

UMAP_KEY = "X_umap"
COMPONENTS = 50
# Nearest neighbours and layouts of more cells take long and say no more.
_MOST_CELLS = 20_000
_MOST_HEATMAP_CELLS = 1_000


class Page:
    """The report of a run, and the files that lie beside it.

    Attributes:
      report: to add to.
    """

    def __init__(self, embedder: Embedder, embedded: Embedded, output: Path):
        """Begins the report of `output`."""
        layers = ", ".join(map(str, embedded.layers))
        self.report = Report(
            "Embeddings",
            f"{len(embedded.table):,} rows ({embedder.pass_.mode}), layer {layers} of "
            f"{embedder.model.source}. {embedder.throughput.describe()}.",
        )
        self._output = output
        self._files = [output, table_path(output)] if output.suffix == ".npy" else [output]

    def path(self, ending: str) -> Path:
        """A file beside the output, with another ending."""
        return self._output.with_name(self._output.stem + ending)

    def wrote(self, path: Path) -> None:
        """Tells of a written file."""
        self._files.append(path)
        print(f"written: {path}", flush=True)

    def draw(self, drawing: Drawing) -> None:
        """Writes a figure as PNG and PDF, and shows it."""
        for path in save_figure(drawing.figure, self.path(f"_{drawing.name}")):
            self.wrote(path)
        self.report.figure(drawing.figure, drawing.caption)

    def write(self, story: Mapping[str, Any]) -> None:
        """Writes it, with its story and links to the files."""
        self.report.files([*self._files, self.path(".provenance.json")])
        self.report.provenance(story)
        self.report.write(self.path(".report.html"))


def draw_rows(rows: int, most: int) -> np.ndarray:
    """Returns at most `most` row numbers, ascending, drawn at random but always the same."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def count_components(source: CountSource, cell_ids: pd.Index) -> dict[str, np.ndarray]:
    """Returns the name and values of the first principal components of the cells' log counts."""
    components = log_count_components(*counts_of(source, cell_ids), COMPONENTS)
    return {f"PCA({components.shape[1]}) of log counts": components}


def compare_accuracies(
    embedded: Embedded, columns: Sequence[str], source: CountSource | None
) -> dict[str, dict[str, LabelAccuracy]]:
    """Measures how well embeddings, and components of the counts, tell labels apart.

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
    drawn = draw_rows(len(embedded.table), _MOST_CELLS)
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
    batch: str,
    source: CountSource | None,
) -> dict[str, pd.DataFrame]:
    """Measures embeddings beside a random model's and components of the counts.

    Args:
      embedder: that made the embeddings; the random model is run in the same way.
      embedded: cells with their embeddings, of which the first layer is taken.
      columns: obs columns.
      batch: obs column of batches, "" for none.
      source: raw counts of the cells, or None.

    Returns:
      Column -> table of `measure_quality`, of at most 5,000 cells drawn at random.
    """
    drawn = draw_rows(len(embedded.table), MOST_CELLS)
    obs = embedded.table.iloc[drawn]
    representations = {
        MODEL: np.asarray(embedded.rows[drawn, 0]),
        RANDOM: _random_embeddings(embedder, drawn),
    }
    if source is not None:
        representations |= count_components(source, obs.index)
    return {column: measure_quality(representations, obs, column, batch) for column in columns}


def draw_quality(table: pd.DataFrame, column: str, cells: int) -> Drawing:
    """Draws one table of `compare_quality`, made of so many cells at hand."""
    title = f"How well {column} shows, {min(cells, MOST_CELLS):,} cells"
    caption = f"How well the representations show {column}."
    return Drawing(f"quality_{_as_name(column)}", quality_figure(table, title), caption)


def draw_umaps(
    embedded: Embedded, columns: Sequence[str], lengths: np.ndarray
) -> tuple[list[Drawing], np.ndarray | None]:
    """Draws a UMAP for each column, or one coloured by the cells' tokens if there is none.

    Args:
      embedded: cells with their embeddings, of which the first layer is taken.
      columns: obs columns that colour the cells.
      lengths: [cells] tokens of each cell.

    Returns:
      (a drawing of each; the layout [cells, 2], or None where only 20,000 cells of more are drawn).
    """
    drawn = draw_rows(len(embedded.table), _MOST_CELLS)
    whole = len(drawn) == len(embedded.table)
    positions = umap_positions(np.asarray(embedded.rows[drawn, 0]))
    title = "Cell embeddings" if whole else f"Cell embeddings, {len(drawn):,} cells drawn at random"
    values = [embedded.table[column].iloc[drawn] for column in columns]
    values = values or [pd.Series(np.asarray(lengths)[drawn], name="tokens")]
    drawings = [
        Drawing(
            f"umap_{_as_name(each.name)}",
            umap_figure(positions, each, title),
            f"UMAP of the embeddings, cells coloured by {each.name}. Distances between far groups "
            "mean little.",
        )
        for each in values
    ]
    return drawings, positions if whole else None


def draw_heatmaps(embedded: Embedded, columns: Sequence[str]) -> list[Drawing]:
    """Draws a clustered heat map for each column of at most 12 labels."""
    drawn = draw_rows(len(embedded.table), _MOST_HEATMAP_CELLS)
    if len(drawn) < 3:
        return []
    title = "Cell embeddings"
    if len(drawn) < len(embedded.table):
        title += f", {len(drawn):,} of {len(embedded.table):,} cells drawn at random"
    drawings: list[Drawing] = []
    for column in columns:
        labels = embedded.table[column].iloc[drawn]
        if not is_number(labels) and labels.nunique() <= len(PALETTE):
            figure = cell_heatmap_figure(np.asarray(embedded.rows[drawn, 0]), labels, title)
            caption = f"Embeddings of cells, clustered; the strip tells their {column}."
            drawings.append(Drawing(f"heatmap_{_as_name(column)}", figure, caption))
    return drawings


def draw_genes(embedded: Embedded, wanted: Sequence[str]) -> Drawing:
    """Draws the similarity of named genes, or of the commonest."""
    rows, names = choose_genes(embedded.table, wanted)
    which = "" if wanted else f", the {len(names)} genes of most cells"
    figure = gene_similarity_figure(
        np.asarray(embedded.rows[rows, 0]), names, f"Similarity of gene embeddings{which}"
    )
    return Drawing("gene_similarity", figure, "Cosine of the genes' mean embeddings, clustered.")


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


def _as_name(text: object) -> str:
    """A text as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in str(text))
