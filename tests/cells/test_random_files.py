"""Valid files of every combination give the tokens of their counts, bad ones one line."""

import tempfile
import warnings
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings

from geneformer_jax.cells.formats.open import expand_paths, open_counts
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions, tokenize_source
from geneformer_jax.common.errors import InputError
from tests.helpers.random_files import expected_tokens, files, vocabulary, write

VOCABULARY = vocabulary()
REMEDIES = ("give", "choose", "write", "fill_value")


def check(case):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # anndata announces that it will write zarr otherwise.
        warnings.simplefilter("ignore")
        path = write(case, Path(folder))
        assert expand_paths(str(path)) == [path]

        def read():
            return tokenize_source(open_counts(path), VOCABULARY, TokenizerOptions(max_length=64))

        if case.bad is None:
            cells = read()
            assert cells.cell_ids.tolist() == [f"c{n}" for n in range(len(case.counts))]
            tokens = [row.tolist() for row in cells.read(range(len(cells)))]
            assert tokens == expected_tokens(case, VOCABULARY)
            return
        with pytest.raises(InputError) as error:
            read()
        message, cell = str(error.value), case.bad[1]
        assert "\n" not in message
        for part in (str(path), f'cell "c{cell}"', f"ENSG{case.genes[0]:011d}"):
            assert part in message
        assert any(remedy in message for remedy in REMEDIES)


@given(files())
@settings(max_examples=25, derandomize=True, deadline=None, database=None)
def test_some_files(case):
    check(case)


@pytest.mark.slow
@given(files())
@settings(
    max_examples=1500, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
def test_many_files(case):
    check(case)
