"""What can be said of genes and two states without a model: of counts, or of the model's ranks."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.inference.filters import label_texts
from geneformer_jax.perturbation.statistics.rank_sums import false_discovery_rates, rank_sum_test

# Of each side; more are sampled.
MAX_CELLS = 5_000
OTHERS = "all others"


def rank_values(tokens: Sequence[np.ndarray], vocabulary: GeneVocabulary) -> sparse.csr_matrix:
    """Returns how high each gene stands in each cell, float64 [cells, vocabulary size].

    1 for the first gene of a cell, evenly down to 1/n for the last of n, 0 for a gene that the cell
    does not have.
    """
    genes = [own[own >= vocabulary.first_gene_token] for own in map(np.asarray, tokens)]
    numbers = np.array([len(own) for own in genes])
    heights = [1 - np.arange(n) / n for n in numbers]
    parts = np.concatenate(heights), np.concatenate(genes).astype(np.int64), np.r_[0, numbers]
    return sparse.csr_matrix(
        (parts[0], parts[1], np.cumsum(parts[2])), (len(genes), vocabulary.size)
    )


def differential_expression(
    values: sparse.csr_matrix, is_goal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compares each gene between cells of the goal and others, by Wilcoxon's rank-sum test.

    As scanpy's `rank_genes_groups(method="wilcoxon")`, without correction for ties.

    Args:
      values: [cells, genes], none below 0.
      is_goal: bool [cells].

    Returns:
      (rank-biserial correlations [genes], above 0 where the gene is higher in the goal; two-sided
      p-values [genes]).
    """
    entries = values.tocoo()
    goal, genes, own = is_goal.sum(), values.shape[1], is_goal[entries.row]
    has, has_in_goal = (
        np.bincount(each, minlength=genes) for each in (entries.col, entries.col[own])
    )
    lacking = len(is_goal) - has
    # Cells without the gene share the lowest ranks.
    ranks = pd.Series(entries.data).groupby(entries.col).rank().to_numpy() + lacking[entries.col]
    sums = np.bincount(entries.col[own], ranks[own], genes)
    sums += (goal - has_in_goal) * (lacking + 1) / 2
    p_values, effects = rank_sum_test(
        sums - goal * (goal + 1) / 2, goal, np.int64(len(is_goal) - goal)
    )
    return effects, p_values


def covariance_shifts(values: sparse.csr_matrix, is_goal: np.ndarray) -> np.ndarray:
    """Predicts linearly how far deleting each gene moves cells to the goal; float64 [genes].

    As CIPHER does, a change of one gene is taken to change the others as its column of their
    covariance in unperturbed cells, those of the other state. Of that column, with the sign of a
    deletion, this is the part along the difference of the two states' means.

    Args:
      values, is_goal: see `differential_expression`.
    """
    start = values[~is_goal]
    mean = np.asarray(start.mean(axis=0)).ravel()
    away = np.asarray(values[is_goal].mean(axis=0)).ravel() - mean
    length = np.linalg.norm(away)
    along = start @ (away / length if length > 0 else away)
    return -(start.T @ (along - along.mean())) / start.shape[0]


def compare_states(
    cells: EncodedCells,
    column: str,
    goal: str,
    start: str = "",
    seed: int = 0,
    expression: Callable[[np.ndarray], sparse.csr_matrix] | None = None,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Compares the genes of two states without a model.

    Args:
      cells: to draw from.
      column: obs column of the states.
      goal: the one state.
      start: the other one; "" takes all other cells.
      seed: of the draw, where either has more than MAX_CELLS.
      expression: returns what Wilcoxon's test compares, float64 [cells, vocabulary size], given the
        numbers of cells; None compares the ranks that the model reads.

    Returns:
      (One row for each gene that any of the drawn cells has: perturbed (gene id), DE_effect_size,
      DE_pval, DE_FDR, Covariance_shift; the numbers of drawn cells, by state). Without a cell on
      either side there are no rows.
    """
    rows, is_goal = _draw(label_texts(cells.obs[column]), goal, start, seed)
    sizes = {goal: int(is_goal.sum()), start or OTHERS: int((~is_goal).sum())}
    if not all(sizes.values()):
        return pd.DataFrame(columns=_COLUMNS), sizes
    values = rank_values(cells.read(rows), cells.vocabulary)
    tokens = np.flatnonzero(values.getnnz(axis=0))
    compared = values if expression is None else expression(rows)
    effects, p_values = (each[tokens] for each in differential_expression(compared, is_goal))
    columns = (
        [cells.vocabulary.gene_id_of(int(token)) for token in tokens],
        effects,
        p_values,
        false_discovery_rates(p_values),
        covariance_shifts(values, is_goal)[tokens],
    )
    return pd.DataFrame(dict(zip(_COLUMNS, columns, strict=True))), sizes


_COLUMNS = ("perturbed", "DE_effect_size", "DE_pval", "DE_FDR", "Covariance_shift")


def _draw(labels: pd.Series, goal: str, start: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (int64 ascending numbers of cells, bool which of them are of the goal)."""
    is_goal = (labels == goal).to_numpy(bool)
    is_other = (labels == start).to_numpy(bool) if start else labels.notna().to_numpy() & ~is_goal
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(each))[:MAX_CELLS] for each in (is_goal, is_other)]
    rows = np.sort(np.concatenate(drawn))
    return rows, is_goal[rows]
