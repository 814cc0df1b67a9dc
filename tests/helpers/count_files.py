"""Small count files of every format and layout, made from one AnnData by independent writers."""

import gzip
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import zarr
from anndata.io import write_elem
from scipy import sparse

from geneformer_jax.inference.written_anndata import without_shards


def example_cells(n_cells=57, n_genes=83, seed=0, dtype=np.int32):
    """An AnnData with raw counts, an empty cell and an empty gene; n_counts exceeds the sums."""
    rng = np.random.default_rng(seed)
    dense = rng.poisson(rng.gamma(0.4, 1.5, size=(n_cells, n_genes)))
    dense[n_cells // 2] = 0
    dense[:, n_genes // 3] = 0
    totals = dense.sum(1).astype(np.float64)
    obs = pd.DataFrame(
        {
            "n_counts": totals + np.where(totals > 0, rng.integers(0, 50, n_cells), 0),
            "cell_type": pd.Categorical(rng.choice(["B", "T", "NK"], n_cells)),
            "donor": [f"d{n % 4}" for n in range(n_cells)],
            "filter_pass": rng.integers(0, 2, n_cells),
        },
        index=[f"CELL{n:04d}-1" for n in range(n_cells)],
    )
    ids = [f"ENSG{n:011d}" for n in rng.permutation(n_genes)]
    var = pd.DataFrame(
        {"ensembl_id": ids, "gene_symbol": [f"SYM{n}" for n in range(n_genes)]},
        index=[f"{n}" for n in range(n_genes)],
    )
    return anndata.AnnData(sparse.csr_matrix(dense.astype(dtype)), obs=obs, var=var)


def with_matrix(adata, layout):
    """A copy whose X is CSR, CSC or dense."""
    copy = adata.copy()
    if layout == "dense":
        copy.X = adata.X.toarray()
    else:
        copy.X = adata.X.tocsc() if layout == "csc" else adata.X.tocsr()
    return copy


def _h5ad(layout, compression=None):
    def write(adata, folder):
        path = folder / "counts.h5ad"
        with_matrix(adata, layout).write_h5ad(path, compression=compression)
        return path

    return write


def _zarr(layout, version, chunks=None):
    def write(adata, folder):
        path = folder / "counts.zarr"
        root = zarr.open_group(path, mode="w", zarr_format=version)
        copy = with_matrix(adata, layout)
        # Anndata warns that it will shard by default, unless this is set.
        with without_shards():
            for name in ("obs", "var", "X"):
                options = {"chunks": chunks} if chunks and name == "X" else {}
                write_elem(root, name, getattr(copy, name), dataset_kwargs=options)
        return path

    return write


def _h5ad_chunked(chunks):
    def write(adata, folder):
        path = _h5ad("dense")(adata, folder)
        with h5py.File(path, "r+") as root:
            attributes = dict(root["X"].attrs)
            del root["X"]
            dense = adata.X.toarray()
            root.create_dataset("X", data=dense, chunks=chunks, compression="gzip")
            root["X"].attrs.update(attributes)
        return path

    return write


def _loom(chunks):
    def write(adata, folder):
        path = folder / "counts.loom"
        options = {"chunks": chunks, "compression": "gzip"} if chunks else {}
        with h5py.File(path, "w") as root:
            root.create_dataset("matrix", data=adata.X.T.toarray(), **options)
            root.create_group("layers")
            genes, cells = root.create_group("row_attrs"), root.create_group("col_attrs")
            genes["ensembl_id"] = np.array(adata.var["ensembl_id"], dtype=h5py.string_dtype())
            genes["Gene"] = np.array(adata.var["gene_symbol"], dtype="S")
            cells["CellID"] = np.array(adata.obs_names, dtype=h5py.string_dtype())
            for name, values in adata.obs.items():
                text = values.dtype.kind not in "if"
                cells[name] = values.to_numpy("S" if text else None)
            cells["embedding"] = np.zeros((adata.n_obs, 2))
        return path

    return write


def _tenx_h5(version):
    def write(adata, folder):
        path = folder / "counts.h5"
        by_cell = adata.X.tocsr()
        with h5py.File(path, "w") as root:
            group = root.create_group("matrix" if version == 3 else "GRCh38")
            group["data"], group["indices"] = by_cell.data, by_cell.indices.astype(np.int64)
            group["indptr"] = by_cell.indptr.astype(np.int64)
            group["shape"] = np.array(adata.shape[::-1], np.int32)
            group["barcodes"] = np.array(adata.obs_names, dtype="S")
            ids, names = (np.array(adata.var[c], "S") for c in ("ensembl_id", "gene_symbol"))
            if version == 2:
                group["genes"], group["gene_names"] = ids, names
                return path
            features = group.create_group("features")
            features["id"], features["name"] = ids, names
            features["feature_type"] = np.full(adata.n_vars, b"Gene Expression")
            features["_all_tag_keys"] = np.array([b"genome"])
        return path

    return write


def _mtx(version, prefix="", by_gene=False):
    def write(adata, folder):
        folder = folder / "sample"
        folder.mkdir()
        by_feature = adata.X.T.tocsr() if by_gene else adata.X.T.tocsc()
        scipy.io.mmwrite(folder / f"{prefix}matrix.mtx", by_feature)
        columns = [adata.var["ensembl_id"], adata.var["gene_symbol"]]
        if version == 3:
            columns.append(["Gene Expression"] * adata.n_vars)
        lines = ["\t".join(row) for row in zip(*columns, strict=True)]
        genes = "features.tsv" if version == 3 else "genes.tsv"
        (folder / f"{prefix}{genes}").write_text("\n".join(lines) + "\n")
        (folder / f"{prefix}barcodes.tsv").write_text("\n".join(adata.obs_names) + "\n")
        if version == 3:
            for file in list(folder.iterdir()):
                Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
                file.unlink()
        return folder

    return write


WRITERS = {
    "h5ad csr": _h5ad("csr"),
    "h5ad csr gzip": _h5ad("csr", "gzip"),
    "h5ad csc": _h5ad("csc"),
    "h5ad csc lzf": _h5ad("csc", "lzf"),
    "h5ad dense": _h5ad("dense"),
    "h5ad dense gzip": _h5ad("dense", "gzip"),
    "h5ad dense chunked by gene": _h5ad_chunked((57, 3)),
    "zarr 2 csr": _zarr("csr", 2),
    "zarr 2 csc": _zarr("csc", 2),
    "zarr 2 dense": _zarr("dense", 2),
    "zarr 3 csr": _zarr("csr", 3),
    "zarr 3 csr small chunks": _zarr("csr", 3, (100,)),
    "zarr 3 csc": _zarr("csc", 3),
    "zarr 3 dense": _zarr("dense", 3, (10, 20)),
    "loom": _loom((64, 32)),
    "loom chunked by gene": _loom((1, 57)),
    "loom contiguous": _loom(None),
    "10x h5 version 3": _tenx_h5(3),
    "10x h5 version 2": _tenx_h5(2),
    "10x mtx version 3 gz": _mtx(3),
    "10x mtx version 2": _mtx(2),
    "10x mtx by gene, prefixed": _mtx(2, "GSM1_", by_gene=True),
}
