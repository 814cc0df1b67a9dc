"""Each gene against genes of like rank and detection rate, among the edits of the same run."""

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from scipy.stats import norm
from scipy.stats import t as student

from geneformer_jax.perturbation.statistics.rank_sums import false_discovery_rates

# At most so many of the nearest genes are compared with, none further than so many standard
# deviations of rank and detection rate; with fewer than the last number nothing is said.
NEIGHBOURS, MAX_DISTANCE, MIN_NEIGHBOURS = 50, 1.0, 20
# A median absolute deviation of N normal values is as precise as a standard deviation of 37 % of
# them (Huber, Robust Statistics).
_EFFICIENCY = 0.37


def matched_null(
    shifts_E: np.ndarray, ranks_E: np.ndarray, detection_E: np.ndarray
) -> pd.DataFrame:
    """Compares the shift of each gene with those of the genes nearest to it in rank and detection.

    Percentile and empirical p-value say where a gene stands among its neighbours. But N neighbours
    give no p-value below 2/(N+1), which never survives the adjustment for hundreds of genes. So the
    FDR is of another test: how far the gene lies from the median of its neighbours, in their median
    absolute deviations, beside Student's distribution with the precision of that deviation. It
    takes the bulk of the neighbours for normal and finds genes that lie outside it.

    Args:
      shifts_E: [edits] of each gene; NaN takes no part.
      ranks_E, detection_E: [edits] what genes are matched by.

    Returns:
      One row for each gene: Matched_genes (number of neighbours), Matched_percentile (of them below
      the gene, equal ones counted half), Matched_empirical_pval (two-sided, (1 + more extreme) /
      (1 + neighbours), doubled), Matched_z, Matched_FDR. NaN with fewer than MIN_NEIGHBOURS.
    """
    features = np.stack([ranks_E, detection_E], axis=1)
    known = np.flatnonzero(np.isfinite(features).all(axis=1) & np.isfinite(shifts_E))
    table = pd.DataFrame(np.nan, np.arange(len(shifts_E)), _COLUMNS)
    table["Matched_genes"] = np.zeros(len(shifts_E), np.int64)
    if len(known) > MIN_NEIGHBOURS:
        neighbours = _neighbours(features[known])
        values = np.append(shifts_E[known], np.nan)
        rows = _compare(values[:-1], values[neighbours])
        table.loc[known, rows.columns] = rows.to_numpy()
    table["Matched_FDR"] = false_discovery_rates(table.pop("p").to_numpy())
    return table.astype({"Matched_genes": np.int64})


_COLUMNS = ("Matched_genes", "Matched_percentile", "Matched_empirical_pval", "Matched_z", "p")


def _neighbours(features_EF: np.ndarray) -> np.ndarray:
    """int64 [edits, NEIGHBOURS] the nearest other edits, the number of edits where there is none.

    Two features are scaled by their standard deviation; one that is always the same counts nothing.
    """
    spread = features_EF.std(axis=0)
    scaled = features_EF / np.where(spread > 0, spread, np.inf)
    _, found = cKDTree(scaled).query(scaled, NEIGHBOURS + 1, distance_upper_bound=MAX_DISTANCE)
    own = found == np.arange(len(found))[:, None]
    # Of many genes at one place the gene itself may not be found; then the last is left out.
    own[~own.any(axis=1), -1] = True
    return found[~own].reshape(len(found), NEIGHBOURS)


def _compare(values_E: np.ndarray, others_EN: np.ndarray) -> pd.DataFrame:
    others = np.ma.masked_invalid(others_EN)
    numbers = others.count(axis=1)
    below, above = ((compare(others, values_E[:, None])).sum(axis=1).filled(0)
                    for compare in (np.ma.less, np.ma.greater))  # fmt: skip
    equal = numbers - below - above
    empirical = np.minimum(2 * (1 + equal + np.minimum(below, above)) / (1 + numbers), 1)
    middle = np.ma.median(others, axis=1)
    spread = np.ma.median(np.ma.abs(others - middle[:, None]), axis=1) / norm.ppf(0.75)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(spread.filled(0) > 0, (values_E - middle.filled(0)) / spread.filled(0), np.nan)
        z = z / np.sqrt(1 + np.pi / 2 / numbers)
        p = 2 * student.sf(np.abs(z), _EFFICIENCY * np.maximum(numbers - 1, 1))
    table = np.stack([(below + equal / 2) / np.maximum(numbers, 1), empirical, z, p], axis=1)
    table[numbers < MIN_NEIGHBOURS] = np.nan
    return pd.DataFrame(np.column_stack([numbers, table]), columns=_COLUMNS)
