"""The original's way of tokenising, written plainly: the yardstick of `tokenization.py`."""

import anndata
import numpy as np
import scipy.sparse as sp

CHUNK = 512


def encode(counts, totals, tokens, medians, max_genes):
    """Tokens of each cell: scaled in chunks of cells, each cell's non-zero values sorted.

    Args:
      counts: CSR [cells, genes], all of them genes of the vocabulary.
      totals: [cells].
      tokens: [genes].
      medians: [genes].
      max_genes: of a cell.
    """
    rows = []
    for start in range(0, counts.shape[0], CHUNK):
        part = counts[start : start + CHUNK]
        part = part.multiply(1 / totals[start : start + CHUNK, None]).tocsr() * 10_000
        part = part.multiply(1 / medians[None]).tocsr()
        for cell in range(part.shape[0]):
            row = part[cell]
            rows.append(tokens[row.indices[np.argsort(-row.data)]][:max_genes])
    return rows


def tokenize_file(path, vocabulary, max_length, output):
    """The whole way: a file read into memory, a list of cells, a Hugging Face dataset on disk.

    Genes are looked up one by one; the chosen columns are cut out chunk by chunk, as the original
    does; rows become Python lists, are cut and counted by `map`, and saved.
    """
    import datasets

    adata = anndata.read_h5ad(path)
    column = "ensembl_id" if "ensembl_id" in adata.var else None
    ids = adata.var[column] if column else adata.var_names
    known = {gene: n for n, gene in enumerate(vocabulary.gene_ids.tolist())}
    places = np.array([n for n, gene in enumerate(ids) if gene in known])
    genes = np.array([known[gene] for gene in ids if gene in known])
    tokens = genes + vocabulary.first_gene_token
    medians, cells = vocabulary.medians[genes], []
    for start in range(0, adata.n_obs, CHUNK):
        chunk = adata[start : start + CHUNK, places]
        totals = chunk.obs["n_counts"].to_numpy(dtype=float)
        matrix = sp.csr_matrix(chunk.X / totals[:, None] * 10_000 / medians)
        for cell in range(matrix.shape[0]):
            row = matrix[cell]
            cells.append(tokens[row.indices[np.argsort(-row.data)]].tolist())

    def cut(example):
        kept = example["input_ids"][: max_length - vocabulary.special_per_cell]
        if vocabulary.cls_id is not None:
            kept = [vocabulary.cls_id, *kept, vocabulary.eos_id]
        return {"input_ids": kept, "length": len(kept)}

    dataset = datasets.Dataset.from_dict({"input_ids": cells}).map(cut)
    dataset.save_to_disk(output)
