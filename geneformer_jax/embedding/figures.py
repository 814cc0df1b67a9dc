"""Figures of embeddings: heat map of cells, similarity of genes, quality beside baselines."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.cluster import hierarchy

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import slug
from geneformer_jax.embedding.comparison import MAX_DRAWN_CELLS, draw_rows
from geneformer_jax.embedding.embedder import Embedded
from geneformer_jax.embedding.quality import MAX_MEASURED_CELLS
from geneformer_jax.inference.filters import is_number
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import (
    DIVERGING,
    MAIN,
    MISSING_COLOUR,
    PALETTE,
    SEQUENTIAL,
    STYLE,
    Drawing,
    categories,
    new_figure,
    umap_figure,
    umap_positions,
)
from geneformer_jax.reporting.tables import MAX_ROWS

COMMONEST_GENES = 40
MIN_GENES, _MAX_GENES = 2, 120
_Z_LIMIT = 2.5
_NEAREST = 5
_ROWS_AT_ONCE = 1024

UMAP_KEY = "X_umap"
# Tables of a report whose rows figures show.
CELLS, GENES = "cells", "genes"
_MAX_HEATMAP_CELLS = 1_000


def cell_heatmap_figure(vectors: np.ndarray, labels: pd.Series, title: str = "") -> Figure:
    """Draws cells by dimensions, both clustered, with the dendrogram and the class of each cell.

    As in the original's heat map, cells and dimensions are put in the order of average-linkage
    clustering by Euclidean distance; each dimension is scaled to mean 0 and standard deviation 1.

    Args:
      vectors: [cells, D] embeddings of at least 3 cells; a thousand is as much as can be seen.
      labels: [cells] classes, missing where unknown; at most 12 different ones.
      title: above the figure.

    Raises:
      InputError: too few cells or too many classes.
    """
    if len(vectors) < 3:
        raise InputError(f"a heat map needs at least 3 cells, but there are {len(vectors)}")
    names, codes = _classes(labels)
    spread = vectors.std(axis=0)
    scaled = (vectors - vectors.mean(axis=0)) / np.where(spread > 0, spread, 1)
    tree = hierarchy.linkage(vectors, "average")
    rows = hierarchy.leaves_list(tree)
    columns = hierarchy.leaves_list(hierarchy.linkage(scaled.T, "average"))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(9.6, 6.0)
        axes = figure.subplots(1, 3, width_ratios=(1.3, 0.22, 6))
        _draw_tree(axes[0], tree)
        axes[0].set_ylabel(f"{len(vectors):,} cells", labelpad=8)
        colours = ListedColormap([*PALETTE[: len(names)], MISSING_COLOUR])
        strip = np.where(codes < 0, len(names), codes)[rows, None]
        axes[1].imshow(strip, aspect="auto", cmap=colours, vmin=-0.5, vmax=len(names) + 0.5,
                       interpolation="none")  # fmt: skip
        image = axes[2].imshow(scaled[np.ix_(rows, columns)], aspect="auto", cmap=DIVERGING,
                               vmin=-_Z_LIMIT, vmax=_Z_LIMIT, interpolation="none")  # fmt: skip
        axes[2].set_xlabel(f"{vectors.shape[1]:,} dimensions of the embedding, clustered")
        for each in axes:
            each.set(xticks=[], yticks=[])
            each.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes[2], label="standard deviations from the mean", shrink=0.6)
        _class_legend(figure, names, codes, str(labels.name or ""))
        figure.suptitle(title)
    return figure


def check_number(genes: int, unknown: Sequence[str] = ()) -> None:
    """Raises InputError for too few or too many genes of a similarity figure.

    Args:
      genes: number of them.
      unknown: named genes that the vocabulary lacks.
    """
    if not MIN_GENES <= genes <= _MAX_GENES:
        lacking = f", without {', '.join(unknown)}, not in the vocabulary" if unknown else ""
        raise InputError(
            f"a similarity figure takes {MIN_GENES} to {_MAX_GENES} genes, and {genes} are "
            f"named{lacking}; name others"
        )


def gene_similarity_figure(vectors: np.ndarray, names: Sequence[str], title: str = "") -> Figure:
    """Draws the cosine similarity of gene embeddings, similar genes beside each other.

    Args:
      vectors: [genes, D], 2 to 120 of them.
      names: [genes] what to write beside each.
      title: above the figure.

    Raises:
      InputError: too few or too many genes.
    """
    check_number(len(vectors))
    similarity = cosine_similarity(vectors)
    tree = _similarity_tree(similarity)
    order = hierarchy.leaves_list(tree)
    side = max(5.0, 0.2 * len(names) + 2.0)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(side + 2.2, side)
        trunk, axes = figure.subplots(1, 2, width_ratios=(1, 6))
        _draw_tree(trunk, tree)
        trunk.axis("off")
        image = axes.imshow(similarity[np.ix_(order, order)], cmap=SEQUENTIAL, vmax=1,
                            aspect="auto", interpolation="none")  # fmt: skip
        ticks, shown = range(len(names)), [names[i] for i in order]
        axes.set_xticks(ticks, shown, rotation=90, fontsize=8, fontstyle="italic")
        axes.set_yticks(ticks, shown, fontsize=8, fontstyle="italic")
        axes.yaxis.tick_right()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.6, pad=0.02)
        figure.suptitle(title)
    return figure


def _similarity_tree(similarity: np.ndarray) -> np.ndarray:
    apart = np.clip(1 - similarity, 0, None)
    return hierarchy.linkage(apart[np.triu_indices(len(apart), 1)], "average")


def quality_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Draws measures of quality of several representations, one line of dots for each measure.

    Args:
      table: [representations, measures], each between 0 (bad) and 1 (good).
      title: above the axes.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.4, 1.4 + 0.42 * table.shape[1])
        axes = figure.add_subplot()
        places = np.arange(table.shape[1])
        for place in places:
            axes.axhline(place, color="#e3e6ec", lw=1, zorder=0)
        markers = ("o", "D", "s", "^", "v", "P", "X", "*")
        for i, (name, values) in enumerate(table.iterrows()):
            axes.plot(values, places, ls="", marker=markers[i % len(markers)], ms=9,
                      color=PALETTE[i % len(PALETTE)], label=name, alpha=0.9,
                      clip_on=False)  # fmt: skip
        axes.set_yticks(places, table.columns)
        axes.invert_yaxis()
        low = float(np.nanmin(table.to_numpy()))
        axes.set(
            xlim=(min(0.0, np.floor(low * 10) / 10), 1), xlabel="worse  →  better", title=title
        )
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def cosine_similarity(vectors: np.ndarray) -> np.ndarray:
    """Returns float64 [rows, rows], the cosine of the angle between each two rows."""
    vectors = np.asarray(vectors, np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    return np.clip(unit @ unit.T, -1, 1)


def nearest_genes(vectors: np.ndarray, names: list[str]) -> tuple[pd.Series, np.ndarray]:
    """Finds the genes whose embeddings have the highest cosine with that of each gene.

    Args:
      vectors: [genes, D].
      names: [genes].

    Returns:
      ([genes] names of the five nearest, nearest first; [genes] cosine of the nearest, NaN where
      there is no other gene).
    """
    vectors = np.asarray(vectors, np.float32)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    kept = min(_NEAREST, len(names) - 1)
    words: list[str] = []
    cosines: list[float] = []
    for first in range(0, len(unit), _ROWS_AT_ONCE):
        similarity = unit[first : first + _ROWS_AT_ONCE] @ unit.T
        rows = np.arange(len(similarity))
        similarity[rows, first + rows] = -np.inf
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :kept]
        words += [", ".join(names[i] for i in row) for row in order]
        cosines += similarity[rows, order[:, 0]].tolist() if kept else [np.nan] * len(rows)
    return pd.Series(words), np.array(cosines)


def commonest_genes(table: pd.DataFrame) -> np.ndarray:
    """Returns int64 rows of the 40 genes that most cells have; `table` as of mode "gene"."""
    is_gene = ~table.index.str.startswith("<")
    order = np.argsort(-table["n_cells"].to_numpy(), kind="stable")
    return order[is_gene[order]][:COMMONEST_GENES]


def _classes(labels: pd.Series) -> tuple[list[str], np.ndarray]:
    """Returns (names, class of each cell), in the order and so the colours of the UMAP."""
    codes, names = categories(labels)
    if len(names) > len(PALETTE):
        raise InputError(
            f"column {labels.name} has {len(names):,} different values, but a heat map can show "
            f"{len(PALETTE)}; name another column"
        )
    return list(names), codes


def _draw_tree(axes: Axes, tree: np.ndarray) -> None:
    """Draws a dendrogram whose leaves are the rows of the picture on its right."""
    drawn = hierarchy.dendrogram(tree, no_plot=True)
    # scipy puts leaf i at 10 i + 5.
    places, heights = (np.array(drawn[name]) for name in ("icoord", "dcoord"))
    lines = np.stack([heights, places / 10 - 0.5], axis=-1)
    axes.add_collection(LineCollection(lines, colors="#444444", linewidths=0.6))
    leaves = len(tree) + 1
    axes.set(xlim=(heights.max() * 1.02, 0), ylim=(leaves - 0.5, -0.5))


def _class_legend(figure: Figure, names: list[str], codes: np.ndarray, title: str) -> None:
    shown = [(name, PALETTE[i], int((codes == i).sum())) for i, name in enumerate(names)]
    if (codes < 0).any():
        shown.append(("no value", MISSING_COLOUR, int((codes < 0).sum())))
    handles = [
        Line2D([], [], ls="", marker="s", ms=8, mfc=colour, mec="none", label=f"{name} ({n:,})")
        for name, colour, n in shown
    ]
    figure.legend(handles=handles, title=title, alignment="left", loc="outside right center")


def draw_quality(table: pd.DataFrame, column: str, cells: int) -> Drawing:
    """Draws one table of `compare_quality`, of a number of cells."""
    title = f"How well {column} shows, {min(cells, MAX_MEASURED_CELLS):,} cells"
    caption = f"How well the representations show {column}."
    scores = table.rename_axis("representation").rename_axis("measure", axis=1).stack()
    chart = charts.dots(
        scores.rename("score").reset_index(), "score", "measure", "worse  →  better",
        series="representation",
    )  # fmt: skip
    return Drawing(f"quality_{slug(column)}", quality_figure(table, title), caption, chart)


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
    drawn = draw_rows(len(embedded.table), MAX_DRAWN_CELLS)
    whole = len(drawn) == len(embedded.table)
    positions = umap_positions(np.asarray(embedded.rows[drawn, 0]))
    title = "Cell embeddings" if whole else f"Cell embeddings, {len(drawn):,} cells drawn at random"
    values = [embedded.table[column].iloc[drawn] for column in columns]
    values = values or [pd.Series(np.asarray(lengths)[drawn], name="tokens")]
    drawings = [
        Drawing(
            f"umap_{slug(each.name)}",
            umap_figure(positions, each, title),
            f"UMAP of the embeddings, cells coloured by {each.name}. Distances between far groups "
            "mean little.",
            charts.embedding_map(positions, each, list(embedded.table.index[drawn])),
            CELLS,
        )
        for each in values
    ]
    return drawings, positions if whole else None


def drawn_cells(embedded: Embedded, columns: Sequence[str], lengths: np.ndarray) -> pd.DataFrame:
    """Returns the cells that `draw_umaps` draws: cell, the columns, tokens."""
    drawn = draw_rows(len(embedded.table), MAX_DRAWN_CELLS)
    table = embedded.table.iloc[drawn]
    shown = pd.DataFrame({"cell": table.index.astype(str)})
    for column in columns:
        shown[column] = table[column].to_numpy()
    return shown.assign(tokens=np.asarray(lengths)[drawn])


def draw_heatmaps(embedded: Embedded, columns: Sequence[str]) -> list[Drawing]:
    """Draws a clustered heat map for each column of at most 12 labels."""
    drawn = draw_rows(len(embedded.table), _MAX_HEATMAP_CELLS)
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
            caption = f"Embeddings of cells, clustered; the strip shows their {column}."
            drawings.append(Drawing(f"heatmap_{slug(column)}", figure, caption))
    return drawings


def draw_genes(embedded: Embedded, rows: np.ndarray, named: bool) -> Drawing:
    """Draws the similarity of genes, which were named or else are the commonest."""
    table = embedded.table.iloc[rows]
    names = [symbol or gene for gene, symbol in zip(table.index, table["symbol"], strict=True)]
    which = "" if named else f", the {len(names)} genes of most cells"
    figure = gene_similarity_figure(
        np.asarray(embedded.rows[rows, 0]), names, f"Similarity of gene embeddings{which}"
    )
    vectors = np.asarray(embedded.rows[rows, 0])
    order = hierarchy.leaves_list(_similarity_tree(cosine_similarity(vectors)))
    similarity = cosine_similarity(vectors[order])
    shown = [names[i] for i in order]
    pairs = (
        pd.DataFrame(similarity, shown, shown).rename_axis("gene").rename_axis("other gene", axis=1)
    )
    chart = charts.heat_map(
        pairs.stack().rename("cosine").reset_index(), ("other gene", "gene"), "cosine",
        {"cosine": "cosine similarity"},
    )  # fmt: skip
    caption = "Cosine of the genes' mean embeddings, clustered."
    return Drawing("gene_similarity", figure, caption, chart)


def gene_table(embedded: Embedded) -> pd.DataFrame:
    """Returns the genes that most cells have, at most 20,000, and which are nearest to each.

    Columns: symbol, gene_id, n_cells, spread (of the first layer), nearest_genes, nearest_cosine.
    """
    table = embedded.table
    order = np.argsort(-table["n_cells"].to_numpy(), kind="stable")
    order = order[~table.index.str.startswith("<")[order]][:MAX_ROWS]
    genes = table.iloc[order]
    names = [symbol or gene for gene, symbol in zip(genes.index, genes["symbol"], strict=True)]
    spread = next(name for name in table if name.startswith("spread"))
    nearest, cosines = nearest_genes(embedded.rows[order, 0], names)
    return pd.DataFrame({
        "symbol": genes["symbol"].to_numpy(), "gene_id": genes.index.astype(str),
        "n_cells": genes["n_cells"].to_numpy(), "spread": genes[spread].to_numpy(),
        "nearest_genes": nearest.to_numpy(), "nearest_cosine": cosines,
    })  # fmt: skip


def draw_spread(genes: pd.DataFrame) -> Drawing:
    """Draws the spread of genes' states against the number of their cells; see `gene_table`."""
    words = {"n_cells": "cells with the gene", "spread": "spread of its states over cells"}
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 4.2)
        axes = figure.add_subplot()
        axes.scatter(genes["n_cells"], genes["spread"], s=8, c=MAIN, lw=0, rasterized=True)
        axes.set(xlabel=words["n_cells"], ylabel=words["spread"])
    chart = charts.scatter(genes, "n_cells", "spread", words, key="gene_id", name="symbol")
    caption = "How far the states of a gene lie apart in different cells, by the number of cells."
    return Drawing("gene_spread", figure, caption, chart, GENES)
