"""Files and folders of raw counts."""

import functools
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import zarr
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions, ReadLimits
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.tokenization.tokenizer import tokenize_cells
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from tests.campaigns.readers.reader import Reader, Result
from tests.helpers.count_files import WRITERS, example_cells
from tests.helpers.soma_files import write_experiment

_GENES = 83
_TENX = ("matrix.mtx", "features.tsv")


@functools.cache
def genes_of_counts() -> GeneVocabulary:
    """The genes of the example cells, each with a median."""
    ids = [f"ENSG{n:011d}" for n in range(_GENES)]
    medians = np.random.default_rng(1).lognormal(1.0, 0.5, _GENES)
    return GeneVocabulary(ids, [f"SYM{n}" for n in range(_GENES)], medians)


def _read(path: Path) -> Result:
    source = open_counts(path, CountOptions(limits=ReadLimits(probe_seconds=2)))
    batches = list(source.batches(20))
    cells = tokenize_cells(path, genes_of_counts())
    return {
        "counts": sparse.vstack([batch.counts for batch in batches]).toarray(),
        "ids": source.gene_ids,
        "obs": source.obs(),
        "tokens": cells.encodings.tokens,
        "lengths": cells.lengths,
    }


def _plain_counts(path: Path) -> Result:
    """Dense counts as h5py, zarr or scipy give them, with none of the code under test."""
    if path.is_dir() and path.suffix != ".zarr":
        files = {name: file for file in path.iterdir() for name in _TENX if name in file.name}
        counts = scipy.io.mmread(files["matrix.mtx"], spmatrix=False).toarray().T
        return {"counts": _of_genes(counts, _types(files.get("features.tsv")))}
    root = zarr.open_group(path, mode="r") if path.is_dir() else h5py.File(path, "r")
    if path.suffix == ".loom":
        return {"counts": root["matrix"][:].T}
    if path.suffix == ".h5":
        group = root["matrix"] if "matrix" in root else root["GRCh38"]
        counts = _added(group, group["shape"][:][::-1], "csr")
        types = group["features/feature_type"][:].astype(str) if "features" in group else []
        return {"counts": _of_genes(counts, types)}
    x = root["X"]
    if hasattr(x, "keys"):
        return {"counts": _added(x, x.attrs["shape"], x.attrs["encoding-type"][:3])}
    return {"counts": x[:]}


def _types(features: Path | None) -> Sequence[str]:
    """The third column of a table of features; none where there is no such table."""
    if features is None:
        return ()
    with gzip.open(features, "rt", newline=None) as lines:
        return [line.rstrip("\n").split("\t")[2] for line in lines if line.strip()]


def _of_genes(counts: np.ndarray, types: Sequence[str]) -> np.ndarray:
    """Counts of [cells, features] without what another type says is no gene."""
    genes = np.flatnonzero(np.array(types) == "Gene Expression")
    return counts[:, genes] if len(genes) else counts


def _added(group: Any, shape: Any, layout: str) -> np.ndarray:
    data, indices, pointers = (group[name][:] for name in ("data", "indices", "indptr"))
    major = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
    dense = np.zeros(shape, dtype=np.float64)
    np.add.at(dense, (major, indices) if layout == "csr" else (indices, major), data)
    return dense


def _counts(kind: str) -> Reader:
    def write(folder: Path) -> Path:
        return WRITERS[kind](example_cells(n_genes=_GENES), folder)

    return Reader(write, _read, _plain_counts)


def _write_soma(folder: Path) -> Path:
    adata = example_cells(n_cells=20, n_genes=_GENES)
    adata.var_names = adata.var["ensembl_id"].tolist()
    return write_experiment(folder / "soma", adata)


READERS = {kind: _counts(kind) for kind in WRITERS} | {"SOMA": Reader(_write_soma, _read)}
