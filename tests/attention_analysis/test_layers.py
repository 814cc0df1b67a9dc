"""What is stated of layers, on planted differences."""

import numpy as np
import pytest

from geneformer_jax.attention_analysis import layers
from geneformer_jax.attention_analysis.sums import CellMeasures


def measures(
    thirds: dict[str, tuple[float, float, float]], cells: int = 200, noise: float = 0.05
) -> CellMeasures:
    """Six layers whose thirds have the given means; two heads."""
    rng = np.random.default_rng(0)
    made = {}
    for name in CellMeasures._fields:
        means = np.repeat(thirds[name], 2)
        values = means[:, None] + rng.normal(0, noise, (cells, 6, 2))
        made[name] = values[..., 0] if name == "diversity" else values
    return CellMeasures(**made)


def test_verdicts_follow_what_was_planted():
    holding = {"diversity": (0.6, 0.3, 0.3), "breadth": (0.4, 0.6, 0.5), "top": (0.1, 0.2, 0.5)}
    failing = {"diversity": (0.3, 0.3, 0.6), "breadth": (0.6, 0.4, 0.3), "top": (0.4, 0.2, 0.3)}
    # Larger by just about what is needed, so that the interval lies on both sides of it.
    unclear = {"diversity": (0.52, 0.3, 0.5), "breadth": (0.5, 0.52, 0.3), "top": (0.1, 0.5, 0.52)}
    wanted = {"A": holding, "B": failing, "C": unclear}
    table = layers.verdicts(
        {name: layers.compare_thirds(measures(thirds)) for name, thirds in wanted.items()}
    )
    assert table["A"].eq(layers.HOLDS).all()
    assert table["B"].eq(layers.FAILS).all()
    assert table["C"].eq(layers.UNDECIDED).all()
    assert table["min_difference"].eq(layers.MIN_DIFFERENCE).all()
    shallow = CellMeasures(np.zeros((9, 2)), np.zeros((9, 2, 2)), np.zeros((9, 2, 2)))
    only = layers.verdicts({"D": layers.compare_thirds(shallow)})
    assert only["D"].eq(layers.TOO_FEW).all()
    lonely = measures(holding)._replace(diversity=np.full((200, 6), np.nan))
    alone = layers.verdicts({"E": layers.compare_thirds(lonely)})
    assert alone["E"].tolist() == [layers.ONE_HEAD, layers.HOLDS, layers.HOLDS]


def test_differences_too_small_to_matter_do_not_hold_however_sure():
    surely = {
        "diversity": (0.505, 0.5, 0.5),
        "breadth": (0.9, 0.9005, 0.9),
        "top": (0.1, 0.1, 0.101),
    }
    thirds = layers.compare_thirds(measures(surely, noise=1e-4))
    assert (thirds["low"] > 0).all(), "significant"
    table = layers.verdicts({"model": thirds})
    assert table["model"].eq(layers.FAILS).all()
    assert layers.holding(table, "model") == []


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(200):
        low, high = layers.bootstrap_interval(rng.normal(1, 1, (60, 1)), seed=draw)
        covered += low[0] <= 1 <= high[0]
    assert 0.90 <= covered / 200 <= 0.985
    assert np.isnan(layers.bootstrap_interval(np.ones((1, 3)))).all()


def test_layers_are_means_over_cells_and_heads():
    values = measures(dict.fromkeys(CellMeasures._fields, (0.1, 0.2, 0.3)))
    table = layers.layer_table(values).set_index(["measure", "head", "layer"])
    assert table.loc[("top", 0, 4), "mean"] == pytest.approx(values.top[:, 3].mean())
    assert table.loc[("breadth", 2, 1), "mean"] == pytest.approx(values.breadth[:, 0, 1].mean())
    assert table.loc[("diversity", 0, 6), "mean"] == pytest.approx(values.diversity[:, 5].mean())
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] < table["high"]).all()
