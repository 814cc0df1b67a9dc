"""What results say of one gene: its ranks in cells, its neighbours, its classes."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from sklearn.metrics.pairwise import cosine_similarity

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.embedder import as_layers, keys_of
from geneformer_jax.embedding.output import provenance_of, read_output
from geneformer_jax.explorer.cells import read_ranks, token_named
from geneformer_jax.explorer.folder import Results
from geneformer_jax.finetuning.classification.predictions import average_by_gene, read_predictions
from geneformer_jax.perturbation.layout import EDITS, JOINT
from geneformer_jax.perturbation.statistics.tables import read_table
from geneformer_jax.reporting import charts

NEIGHBOURS = 25
_BINS = 50


def known_genes(results: Results) -> pd.DataFrame:
    """Returns all genes of stores, gene embeddings and edits: gene (symbol or id), gene_id."""
    parts = []
    for read, paths in (
        (_of_store, results.stores),
        (_of_embeddings, results.gene_embeddings),
        (_of_edits, results.perturbations),
    ):
        for path in paths.values():
            # What is damaged is said where it is looked at.
            with contextlib.suppress(InputError):
                parts.append(read(path))
    symbols = pd.concat([pd.Series([], dtype=object), *parts])
    symbols = symbols[~symbols.index.duplicated()].astype(str)
    ids = symbols.index.astype(str)
    return pd.DataFrame({"gene": np.where(symbols == "", ids, symbols), "gene_id": ids})


def _of_store(folder: Path) -> pd.Series:
    vocabulary = CellStore(folder).vocabulary
    return pd.Series(vocabulary.symbols, vocabulary.gene_ids)


def _of_embeddings(path: Path) -> pd.Series:
    table = _embedded(path)[1]
    return table.loc[~table.index.str.startswith("<"), "symbol"]


def _of_edits(folder: Path) -> pd.Series:
    edits = read_table(folder / EDITS, ["perturbed", "perturbed_symbol"]).astype(str)
    edits = edits[~edits["perturbed"].str.contains(JOINT, regex=False)]
    return edits.set_index("perturbed")["perturbed_symbol"]


def rank_chart(store: Path, gene: str) -> tuple[alt.LayerChart, str]:
    """Charts in how many cells a gene has which rank; returns the chart and what it shows.

    Raises:
      InputError: the store is damaged or does not know the gene.
    """
    ranks = read_ranks(store)
    _, of_gene = ranks.of(token_named(store, gene))
    read = len(ranks.cell_ids)
    counts, edges = np.histogram(of_gene, _BINS, (1, max(of_gene.max(initial=2), 2)))
    words = f"Among the genes of {len(of_gene):,} of {read:,} cells"
    if len(of_gene):
        words += f", at the median at rank {np.median(of_gene):,.0f}"
    if read < ranks.total:
        words += f"; {read:,} cells were drawn at random from {ranks.total:,}"
    return charts.histogram(counts, edges, ("rank in the cell, 1 first", "cells")), f"{words}."


def neighbours(path: Path, gene_id: str) -> pd.DataFrame:
    """Returns the genes of the nearest embeddings, nearest first; none of an unknown gene.

    Columns: gene, gene_id, cosine, n_cells.
    """
    vectors, table = _embedded(path)
    if gene_id not in table.index:
        return pd.DataFrame()
    place = table.index.get_loc(gene_id)
    cosines = cosine_similarity(vectors[[place]], vectors)[0]
    is_other = ~table.index.str.startswith("<")
    is_other[place] = False
    rows = np.flatnonzero(is_other)
    rows = rows[np.argsort(-cosines[rows], kind="stable")][:NEIGHBOURS]
    ids, symbols = table.index[rows].astype(str), table["symbol"].iloc[rows].astype(str)
    return pd.DataFrame({
        "gene": np.where(symbols == "", ids, symbols), "gene_id": ids, "cosine": cosines[rows],
        "n_cells": table["n_cells"].iloc[rows].to_numpy(),
    })  # fmt: skip


@functools.cache
def _embedded(path: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """Embeddings of genes in the first layer [genes, D], and their table by gene id."""
    layers = as_layers(provenance_of(path)["counts"]["hidden_layer"])
    rows, table = read_output(path, keys_of(layers))
    return rows[:, 0], table.set_axis(table.index.astype(str))


def classes_of_gene(classifier: Path, gene_id: str) -> pd.DataFrame:
    """Returns what each method of a task on genes says of one; nothing of tasks on cells.

    Columns: method, fold, label, predicted, occurrences and the mean probability of each class.
    """
    found = [_predicted(path, gene_id) for path in _gene_predictions(classifier)]
    found = [each for each in found if len(each)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _gene_predictions(classifier: Path) -> Iterator[Path]:
    for path in sorted((classifier / "predictions").glob("*.parquet")):
        if "gene" in pq.read_schema(path).names:
            yield path


def _predicted(path: Path, gene_id: str) -> pd.DataFrame:
    rows = read_predictions(path)
    rows = rows[rows["gene"] == gene_id]
    if rows.empty:
        return rows
    averaged = average_by_gene(rows).drop(columns="gene")
    return averaged.assign(method=path.stem.replace("_", " ")).set_index("method").reset_index()
