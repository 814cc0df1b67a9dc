"""A corpus of stated size without cells, to estimate a run before anything is tokenised."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticCorpus:
    """Takes a cell store's place in a dry run: so many cells of one length, none of them there.

    Attributes:
      lengths: int32 [cells], tokens of each.
      vocabulary: of as many made-up genes as the model has tokens for.
      folder: none.
    """

    lengths: np.ndarray
    vocabulary: GeneVocabulary
    folder: Path = Path()

    def __len__(self) -> int:
        return len(self.lengths)


def synthetic_corpus(stated: str, vocabulary_size: int) -> SyntheticCorpus:
    """Returns the corpus that "CELLSxTOKENS" states, e.g. "27400000x2048".

    Raises:
      InputError: it states none, or the model's vocabulary size is left to the store.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", stated.replace("_", "").replace(",", ""))
    if not found:
        raise InputError(
            f"`corpus`={stated} must be cells x tokens of each, for example 27400000x2048"
        )
    special = ("<pad>", "<mask>")
    genes = vocabulary_size - len(special)
    if genes < 1:
        raise InputError(
            f"`config.model.vocabulary_size` is {vocabulary_size}; a `corpus` has no vocabulary, "
            "so set it to that of the model, such as 20275"
        )
    ids = np.array([f"gene{number:05d}" for number in range(genes)])
    vocabulary = GeneVocabulary(ids, np.full(genes, ""), np.ones(genes), special)
    cells, tokens = map(int, found.groups())
    return SyntheticCorpus(np.full(cells, tokens, np.int32), vocabulary)
