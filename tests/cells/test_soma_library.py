"""What is said where TileDB-SOMA cannot be read, as its library is not there or too old."""

import importlib.metadata
import sys

import pytest

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.common.errors import InputError


@pytest.fixture
def experiment(tmp_path):
    """What tells a group of TileDB from other folders."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/__tiledb_group.tdb").touch()
    return tmp_path / "experiment"


@pytest.mark.parametrize(
    ("installed", "python", "words"),
    [
        (None, (3, 13), r'installed is none: pip install "geneformer_jax\[census\]"'),
        ("0.1.22", (3, 12), r'installed is 0.1.22: pip install "geneformer_jax\[census\]"'),
        (None, (3, 14), r"installed is none: use Python 3.11 to 3.13, for which it is built"),
        ("0.1.22", (3, 14), r"installed is 0.1.22: use Python 3.11 to 3.13"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "soma://"])
def test_the_remedy_is_named(prefix, installed, python, words, experiment, monkeypatch):
    def version(name):
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(sys, "version_info", python)
    with pytest.raises(InputError, match=f"takes tiledbsoma 2.3 or newer, and {words}"):
        open_counts(f"{prefix}{experiment}")


def test_work_that_was_begun_without_experiments_goes_on():
    """Stores and shards compare what is kept of the options with what it was."""
    of_all = {"counts_layer", "gene_column", "symbols", "compute_totals", "fractional"}
    assert CountOptions().identity().keys() == of_all
    assert CountOptions(organism="homo_sapiens").identity().keys() == of_all | {"organism"}
