"""Fixtures that several tests of this folder share."""

import pytest
from small_stores import cells

from geneformer_jax.cells.counts import open_counts
from geneformer_jax.cells.tokenization import (
    NO_RULES,
)
from geneformer_jax.cells.vocabulary import V1_SPECIAL_TOKENS
from geneformer_jax.cells.vocabulary_building import build_vocabulary, measure_corpus


@pytest.fixture
def files(tmp_path):
    """Three files of other sizes with the same genes; the empty cell in the middle of each."""
    folder = tmp_path / "counts"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        cells(seed, name, n_cells=20 + 9 * seed).write_h5ad(folder / f"{name}.h5ad")
    return sorted(folder.iterdir())


@pytest.fixture
def vocabulary(files):
    corpus = measure_corpus(files, open_counts, None, NO_RULES)
    return build_vocabulary(corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human")
