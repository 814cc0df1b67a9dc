"""Obs columns may have any name, those that our own files and tables need too."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.obs_columns import TAKEN, original_name, stored_name
from geneformer_jax.interop import store_exchange
from geneformer_jax.reporting.corpus_summary import summarise_corpus
from tests.helpers.toy import make_store, reserved_columns, toy_cells, toy_vocabulary


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    adata = toy_cells(12)
    adata.obs = adata.obs.join(reserved_columns(adata.obs_names))
    return adata


@pytest.fixture(scope="module")
def store(adata, tmp_path_factory) -> CellStore:
    folder = tmp_path_factory.mktemp("reserved") / "store"
    return make_store(folder, adata, toy_vocabulary(), obs=tuple(adata.obs))


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert found.index.tolist() == expected.index.tolist()
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].tolist() == expected[name].tolist(), name


def test_different_names_stay_different_and_come_back():
    prefixed = [f"{'obs:' * n}{name}" for n in range(3) for name in (*TAKEN, "x", "")]
    stored = [stored_name(name) for name in prefixed]
    assert len(set(stored)) == len(prefixed) and not set(stored) & set(TAKEN)
    assert [original_name(name) for name in stored] == prefixed


def test_a_store_keeps_columns_of_its_own_names(adata, store):
    assert_same(store.obs, adata.obs)
    assert store.cell_ids.tolist() == adata.obs_names.tolist()
    # What a h5ad cannot hold is a column named as the index, with other values.
    assert store.obs.index.name not in store.obs.columns


def test_tfds_reads_them(adata, store):
    example = next(iter(tfds.builder_from_directory(store.folder).as_data_source("train")))
    assert example["cell_id"].decode() == adata.obs_names[0]
    np.testing.assert_array_equal(example["tokens"], store.read([0])[0])
    assert example["obs:cell_id"].decode() == adata.obs["cell_id"].iloc[0]
    assert example["obs:tokens"] == adata.obs["tokens"].iloc[0]


def test_a_tokenised_dataset_and_back(adata, store, tmp_path):
    store_exchange.store_to_dataset(store.folder, tmp_path / "out.parquet")
    written = pd.read_parquet(tmp_path / "out.parquet")
    assert written["cell_id"].tolist() == adata.obs_names.tolist()
    assert written["length"].tolist() == store.lengths.tolist()
    store_exchange.dataset_to_store(tmp_path / "out.parquet", tmp_path / "back", toy_vocabulary())
    assert_same(CellStore.open(tmp_path / "back").obs, adata.obs)


@pytest.mark.parametrize("column", ["cell_id", "tokens"])
def test_the_report_on_a_corpus_counts_them(adata, store, column):
    counted = summarise_corpus(store.folder, [column]).groups[column]
    assert counted.to_dict() == adata.obs[column].astype(str).value_counts().to_dict()
