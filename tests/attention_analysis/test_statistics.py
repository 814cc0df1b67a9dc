"""Statistics of attention, on planted structure and against slow versions."""

import numpy as np
import pytest
from scipy import stats

from geneformer_jax.attention_analysis import statistics
from geneformer_jax.attention_analysis.sums import EVEN_SHARE, AttentionTotals, CellMeasures

GENES, LAYERS, HEADS = 400, 2, 3


def means_of(received: np.ndarray, rank: np.ndarray, expected=None) -> statistics.GeneMeans:
    filled = np.zeros_like(received)
    return statistics.GeneMeans(
        cells=np.full(len(rank), 50),
        rank=rank,
        received=received,
        deviation=np.full_like(received, 0.1),
        expected=filled if expected is None else expected,
        breadth=filled,
        to_top=filled,
    )


@pytest.fixture
def planted():
    """Attention falls with rank in every head; listed genes stand high; one head prefers them."""
    rng = np.random.default_rng(0)
    rank = np.sort(rng.uniform(1, 500, GENES))
    listed = np.sort(rng.choice(150, 60, replace=False))
    others = np.setdiff1d(np.arange(GENES), listed)
    noise = rng.normal(0, 0.1, (GENES, LAYERS, HEADS))
    received = (3 - np.log10(rank))[:, None, None] + noise
    received[listed, 1, 2] += 0.3
    return means_of(received, rank), listed, others


def test_rank_alone_is_distinguished_from_preference(planted):
    table = statistics.compare_genes(*planted).set_index(["layer", "head"])
    assert table["prefers"].all(), "high ranks are attended in every head"
    assert table.index[table["prefers_matched"]].tolist() == [(2, 3)]
    assert table.loc[(2, 3), "effect_matched"] > 0.35
    assert table.drop(index=(2, 3))["effect_matched"].abs().max() < 0.25
    assert table["n_matched"].eq(60).all()


def test_tests_are_those_of_each_head_alone(planted):
    means, first, second = planted
    table = statistics.compare_genes(means, first, second)
    for row in table.itertuples():
        a, b = (means.received[side, row.layer - 1, row.head - 1] for side in (first, second))
        wanted = stats.mannwhitneyu(a, b)
        assert row.p == pytest.approx(wanted.pvalue, rel=1e-12)
        larger = (a[:, None] > b).mean() - (a[:, None] < b).mean()
        assert row.effect == pytest.approx(larger, abs=1e-12)
    adjusted = table["p"].sort_values() * len(table) / np.arange(1, len(table) + 1)
    stepped = adjusted[::-1].cummin()[::-1].clip(upper=1)
    np.testing.assert_allclose(table["fdr"], stepped.sort_index(), rtol=1e-12)


def test_partners_are_the_nearest_free_ones():
    rng = np.random.default_rng(1)
    few, many = rng.uniform(0, 100, 20), rng.uniform(0, 100, 70)
    pairs = statistics.match_by_rank(few, many, seed=3)
    free = set(range(70))
    chosen = dict(pairs.tolist())
    for index in np.random.default_rng(3).permutation(20):
        nearest = min(free, key=lambda each: abs(many[each] - few[index]))
        assert chosen[index] == nearest
        free.remove(nearest)
    swapped = statistics.match_by_rank(many, few, seed=3)
    np.testing.assert_array_equal(np.sort(swapped[:, 1]), np.arange(20))
    assert {(b, a) for a, b in swapped.tolist()} == set(map(tuple, pairs.tolist()))


def measures(thirds: dict[str, tuple[float, float, float]], cells: int = 200) -> CellMeasures:
    """Six layers whose thirds have the given means; two heads."""
    rng = np.random.default_rng(0)
    made = {}
    for name in CellMeasures._fields:
        means = np.repeat(thirds[name], 2)
        values = means[:, None] + rng.normal(0, 0.05, (cells, 6, 2))
        made[name] = values[..., 0] if name == "diversity" else values
    return CellMeasures(**made)


def test_verdicts_follow_what_was_planted():
    holding = {"diversity": (0.6, 0.3, 0.3), "breadth": (0.4, 0.6, 0.5), "top": (0.1, 0.2, 0.5)}
    failing = {"diversity": (0.3, 0.3, 0.6), "breadth": (0.6, 0.4, 0.3), "top": (0.4, 0.2, 0.3)}
    unclear = {"diversity": (0.5, 0.3, 0.5), "breadth": (0.5, 0.5, 0.3), "top": (0.1, 0.5, 0.5)}
    wanted = {"A": holding, "B": failing, "C": unclear}
    table = statistics.verdicts(
        {name: statistics.compare_thirds(measures(thirds)) for name, thirds in wanted.items()}
    )
    assert table["A"].eq(statistics.HOLDS).all()
    assert table["B"].eq(statistics.FAILS).all()
    assert table["C"].eq(statistics.UNDECIDED).all()
    shallow = CellMeasures(np.zeros((9, 2)), np.zeros((9, 2, 2)), np.zeros((9, 2, 2)))
    only = statistics.verdicts({"D": statistics.compare_thirds(shallow)})
    assert only["D"].eq(statistics.TOO_FEW).all()


def test_deviations_of_heads_that_attend_evenly_are_not_lost_in_rounding():
    rng = np.random.default_rng(0)
    received = (1 + rng.normal(0, 1e-4, 2_000)).astype(np.float32)
    empty = AttentionTotals.empty(groups=1, tokens=1, chosen=0, layers=1, heads=1)
    sums = empty.gene_sums
    for value in received:
        sums[0, 0, 0, 0, :2] += np.float32([value, (value - np.float32(EVEN_SHARE)) ** 2])
    totals = empty._replace(gene_cells=np.full((1, 1), len(received)), gene_sums=sums)
    found = statistics.gene_means(totals).deviation[0, 0, 0]
    assert found == pytest.approx(received.astype(np.float64).std(ddof=1), rel=0.02)


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(200):
        low, high = statistics.bootstrap_interval(rng.normal(1, 1, (60, 1)), seed=draw)
        covered += low[0] <= 1 <= high[0]
    assert 0.90 <= covered / 200 <= 0.985
    assert np.isnan(statistics.bootstrap_interval(np.ones((1, 3)))).all()


def test_layers_are_means_over_cells_and_heads():
    values = measures(dict.fromkeys(CellMeasures._fields, (0.1, 0.2, 0.3)))
    table = statistics.layer_table(values).set_index(["measure", "head", "layer"])
    assert table.loc[("top", 0, 4), "mean"] == pytest.approx(values.top[:, 3].mean())
    assert table.loc[("breadth", 2, 1), "mean"] == pytest.approx(values.breadth[:, 0, 1].mean())
    assert table.loc[("diversity", 0, 6), "mean"] == pytest.approx(values.diversity[:, 5].mean())
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] < table["high"]).all()


def test_genes_beyond_their_rank_come_first():
    received = np.ones((GENES, LAYERS, HEADS))
    received[7], received[9] = 3.0, 2.0
    received[11] = 5.0
    means = means_of(received, np.arange(GENES, dtype=float), np.ones_like(received))
    cells = means.cells.copy()
    cells[11] = 3  # attended most, but seen in too few cells
    ids = np.array([f"g{number}" for number in range(GENES)], object)
    table = statistics.group_table(means._replace(cells=cells), ids, ids, "all", 10)
    assert table["gene_id"].tolist()[:2] == ["g7", "g9"]
    assert "g11" not in set(table["gene_id"])
    assert table["excess"].iloc[0] == pytest.approx(2.0)
