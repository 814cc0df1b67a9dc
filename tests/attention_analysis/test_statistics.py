"""Statistics of genes, on planted structure."""

import numpy as np
import pytest

from geneformer_jax.attention_analysis import statistics
from geneformer_jax.attention_analysis.sums import EVEN_SHARE, AttentionTotals
from tests.helpers.attention_means import means_of

GENES, LAYERS, HEADS = 400, 2, 3


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
