"""A run that fails on its counts leaves no folder behind, unless it holds finished sources."""

import numpy as np
import pytest

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.source import MatrixSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.store.building import pieces
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.tokenizer import NO_RULES, TokenizerOptions
from geneformer_jax.cells.tokenization.vocabulary_building import measure_corpus
from geneformer_jax.common.errors import InputError
from tests.helpers.toy import toy_cells, toy_vocabulary


def build(folder):
    return StoreBuild(
        folder, toy_vocabulary(), TokenizerOptions(max_length=2_048), CountOptions(), []
    )


@pytest.fixture
def files(tmp_path):
    """A file of raw counts, and one that turns out log-transformed when its counts are read."""
    good, bad = tmp_path / "good.h5ad", tmp_path / "worse.h5ad"
    toy_cells(20).write_h5ad(good)
    logged = toy_cells(20)
    logged.obs_names = [f"d{i}" for i in range(20)]
    logged.X = np.log1p(logged.X.astype(np.float32))
    logged.write_h5ad(bad)
    return good, bad


def test_nothing_is_left_where_no_source_is_whole(files, tmp_path):
    _, bad = files
    started = build(tmp_path / "store")
    started.survey([bad])
    with pytest.raises(InputError, match="looks log-transformed"):
        started.write()
    assert not (tmp_path / "store").exists()


def test_a_file_that_changes_while_it_is_read_is_told(files, tmp_path, monkeypatch):
    good, _ = files
    read_ahead = pieces.read_ahead

    def replaced_meanwhile(part):
        yield from read_ahead(part)
        toy_cells(20, seed=1).write_h5ad(good)

    monkeypatch.setattr(pieces, "read_ahead", replaced_meanwhile)
    started = build(tmp_path / "store")
    started.survey([good])
    with pytest.raises(InputError, match=r"good\.h5ad has changed since it was looked at"):
        started.write()
    assert not (tmp_path / "store").exists()


def test_a_vocabulary_is_of_files_that_stay_as_they_are(files, monkeypatch):
    good, _ = files
    batches = MatrixSource.batches

    def replaced_meanwhile(*given):
        yield from batches(*given)
        toy_cells(20, seed=1).write_h5ad(good)

    monkeypatch.setattr(MatrixSource, "batches", replaced_meanwhile)
    with pytest.raises(InputError, match=r"good\.h5ad has changed since it was looked at"):
        measure_corpus([good], open_counts, None, NO_RULES)


def test_finished_sources_are_kept(files, tmp_path):
    good, bad = files
    started = build(tmp_path / "store")
    started.survey([good, bad])
    with pytest.raises(InputError, match="looks log-transformed"):
        started.write()
    again = build(tmp_path / "store")
    again.survey([good])
    again.write()
    counts = again.finish({})
    assert (counts["cells"], counts["cells_in_files"]) == (20, 20)


def test_no_file_is_added_to_a_store_whose_notes_are_damaged(files, tmp_path):
    good, other = files
    store = tmp_path / "store"
    started = build(store)
    started.survey([good])
    started.write()
    started.finish({})
    for name in ("store.json", "sources/order.json", "sources/*/source.json"):
        (note,) = store.glob(name)
        whole = note.read_text()
        for content in ("{", "3", "{}", "[" * 100_000):
            note.write_text(content)
            with pytest.raises(InputError, match=rf"{note.name} is damaged .*; restore it"):
                build(store).survey([good, other])
        note.write_text(whole)


@pytest.mark.parametrize("name", ["*.array_record-*", "lengths.npy", "n_genes.npy", "obs.parquet"])
def test_no_store_is_whole_without_all_files_of_its_pieces(name, files, tmp_path):
    """They may be there and not be seen yet, on a disk of several machines."""
    good, _ = files
    store = tmp_path / "store"
    started = build(store)
    started.survey([good])
    started.write()
    (file,) = store.glob(f"sources/*/{name}")
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=file.parent.name):
        started.finish({})
    with pytest.raises(InputError):
        CellStore(store)
    (tmp_path / "elsewhere").rename(file)
    again = build(store)
    again.survey([good])
    again.finish({})
    whole = CellStore(store)
    assert (len(whole), len(whole.lengths), len(whole.n_genes), len(whole.obs)) == (20,) * 4
