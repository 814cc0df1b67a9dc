"""Embeddings of genes to begin with: principal components of their ranks in cells.

Genes that rank high in the same cells begin near each other, and the mean of a cell's genes tells
cells apart from the first step on. Embeddings of co-expression are where scBERT begins, too (Yang
et al., 2022, with gene2vec); here no other data are needed than the cells that are trained on.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import ArpackError
from sklearn.decomposition import PCA

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError

# So that a large corpus need not be read for it. More were not tried.
MAX_CELLS = 10_000
# Genes that hardly any cell has would else weigh as much as all others.
_LEAST_DEVIATION = 0.05
# Root mean square of the table. At BERT's 0.02 a few steps of AdamW would overwrite it.
_SIZE = 0.1
# Part of the first component's variance above the last one's: below it, rounding decides which
# components are found.
_LEAST_SIGNAL = 0.01
# Of the normal draw that is added: what genes that no cell has begin with.
_NOISE = 0.02


def gene_components(cells: EncodedCells, numbers: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Returns a table of gene embeddings, float32 [tokens, width].

    A gene's value in a cell is 1 at the highest rank, falls evenly to 0 at the store's longest
    cell, and is 0 where the cell lacks it. Its components are those of the standardised values,
    each weighed by the root of the part of its variance that is above the last one's. A normal draw
    is added: all that special tokens and unseen genes get, and all there is beyond as many
    components as there are cells.

    Args:
      cells: that are trained on, and others.
      numbers: of those that are trained on; at most 10,000 of them, drawn by the seed, are read.
      width: of the embeddings.
      seed: of the run.

    Raises:
      InputError: there are fewer than 3 cells, all are alike, or hardly any share genes.
    """
    if len(numbers) < 3:
        raise _no_components(f"there are {len(numbers)} cells to train on, and components need 3")
    generator = np.random.default_rng([seed, width])
    chosen = np.sort(generator.permutation(numbers)[:MAX_CELLS])
    values = _rank_values(cells, chosen)
    count = min(width, min(values.shape) - 1)
    try:
        found = PCA(count, svd_solver="arpack", random_state=seed).fit(values)
    except ArpackError as error:
        raise _no_components("the cells to train on are all alike") from error
    signal = _signal(found.explained_variance_)
    if signal.max() < _LEAST_SIGNAL:
        raise _no_components("the cells to train on share too few genes: no component stands out")
    components = found.components_.T * np.sqrt(signal)
    table = generator.normal(scale=_NOISE, size=(values.shape[1], width))
    table[:, :count] += components / np.sqrt((components**2).mean()) * _SIZE
    return table.astype(np.float32)


def _no_components(why: str) -> InputError:
    return InputError(f"`config.initial_genes` is components, but {why}; set it to random")


def _signal(variances: np.ndarray) -> np.ndarray:
    """Returns which part of each component's variance is above the last one's, taken for noise.

    Of a few hundred cells most components are noise, of thousands few.
    """
    is_there = variances > 1e-6 * variances[0]
    noise = np.divide(variances[-1], variances, out=np.ones_like(variances), where=is_there)
    return 1.0 - noise


def _rank_values(cells: EncodedCells, numbers: np.ndarray) -> sparse.csr_matrix:
    """Returns values of genes by rank over their standard deviation, float32 [cells, tokens]."""
    tokens = cells.read(numbers)
    lengths = np.array([len(each) for each in tokens])
    columns = np.concatenate(tokens).astype(np.int32)
    ranks = np.arange(len(columns)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    values = 1.0 - ranks / cells.max_length
    values[columns < cells.vocabulary.first_gene_token] = 0.0
    size = cells.vocabulary.size
    mean, squares = (
        np.bincount(columns, each, size) / len(numbers) for each in (values, values**2)
    )
    deviations = np.maximum(np.sqrt(np.maximum(squares - mean**2, 0.0)), _LEAST_DEVIATION)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    standardised = (values / deviations[columns]).astype(np.float32)
    return sparse.csr_matrix((standardised, columns, starts), shape=(len(numbers), size))
