"""Fixtures of tests that read files of counts: three small files and their vocabulary."""

import shutil

import pytest

from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.tokenization.tokenizer import NO_RULES
from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS
from geneformer_jax.cells.tokenization.vocabulary_building import build_vocabulary, measure_corpus
from tests.helpers.small_stores import cells


@pytest.fixture(scope="session")
def original_files(tmp_path_factory):
    """Three files of other sizes with the same genes; the empty cell in the middle of each."""
    folder = tmp_path_factory.mktemp("counts")
    for seed, name in enumerate("abc"):
        cells(seed, name, n_cells=20 + 9 * seed).write_h5ad(folder / f"{name}.h5ad")
    return sorted(folder.iterdir())


@pytest.fixture
def files(original_files, tmp_path):
    """Copies of the three files, to do with as a test likes."""
    folder = tmp_path / "counts"
    shutil.copytree(original_files[0].parent, folder)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def vocabulary(original_files):
    """The vocabulary of the three files."""
    corpus = measure_corpus(original_files, open_counts, None, NO_RULES)
    return build_vocabulary(corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human")
