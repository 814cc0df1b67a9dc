"""Cells that are tokenised: stores, data sets of others, vocabularies and dictionaries."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from geneformer_jax.interop.store_exchange import store_to_dataset
from geneformer_jax.interop.tokenized_datasets import read_tokenized
from tests.campaigns.readers.counts import genes_of_counts
from tests.campaigns.readers.reader import Reader, Result
from tests.helpers.count_files import example_cells
from tests.helpers.original_files import small_dictionaries, write_dictionaries
from tests.helpers.small_stores import build


def _read_store(folder: Path) -> Result:
    store = CellStore.open(folder)
    assert store.max_length < 1 << 63
    return {
        "tokens": np.concatenate(store.read(np.arange(len(store)))),
        "lengths": np.asarray(store.lengths),
        "n_genes": np.asarray(store.n_genes),
        "obs": store.obs,
        "vocabulary": store.vocabulary.hash,
    }


def _write_store(folder: Path) -> Path:
    paths = []
    for name in "ab":
        adata = example_cells(n_cells=20, seed=ord(name))
        adata.obs_names = [f"{name}{n}" for n in range(adata.n_obs)]
        adata.write_h5ad(folder / f"{name}.h5ad")
        paths.append(folder / f"{name}.h5ad")
    build(folder / "store", paths, genes_of_counts(), obs=("cell_type", "filter_pass"))
    return folder / "store"


def _tokenized(ending: str) -> Reader:
    def write(folder: Path) -> Path:
        store_to_dataset(_write_store(folder), folder / f"cells.{ending}")
        return folder / f"cells.{ending}"

    def read(path: Path) -> Result:
        cells = read_tokenized(path, genes_of_counts())
        return {"tokens": cells.encodings.tokens, "lengths": cells.lengths, "obs": cells.obs}

    def expected(path: Path) -> Result:
        lists = pq.read_table(path)["input_ids"].to_pylist()
        return {"tokens": np.concatenate(lists), "lengths": np.array([len(x) for x in lists])}

    return Reader(write, read, expected if ending == "parquet" else None)


def _write_dictionaries(folder: Path) -> Path:
    return write_dictionaries(folder / "gc", small_dictionaries())


def _describe(vocabulary: GeneVocabulary) -> Result:
    return {
        "hash": vocabulary.hash,
        "symbols": vocabulary.symbols,
        "tokens": vocabulary.tokens_of([*vocabulary.gene_ids[::3], "sym3", "none"]),
    }


def _write_vocabulary(folder: Path) -> Path:
    genes = genes_of_counts()
    mapping = {"SYM3": genes.gene_ids[5], "OLD": genes.gene_ids[7]}
    dataclasses.replace(genes, id_mapping=mapping).save(folder / "vocabulary", {})
    return folder / "vocabulary"


READERS = {
    "store": Reader(_write_store, _read_store, sealed=True),
    "parquet": _tokenized("parquet"),
    "arrow data set": _tokenized("dataset"),
    "dictionaries": Reader(
        _write_dictionaries, lambda path: _describe(read_original_vocabulary(path))
    ),
    "vocabulary": Reader(
        _write_vocabulary, lambda path: _describe(GeneVocabulary.load(path)), sealed=True
    ),
}
