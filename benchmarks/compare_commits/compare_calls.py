"""The functions that return, of docs/how_to/python.md, written to files: run by compare_commits.py.

python benchmarks/compare_calls.py CHECKPOINT CELL_CLASSIFIER GENE_CLASSIFIER CELLS STORE OUTPUT
"""

import dataclasses
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import geneformer_jax as gf

GENES = ["B2M", "ACTB", "TMSB4X"]


def tokens(adata, vocabulary, output):
    cells = gf.tokenize_cells(adata, vocabulary)
    read = cells.read(np.arange(len(cells.lengths)))
    np.savez(output / "tokens.npz", tokens=np.concatenate(read), lengths=cells.lengths)
    cells.obs.to_csv(output / "obs.csv")
    names = [vocabulary.names_of(each[:10]) for each in read]
    pd.DataFrame(names).to_csv(output / "first_genes.csv")


def embeddings(model, adata, output):
    gf.embed_cells(model, adata).write_h5ad(output / "embedded.h5ad")
    gf.embed_cells(model, adata, mode="gene").write_h5ad(output / "genes.h5ad")
    layers = gf.embed_cells(model, adata, layer=[0, -1])
    layers.write_h5ad(output / "layers.h5ad")


def shifts(model, adata, output):
    few = adata[:5]
    for edit in ("delete", "overexpress"):
        table = gf.perturb_cells(model, few, edit=edit, genes=GENES)
        table.to_parquet(output / f"{edit}.parquet")
    table = gf.perturb_cells(model, few, edit="delete", genes=GENES[:1], gene_shifts="full")
    table.to_parquet(output / "gene_shifts.parquet")


def attention(model, adata, output):
    found = gf.attend_cells(model, adata, GENES)
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if isinstance(value, pd.DataFrame):
            value.to_parquet(output / f"attention_{field.name}.parquet")


def predictions(cell_classifier, gene_classifier, adata, store, output):
    predicted = gf.predict_cells(gf.load_model(cell_classifier), adata)
    predicted.write_h5ad(output / "predicted.h5ad")
    table = gf.predict_genes(gf.load_model(gene_classifier), store)
    table.to_csv(output / "predicted_genes.csv")


def main(checkpoint, cell_classifier, gene_classifier, cells, store, output):
    output = Path(output)
    output.mkdir()
    model, adata = gf.load_model(checkpoint), ad.read_h5ad(cells)
    tokens(adata, model.vocabulary, output)
    embeddings(model, adata, output)
    shifts(model, adata, output)
    attention(model, adata, output)
    predictions(cell_classifier, gene_classifier, adata, store, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
