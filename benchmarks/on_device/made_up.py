"""Made-up cells and models, where no data is at hand; imports no JAX until a model is drawn."""

import dataclasses

import ml_dtypes
import numpy as np
import pandas as pd

from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, GeneVocabulary
from geneformer_jax.model.config import EncoderConfig
from tests.helpers.real_lengths import simulated_lengths

# Initial weights of the published width make every edit's shift alike; trained ones do not.
_INITIALIZER_RANGE = 0.08
_ORDERS = 64


def made_up_vocabulary(size: int) -> GeneVocabulary:
    """Returns a vocabulary of `size` tokens, V1's two special ones among them."""
    genes = size - len(V1_SPECIAL_TOKENS)
    ids = np.array([f"ENSG{gene:011d}" for gene in range(genes)])
    return GeneVocabulary(ids, np.full(genes, ""), np.ones(genes), V1_SPECIAL_TOKENS)


def real_lengths(cells: int, longest: int) -> np.ndarray:
    """Returns lengths as in Geneformer's corpora: 7 % of the cells reach the longest.

    For other models than the published ones, in proportion.
    """
    published = 4_096 if longest == 4_096 else 2_048
    drawn = simulated_lengths(cells, longest=published)
    return np.maximum(drawn * longest // published, 1)


class MadeUpCells:
    """Cells of stated lengths with random genes, read like a cell store."""

    def __init__(self, lengths: np.ndarray, vocabulary_size: int):
        """Names the cells; each is the same whenever it is read."""
        self.vocabulary = made_up_vocabulary(vocabulary_size)
        self.lengths = np.asarray(lengths, np.int32)
        self.obs = pd.DataFrame(index=[f"cell{cell}" for cell in range(len(self.lengths))])
        self._genes = np.arange(self.vocabulary.first_gene_token, vocabulary_size, dtype=np.uint16)
        # Few orders, so that reading keeps no device waiting.
        rng = np.random.default_rng(0)
        self._orders = [rng.permutation(self._genes) for _ in range(min(_ORDERS, len(lengths)))]

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens of cells: distinct genes in random order."""
        orders = self._orders
        return [orders[index % len(orders)][: self.lengths[index]] for index in indices]


class CommonGenes(MadeUpCells):
    """Made-up cells in which some genes are in most cells and many in few, as in real ones."""

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens of cells: those drawn first by a weight that falls with the gene."""
        weights = 1 / np.arange(1, len(self._genes) + 1)
        return [
            np.random.default_rng(int(index)).choice(
                self._genes, self.lengths[index], replace=False, p=weights / weights.sum()
            )
            for index in indices
        ]


def random_operands(shape: tuple[int, int, int, int], precision: str) -> list[np.ndarray]:
    """Returns queries, keys, values and the cotangent of what is attended, each [B, T, N, H].

    None is zero anywhere, at pads either.
    """
    rng = np.random.default_rng(0)
    dtype = ml_dtypes.bfloat16 if precision == "bfloat16" else np.dtype(precision)
    return [rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(4)]


def random_model(config: EncoderConfig):
    """Returns a `PretrainedModel` with random weights and the vocabulary of made-up cells."""
    import jax

    from geneformer_jax.model.encoder import init_params
    from geneformer_jax.model.pretrained import PretrainedModel

    config = dataclasses.replace(config, initializer_range=_INITIALIZER_RANGE)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    vocabulary = made_up_vocabulary(config.vocabulary_size)
    return PretrainedModel(config, params, vocabulary, source="random", step=0)
