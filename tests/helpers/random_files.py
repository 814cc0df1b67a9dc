"""Valid files of counts at random: ids, matrices, obs and containers in any combination.

`files` is a strategy of hypothesis. What a file must give is kept apart from how it is written.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import zarr
from anndata.io import write_elem
from hypothesis import strategies as st
from scipy import sparse

from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, GeneVocabulary
from geneformer_jax.inference.written_anndata import without_shards

GENES = 30
NUMBER_TYPES = ("<i4", "<i8", "<f4", "<f8", "<u2", "<f2", ">f4", ">i4")
BAD_VALUES = (-1.0, 0.5, np.nan, np.inf, 2.0**24 + 2)


class Case(NamedTuple):
    """A file to be written.

    Attributes:
      counts: int [cells, genes].
      genes: int [genes] the number of each gene in the vocabulary; beyond it is no gene of it.
      ids: how genes are named.
      matrix: layout, number type, and where the counts lie.
      obs: names of further columns.
      totals: of each cell, where the file states them.
      container: how it is written.
      bad: (value, cell, gene) that is no raw count, or None.
    """

    counts: np.ndarray
    genes: np.ndarray
    ids: str
    layout: str
    kind: str
    place: str
    obs: tuple[str, ...]
    totals: np.ndarray | None
    container: str
    bad: tuple[float, int, int] | None


def vocabulary():
    """Genes with medians that make few ties, and symbols."""
    ids = np.array([f"ENSG{n:011d}" for n in range(GENES)])
    medians = np.random.default_rng(2).lognormal(1.0, 0.7, GENES)
    names = np.array([f"SYM{n}" for n in range(GENES)])
    return GeneVocabulary(ids, names, medians, V1_SPECIAL_TOKENS)


def expected_tokens(case, genes):
    """Each cell's tokens, by numpy alone: genes of the vocabulary by counts / total / median."""
    rows = []
    for counts in case.counts:
        known = np.flatnonzero((counts > 0) & (case.genes < GENES))
        total = counts.sum() if case.totals is None else case.totals[len(rows)]
        medians = genes.medians[case.genes[known]]
        values = counts[known] * (1 / total) * 10_000 * (1 / medians)
        ranked = known[np.argsort(-values, kind="stable")]
        rows.append((genes.first_gene_token + case.genes[ranked]).tolist())
    return rows


@st.composite
def files(draw):
    """Cases of valid files, a few of which have a value that is no raw count."""
    seed, n_cells = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 8))
    rng = np.random.default_rng(seed)
    n_genes = draw(st.integers(3, 25))
    genes = rng.permutation(GENES + 10)[:n_genes]
    genes[0] = rng.integers(GENES)
    genes[1:][genes[1:] == genes[0]] = GENES + 11
    counts = rng.poisson(rng.gamma(0.5, 2.0, (n_cells, n_genes)))
    counts[:, 0] += 1
    totals = counts.sum(1) + rng.integers(0, 9, n_cells) if draw(st.booleans()) else None
    container = draw(st.sampled_from(sorted(WRITERS)))
    anndata_like = container not in ("loom", "10x h5", "mtx", "kb", "fry", "parse")
    bad = draw(st.sampled_from([None, None, None, *BAD_VALUES]))
    return Case(
        counts=counts,
        genes=genes,
        ids=draw(st.sampled_from(("index", "column", "versions", "genome"))),
        layout=draw(st.sampled_from(("csr", "csc", "dense"))),
        kind=draw(st.sampled_from(NUMBER_TYPES)),
        place=draw(st.sampled_from(("X", "layer", "raw"))) if anndata_like and bad is None else "X",
        obs=tuple(draw(st.sets(st.sampled_from(sorted(COLUMNS)), max_size=3))),
        totals=totals if anndata_like else None,
        container=container,
        bad=None if bad is None else (bad, int(rng.integers(n_cells)), 0),
    )


COLUMNS = {
    "cell_id": lambda n: np.array([f"x{i}" for i in range(n)]),
    "tokens": np.arange,
    "a, b": lambda n: pd.Categorical(["u", "v"] * n)[:n],
    "length": lambda n: np.arange(n) / 2,
    "naïve": lambda n: pd.array([True, None] * n, dtype="boolean")[:n],
}


def gene_names(case):
    """(Ids, symbols) of the columns."""
    ids = [f"ENSG{n:011d}" for n in case.genes]
    if case.ids == "versions":
        ids = [f"{gene}.{n % 7}" for n, gene in enumerate(ids)]
    if case.ids == "genome":
        ids = [f"GRCh38_{gene}" for gene in ids]
    return ids, [f"GENE{n}" for n in case.genes]


def _matrix(case):
    """Counts as they are stored, with the bad value."""
    dense = case.counts.astype(case.kind)
    if case.bad is not None:
        dense = case.counts.astype(np.float64)
        dense[case.bad[1], case.bad[2]] = case.bad[0]
    return dense


def _names(case):
    return [f"c{n}" for n in range(len(case.counts))]


def _anndata(case):
    ids, symbols = gene_names(case)
    in_column = case.ids == "column"
    var = pd.DataFrame({"gene_ids": ids} if in_column else {"gene_name": symbols})
    var.index = symbols if in_column else ids
    cells = len(case.counts)
    obs = pd.DataFrame({name: COLUMNS[name](cells) for name in case.obs}, index=_names(case))
    if case.totals is not None:
        obs["n_counts"] = case.totals.astype(float)
    logarithms = np.log1p(case.counts * 0.37).astype(np.float32)
    adata = anndata.AnnData(sparse.csr_matrix(logarithms), obs=obs, var=var)
    if case.place == "raw":
        adata.raw = adata.copy()
    if case.place == "layer":
        adata.layers["counts"] = adata.X.copy()
    return adata


