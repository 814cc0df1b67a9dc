"""Genes against genes of like rank: beside a slow version, planted genes, and nothing planted."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import median_abs_deviation

from geneformer_jax.perturbation.controls.matched_null import (
    MAX_DISTANCE,
    MIN_NEIGHBOURS,
    NEIGHBOURS,
    matched_null,
)

GENES = 300


def genes(seed: int = 0, number: int = GENES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shifts that follow rank, ranks and detection rates."""
    rng = np.random.default_rng(seed)
    ranks = rng.uniform(size=number)
    detection = np.clip(1 - ranks + rng.normal(0, 0.2, number), 0.05, 1)
    return rng.normal(size=number), ranks, detection


def test_the_comparison_is_that_of_a_plain_loop():
    shifts, ranks, detection = genes()
    shifts[:40:7] = np.nan
    shifts[100:110] = shifts[100]
    ranks[50] = 3
    table = matched_null(shifts, ranks, detection)
    known = np.isfinite(shifts)
    told = 0
    for gene in np.flatnonzero(known):
        apart = np.hypot(*((each - each[gene]) / each[known].std() for each in (ranks, detection)))
        others = [each for each in np.argsort(apart) if known[each] and each != gene]
        others = [each for each in others[:NEIGHBOURS] if apart[each] <= MAX_DISTANCE]
        row = table.loc[gene]
        assert row["Matched_genes"] == len(others)
        if len(others) < MIN_NEIGHBOURS:
            assert np.isnan(row["Matched_percentile"]) and np.isnan(row["Matched_FDR"])
            continue
        told += 1
        values = shifts[others]
        more, less = (values >= shifts[gene]).sum(), (values <= shifts[gene]).sum()
        ends = [(1 + each) / (1 + len(others)) for each in (more, less)]
        assert row["Matched_empirical_pval"] == pytest.approx(min(1, 2 * min(ends)))
        below = (values < shifts[gene]).mean() + (values == shifts[gene]).mean() / 2
        assert row["Matched_percentile"] == pytest.approx(below)
        spread = median_abs_deviation(values, scale="normal")
        wide = spread * np.sqrt(1 + np.pi / 2 / len(others))
        assert row["Matched_z"] == pytest.approx((shifts[gene] - np.median(values)) / wide)
    assert GENES / 2 < told < known.sum()


def test_planted_genes_are_found_and_no_others():
    shifts, ranks, detection = genes(number=800)
    planted = np.flatnonzero(np.abs(ranks - 0.5) < 0.2)[:6]
    shifts[planted] += np.tile([9, -9], 3)
    found = np.flatnonzero(matched_null(shifts, ranks, detection)["Matched_FDR"] < 0.05)
    assert set(planted) <= set(found)
    assert len(found) <= len(planted) + 1


def test_where_nothing_is_planted_hardly_ever_anything_is_found():
    # By construction in one run of twenty at most; 40 runs, so 6 would be a matter of 1 in 70.
    tables = [matched_null(*genes(seed)) for seed in range(40)]
    assert sum((each["Matched_FDR"] < 0.05).any() for each in tables) < 6
    whole = pd.concat(tables).dropna()
    # So many of the places among N neighbours, counted from both ends, have p-values up to 0.1.
    places = whole["Matched_genes"] + 1
    expected = (2 * (0.05 * places).astype(int) / places).mean()
    assert (whole["Matched_empirical_pval"] <= 0.1).mean() == pytest.approx(expected, rel=0.05)


def test_a_difference_that_is_all_rank_is_none():
    shifts, ranks, detection = genes()
    table = matched_null(0.05 * shifts + 3 * ranks, ranks, detection)
    assert not (table["Matched_FDR"] < 0.05).any()


def test_few_genes_and_equal_shifts_are_not_told():
    shifts, ranks, detection = genes(number=MIN_NEIGHBOURS)
    assert matched_null(shifts, ranks, detection)["Matched_FDR"].isna().all()
    same = matched_null(np.ones(GENES), np.full(GENES, 0.5), np.full(GENES, 0.5))
    assert (same["Matched_genes"] == NEIGHBOURS).all()
    assert same["Matched_FDR"].isna().all()
    assert (same["Matched_empirical_pval"] == 1).all()
