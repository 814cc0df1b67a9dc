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
from geneformer_jax.reporting.figures import (
    MISSING_COLOUR,
    PALETTE,
    STYLE,
    Drawing,
    categories,
    new_figure,
    umap_figure,
    umap_positions,
)

COMMONEST_GENES = 40
MIN_GENES, _MAX_GENES = 2, 120
_Z_LIMIT = 2.5

UMAP_KEY = "X_umap"
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
        image = axes[2].imshow(scaled[np.ix_(rows, columns)], aspect="auto", cmap="RdBu_r",
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
    apart = np.clip(1 - similarity, 0, None)
    tree = hierarchy.linkage(apart[np.triu_indices(len(apart), 1)], "average")
    order = hierarchy.leaves_list(tree)
    side = max(5.0, 0.2 * len(names) + 2.0)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(side + 2.2, side)
        trunk, axes = figure.subplots(1, 2, width_ratios=(1, 6))
        _draw_tree(trunk, tree)
        trunk.axis("off")
        image = axes.imshow(similarity[np.ix_(order, order)], cmap="viridis", vmax=1, aspect="auto",
                            interpolation="none")  # fmt: skip
        ticks, shown = range(len(names)), [names[i] for i in order]
        axes.set_xticks(ticks, shown, rotation=90, fontsize=8, fontstyle="italic")
        axes.set_yticks(ticks, shown, fontsize=8, fontstyle="italic")
        axes.yaxis.tick_right()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.6, pad=0.02)
        figure.suptitle(title)
    return figure


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
                      color=PALETTE[(0, 8, 11, 2, 9, 1, 10, 7)[i % 8]], label=name, alpha=0.9,
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
    return Drawing(f"quality_{slug(column)}", quality_figure(table, title), caption)


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
        )
        for each in values
    ]
    return drawings, positions if whole else None


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
    return Drawing("gene_similarity", figure, "Cosine of the genes' mean embeddings, clustered.")