def _put(root, case):
    """Writes the AnnData, and the counts in their place, layout and number type."""
    adata = _anndata(case)
    for name in ("obs", "var"):
        write_elem(root, name, getattr(adata, name))
    if case.place == "raw":
        root.create_group("raw")
        write_elem(root["raw"], "var", adata.var)
    if case.place == "layer":
        root.create_group("layers")
    if case.place != "X":
        write_elem(root, "X", adata.X)
    place = {"X": "X", "layer": "layers/counts", "raw": "raw/X"}[case.place]
    dense = _matrix(case)
    if case.layout == "dense":
        _store(root, place, dense)
        root[place].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return
    # SciPy holds no half floats and no foreign byte order: the type is put on at last.
    whole = sparse.csr_matrix(dense.astype(np.float64)).asformat(case.layout)
    group = root.create_group(place)
    group.attrs.update({"encoding-type": f"{case.layout}_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = list(dense.shape)
    _store(group, "data", whole.data.astype(dense.dtype))
    _store(group, "indices", whole.indices)
    _store(group, "indptr", whole.indptr)


def _store(group, name, values):
    if isinstance(group, h5py.Group):
        group[name] = values
    else:
        group.create_array(name, data=values)


def _hdf5(name, inner=""):
    def write(case, folder):
        with h5py.File(folder / name, "w") as root:
            _put(root.create_group(inner) if inner else root, case)
        return folder / name

    return write


def _zarr(version, inner="", zipped=False):
    def write(case, folder):
        path = folder / "cells.zarr"
        root = zarr.open_group(path, mode="w", zarr_format=version)
        with without_shards():
            _put(root.create_group(inner) if inner else root, case)
        return Path(shutil.make_archive(path, "zip", path)) if zipped else path

    return write


def _loom(case, folder):
    ids, symbols = gene_names(case)
    with h5py.File(folder / "cells.loom", "w") as root:
        root["matrix"] = _matrix(case).T
        root["row_attrs/Accession"] = np.array(ids, h5py.string_dtype())
        root["row_attrs/Gene"] = np.array(symbols, h5py.string_dtype())
        root["col_attrs/CellID"] = np.array(_names(case), h5py.string_dtype())
    return folder / "cells.loom"


def _tenx(case, folder):
    ids, symbols = gene_names(case)
    dense = _matrix(case)
    cells = sparse.csr_matrix(dense.astype(np.float64))
    with h5py.File(folder / "cells.h5", "w") as root:
        group = root.create_group("matrix")
        group["data"] = cells.data.astype(dense.dtype)
        group["indices"], group["indptr"] = cells.indices, cells.indptr
        group["shape"] = np.array(dense.shape[::-1])
        group["barcodes"] = np.array(_names(case), "S")
        group["features/id"], group["features/name"] = np.array(ids, "S"), np.array(symbols, "S")
        group["features/feature_type"] = np.full(len(ids), b"Gene Expression")
    return folder / "cells.h5"


def _lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))


def _mtx(matrix, cells, genes):
    """A folder of a matrix of cells by genes, turned over for 10x."""

    def write(case, folder):
        folder = folder / "cells"
        folder.mkdir()
        dense = _matrix(case)
        dense = dense.astype(np.float64 if dense.dtype.kind == "f" else np.int64)
        by_gene = genes == "features.tsv"
        scipy.io.mmwrite(folder / matrix, sparse.coo_matrix(dense.T if by_gene else dense))
        ids, symbols = gene_names(case)
        if genes.endswith(".csv"):
            table = pd.DataFrame({"gene_id": ids, "gene_name": symbols})
            table.to_csv(folder / genes, index=False)
            pd.DataFrame({"bc_wells": _names(case)}).to_csv(folder / cells, index=False)
            return folder
        with_symbols = [f"{gene}\t{name}" for gene, name in zip(ids, symbols, strict=True)]
        _lines(folder / genes, with_symbols if by_gene else ids)
        _lines(folder / cells, _names(case))
        return folder

    return write


WRITERS = {
    "h5ad": _hdf5("cells.h5ad"),
    "h5ad as h5": _hdf5("cells.h5"),
    "h5ad, odd name": _hdf5("my, CELLS.H5AD"),
    "h5mu": _hdf5("cells.h5mu", "mod/rna"),
    "zarr 2": _zarr(2),
    "zarr 3": _zarr(3),
    "zarr 3, zipped": _zarr(3, zipped=True),
    "zarr of MuData": _zarr(2, "mod/rna"),
    "zarr of SpatialData": _zarr(3, "tables/table"),
    "loom": _loom,
    "10x h5": _tenx,
    "mtx": _mtx("matrix.mtx", "barcodes.tsv", "features.tsv"),
    "kb": _mtx("cells_x_genes.mtx", "cells_x_genes.barcodes.txt", "cells_x_genes.genes.txt"),
    "fry": _mtx("quants_mat.mtx", "quants_mat_rows.txt", "quants_mat_cols.txt"),
    "parse": _mtx("DGE.mtx", "cell_metadata.csv", "all_genes.csv"),
}


def write(case, folder):
    """Writes a case into an empty folder; returns the path to be read."""
    return WRITERS[case.container](case, folder)
