"""Figures: what is drawn, who can read it, and that it is drawn the same each time."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from geneformer_jax.common.errors import InputError
from geneformer_jax.reporting.figures import (
    MISSING_COLOUR,
    PALETTE,
    loss_curve_figure,
    new_figure,
    picture,
    save_figure,
    umap_figure,
    umap_positions,
)

# Machado, Oliveira and Fernandes (2009): linear-light matrices of complete colour blindness.
EYES = {
    "normal": np.eye(3),
    "protanope": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranope": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def to_lab(linear_rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    relative = np.clip(linear_rgb, 0, 1) @ to_xyz.T / to_xyz.sum(1)
    f = np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def ciede2000(first: np.ndarray, second: np.ndarray) -> float:
    """Sharma, Wu and Dalal (2005), step by step."""
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean_c7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * np.sqrt(mean_c7 / (mean_c7 + 25.0**7))
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = np.arctan2(b1, a1 * stretch), np.arctan2(b2, a2 * stretch)
    turn = (h2 - h1 + np.pi) % (2 * np.pi) - np.pi
    light, chroma, hue = (l1 + l2) / 2, (c1 + c2) / 2, (h1 + turn / 2) % (2 * np.pi)
    t = 1 - 0.17 * np.cos(hue - np.pi / 6) + 0.24 * np.cos(2 * hue)
    t += 0.32 * np.cos(3 * hue + np.radians(6)) - 0.2 * np.cos(4 * hue - np.radians(63))
    parts = (
        (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)),
        (c2 - c1) / (1 + 0.045 * chroma),
        2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * chroma * t),
    )
    blue = np.radians(60) * np.exp(-(((np.degrees(hue) - 275) / 25) ** 2))
    twist = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(blue)
    return float(np.sqrt(sum(part**2 for part in parts) + twist * parts[1] * parts[2]))


def lab_of(eyes: str) -> np.ndarray:
    srgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in PALETTE])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return to_lab(linear @ EYES[eyes].T)


def test_no_two_colours_look_alike():
    # Two pairs of the paper's table 1.
    assert ciede2000((50, 2.6772, -79.7751), (50, 0, -82.7485)) == pytest.approx(2.0425, abs=5e-5)
    assert ciede2000((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619)) == pytest.approx(
        2.0373, abs=5e-5
    )
    colours = lab_of("normal")
    assert min(ciede2000(a, b) for a, b in itertools.combinations(colours, 2)) > 20
    # Neither light nor dark pages swallow one.
    assert 30 < colours[:, 0].min() and colours[:, 0].max() < 90


@pytest.mark.parametrize("eyes", EYES)
def test_all_colours_can_be_told_apart(eyes):
    lab = lab_of(eyes)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)]
    assert min(distances) > 28
    assert len(PALETTE) >= 10


def points_of(figure) -> dict[tuple, np.ndarray]:
    """Colour of each scatter -> its positions."""
    return {
        tuple(np.round(each.get_facecolor()[0][:3], 3)): np.asarray(each.get_offsets())
        for each in figure.axes[0].collections
        if len(each.get_offsets())
    }


def rgb(colour: str) -> tuple:
    return tuple(np.round([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], 3))


def test_umap_figure_puts_each_category_where_its_cells_are():
    positions = np.arange(12, dtype=float).reshape(6, 2)
    kinds = pd.Categorical(["B", "A", None, "B", "A", "B"], ["B", "A"])
    values = pd.Series(kinds, name="kind")
    figure = umap_figure(positions, values, "six cells")
    drawn = points_of(figure)
    np.testing.assert_array_equal(drawn[rgb(PALETTE[0])], positions[[1, 4]])
    np.testing.assert_array_equal(drawn[rgb(PALETTE[1])], positions[[0, 3, 5]])
    np.testing.assert_array_equal(drawn[rgb(MISSING_COLOUR)], positions[[2]])
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["A (2)", "B (3)", "no value (1)"]
    assert axes.get_legend().get_title().get_text() == "kind"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("UMAP 1", "UMAP 2")
    assert axes.get_title() == "six cells"


def test_an_order_of_categories_is_kept_and_empty_ones_are_not_listed():
    stages = pd.Categorical(["early", "late"], ["late", "middle", "early"], ordered=True)
    figure = umap_figure(np.eye(2), pd.Series(stages, name="stage"))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["late (1)", "early (1)"]


def test_categories_beyond_the_palette_get_another_marker():
    values = pd.Series([f"type {i:02d}" for i in range(len(PALETTE) + 1)])
    figure = umap_figure(np.zeros((len(values), 2)), values)
    handles = figure.axes[0].get_legend().legend_handles
    looks = {(handle.get_marker(), handle.get_markerfacecolor()) for handle in handles}
    assert len(looks) == len(values)


def test_numbers_get_a_labelled_colour_bar():
    figure = umap_figure(np.zeros((3, 2)), pd.Series([1.0, np.nan, 3.0], name="n_genes"))
    assert figure.axes[1].get_ylabel() == "n_genes"
    assert len(figure.axes[0].collections[1].get_array()) == 2


def test_too_many_categories_are_refused():
    values = pd.Series([f"cell {i}" for i in range(500)], name="barcode")
    with pytest.raises(InputError, match=r"barcode has 500 .* name another column"):
        umap_figure(np.zeros((500, 2)), values)


def test_values_of_other_cells_are_refused():
    with pytest.raises(InputError, match="2 values for 3 cells"):
        umap_figure(np.zeros((3, 2)), pd.Series(["a", "b"]))


def test_loss_curve_draws_both_losses_and_the_baselines():
    rows = [
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 4.0, "held_out_loss": 4.5},
        {"step": 2, "cells_per_second": 10.0},
    ]
    axes = loss_curve_figure(rows, {"gene frequency": 6.0}).axes[0]
    assert all(tick == int(tick) for tick in axes.get_xticks())
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    np.testing.assert_array_equal(lines["training"], [[1, 5], [2, 4]])
    np.testing.assert_array_equal(lines["held out"], [[2, 4.5]])
    assert set(lines["gene frequency"][:, 1]) == {6.0}
    assert axes.get_xlabel() and axes.get_ylabel()


def test_matplotlib_meets_no_disk(tmp_path, monkeypatch):
    """Where one write of a PDF fails, it ends in an AttributeError that hides what failed."""
    targets, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, to, **how: targets.append(to) or save(self, to, **how)
    )
    save_figure(new_figure(1, 1), tmp_path / "drawn")
    assert [type(each) for each in targets] == [io.BytesIO, io.BytesIO]
    assert (tmp_path / "drawn.pdf").read_bytes() == targets[1].getvalue()


def test_a_saved_figure_is_the_same_file_each_time(tmp_path):
    values = pd.Series(["A", "B"], name="kind")
    written = [
        save_figure(umap_figure(np.eye(2), values), tmp_path / name) for name in ("one", "two")
    ]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert written[0][0].read_bytes().startswith(b"\x89PNG")
    assert written[0][1].read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one.pdf",
        "one.png",
        "two.pdf",
        "two.png",
    ]


def test_labels_of_thousands_of_letters_make_no_huge_pictures():
    sizes = []
    for letters in (10, 2_000):
        figure = Figure()
        figure.subplots().barh(["a" * letters, "b" * letters], [1, 2])
        content = picture(figure, "png")
        sizes.append(max(int.from_bytes(content[at : at + 4]) for at in (16, 20)))
    assert sizes[1] < 5 * sizes[0]


def test_three_cells_make_no_umap():
    with pytest.raises(InputError, match="at least 4 cells"):
        umap_positions(np.zeros((3, 5)))


@pytest.mark.slow
def test_umap_keeps_separate_groups_apart_and_repeats_itself():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(60, 8)) + np.repeat([[0.0], [50.0]], 30, axis=0)
    positions = umap_positions(embeddings)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    np.testing.assert_array_equal(nearest < 30, np.arange(60) < 30)
    np.testing.assert_array_equal(positions, umap_positions(embeddings))
