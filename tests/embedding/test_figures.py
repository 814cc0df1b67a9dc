"""Figures of embeddings: what is drawn where, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.embedder import Embedded
from geneformer_jax.embedding.figures import (
    cell_heatmap_figure,
    commonest_genes,
    cosine_similarity,
    draw_genes,
    gene_similarity_figure,
    quality_figure,
)


def two_groups() -> tuple[np.ndarray, pd.Series]:
    """Cells of two classes in turn, far apart; one without a class."""
    rng = np.random.default_rng(0)
    kinds = pd.Series(["a", "b"] * 6, name="kind").astype("object")
    vectors = rng.normal(size=(12, 5)) + np.where(kinds == "a", 9.0, -9.0)[:, None]
    kinds[11] = None
    return vectors, kinds


def test_heat_map_puts_cells_of_a_class_beside_each_other():
    vectors, kinds = two_groups()
    figure = cell_heatmap_figure(vectors, kinds, "twelve cells")
    _, strip, picture = figure.axes[:3]
    codes = np.asarray(strip.images[0].get_array()).ravel()
    # The cell without a class (code 2) stands among those of b.
    assert sorted(codes) == [0] * 6 + [1] * 5 + [2]
    assert (np.diff((codes == 0).astype(int)) != 0).sum() == 1
    drawn = np.asarray(picture.images[0].get_array())
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(drawn.std(axis=0), 1)
    # Each row of the picture is the scaled cell whose class the strip shows.
    assert (np.sign(drawn.mean(axis=1)) == np.where(codes == 0, 1, -1)).all()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a (6)", "b (5)", "no value (1)"]


def test_dendrogram_joins_the_rows_it_stands_beside():
    vectors, kinds = two_groups()
    tree, strip = cell_heatmap_figure(vectors, kinds).axes[:2]
    (lines,) = (each for each in tree.collections if isinstance(each, LineCollection))
    segments = np.array(lines.get_segments())
    assert len(segments) == 11, "one join for each cell but one"
    leaves = sorted(segments[..., 1][segments[..., 0] == 0])
    np.testing.assert_allclose(leaves, np.arange(12))
    # The last join is between the two classes.
    last = segments[segments[..., 0].max(axis=1).argmax()]
    border = (np.flatnonzero(np.diff(np.asarray(strip.images[0].get_array()).ravel() == 0)) + 0.5)[
        0
    ]
    assert last[:, 1].min() < border < last[:, 1].max()
    assert tree.get_ylim() == strip.get_ylim()


def test_heat_maps_that_nobody_could_read_are_refused():
    with pytest.raises(InputError, match="13 different values"):
        cell_heatmap_figure(np.eye(13), pd.Series([f"type {i}" for i in range(13)], name="kind"))
    with pytest.raises(InputError, match="at least 3 cells"):
        cell_heatmap_figure(np.eye(2), pd.Series(["a", "b"]))


def test_cosines_are_those_of_each_pair():
    vectors = np.random.default_rng(1).normal(size=(4, 6))
    for i in range(4):
        for j in range(4):
            expected = (
                vectors[i] @ vectors[j] / np.sqrt((vectors[i] ** 2).sum() * (vectors[j] ** 2).sum())
            )
            assert cosine_similarity(vectors)[i, j] == pytest.approx(expected)


def test_similar_genes_stand_beside_each_other_under_their_names():
    vectors = np.array([[1, 0.0], [0, 1], [1, 0.1], [0.1, 1]])
    figure = gene_similarity_figure(vectors, ["A", "B", "C", "D"])
    axes = figure.axes[1]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert {frozenset(names[:2]), frozenset(names[2:])} == {frozenset("AC"), frozenset("BD")}
    drawn = np.asarray(axes.images[0].get_array())
    row, column = names.index("A"), names.index("D")
    assert drawn[row, column] == pytest.approx(0.1 / np.sqrt(1.01))
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    with pytest.raises(InputError, match="takes 2 to 120"):
        gene_similarity_figure(vectors[:1], ["A"])


def test_the_commonest_genes_come_first_and_are_genes():
    table = pd.DataFrame(
        {"symbol": ["<cls>", "TTN", "", "GATA4"], "n_cells": [99, 3, 8, 5]},
        index=["<cls>", "ENSG1", "ENSG2", "ENSG3"],
    )
    assert commonest_genes(table).tolist() == [2, 3, 1]
    vectors = np.random.default_rng(0).normal(size=(4, 1, 5)).astype(np.float32)
    drawing = draw_genes(Embedded(vectors, table, (-1,)), np.array([1, 2, 3]), named=True)
    labels = {text.get_text() for text in drawing.figure.axes[1].get_xticklabels()}
    assert labels == {"TTN", "ENSG2", "GATA4"}


def test_quality_is_drawn_where_it_is():
    table = pd.DataFrame({"NMI": [0.2, 0.7], "ARI": [-0.1, 0.5]}, index=["model", "PCA"])
    axes = quality_figure(table).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_array_equal(lines["model"].get_xdata(), [0.2, -0.1])
    np.testing.assert_array_equal(lines["PCA"].get_xdata(), [0.7, 0.5])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["NMI", "ARI"]
    assert axes.get_xlim()[0] <= -0.1
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"model", "PCA"}
