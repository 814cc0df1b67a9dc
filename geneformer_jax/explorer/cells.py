"""Embedded cells in the plane, and the ranks of genes in cells."""

import functools
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import suffix_of
from geneformer_jax.embedding.embedder import KEY, as_layers, keys_of
from geneformer_jax.embedding.output import provenance_of, read_output
from geneformer_jax.reporting.charts.parts import MAX_POINTS
from geneformer_jax.reporting.figures import umap_positions


class CellMap(NamedTuple):
    """Cells in the plane, at most 20,000, drawn at random.

    Attributes:
      positions: float [cells, 2], a UMAP.
      obs: [cells] columns by cell id.
      total: cells in the file.
    """

    positions: np.ndarray
    obs: pd.DataFrame
    total: int


class Ranks(NamedTuple):
    """Genes of some cells of a store, one after the other.

    Attributes:
      genes: token of each gene of each cell.
      starts: int64 [cells + 1], where a cell begins in them.
      cell_ids: [cells].
      total: cells in the store.
    """

    genes: np.ndarray
    starts: np.ndarray
    cell_ids: np.ndarray
    total: int

    def of(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (cells that have a gene, its rank in each of them, the highest being 1)."""
        found = np.flatnonzero(self.genes == token)
        cells = np.searchsorted(self.starts, found, side="right") - 1
        return cells, found - self.starts[cells] + 1

    def heights(self, token: int) -> pd.Series:
        """How high a gene ranks in each cell: 1 is the first, near 0 the last, 0 not there."""
        cells, ranks = self.of(token)
        heights = np.zeros(len(self.cell_ids))
        heights[cells] = 1 - (ranks - 1) / np.diff(self.starts)[cells]
        return pd.Series(heights, self.cell_ids)


@functools.cache
def read_cells(path: Path) -> CellMap:
    """Reads embedded cells, with a new UMAP where the file has none.

    Raises:
      InputError: the file is damaged, or holds fewer than four cells and no UMAP.
    """
    if suffix_of(path) == ".h5ad":
        rows, obs, total, is_umap = _from_h5ad(path)
    else:
        layers = as_layers(provenance_of(path)["counts"]["hidden_layer"])
        all_rows, table = read_output(path, keys_of(layers))
        shown, total, is_umap = _drawn(len(table)), len(table), False
        rows, obs = np.asarray(all_rows[shown, 0]), table.iloc[shown]
    # Cells that were left out may have a row without numbers.
    is_there = np.isfinite(rows).all(axis=1)
    rows, obs = rows[is_there], obs[is_there]
    return CellMap(rows[:, :2] if is_umap else umap_positions(rows), obs, total)


def _from_h5ad(path: Path) -> tuple[np.ndarray, pd.DataFrame, int, bool]:
    """(positions or embeddings of the drawn cells, their obs, all cells, whether positions)."""
    try:
        with h5py.File(path) as file:
            obs, keys = ad.io.read_elem(file["obs"]), list(file["obsm"])
            umaps = [key for key in keys if key.lower().endswith("umap")]
            key = (umaps or [key for key in keys if key.startswith(KEY)])[0]
            shown = _drawn(len(obs))
            return file["obsm"][key][:][shown], obs.iloc[shown], len(obs), bool(umaps)
    except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path.name} is damaged ({reason}); embed the cells again") from error


def values_of(cell_map: CellMap, column: str | None, store: Path | None, gene: str) -> pd.Series:
    """Returns what to colour cells by.

    Args:
      cell_map: the cells.
      column: of obs; None for one colour.
      store: with their ranks; None without.
      gene: whose rank to take in place of the column; "" for none.

    Raises:
      InputError: there is no store, gene or cell of these.
    """
    obs = cell_map.obs
    if gene and store is None:
        raise InputError("no cell store lies below this folder, which has the ranks of genes")
    if gene:
        return gene_of_cells(store, gene, obs.index)
    return obs[column] if column else pd.Series("cells", obs.index, name="all")


def obs_table(cell_map: CellMap) -> pd.DataFrame:
    """Returns the obs columns by their names as text, behind a column of cell ids."""
    table = cell_map.obs.reset_index(drop=True)
    table.columns = table.columns.astype(str)
    name = "cell"
    while name in table:
        name += " id"
    table.insert(0, name, cell_map.obs.index.astype(str))
    return table


def describe(cell_map: CellMap) -> str:
    """Says which cells are drawn."""
    drawn = len(cell_map.obs)
    if drawn == cell_map.total:
        return f"All {drawn:,} cells."
    if cell_map.total <= MAX_POINTS:
        return f"{drawn:,} of {cell_map.total:,} cells; the others have no embedding."
    return f"{drawn:,} of {cell_map.total:,} cells, drawn at random."


@functools.cache
def read_ranks(folder: Path) -> Ranks:
    """Reads at most 20,000 cells of a store, drawn at random; raises InputError if damaged."""
    store = CellStore.open(folder)
    rows = _drawn(len(store))
    first = store.vocabulary.first_gene_token
    cells = [tokens[tokens >= first] for tokens in store.read(rows)]
    starts = np.concatenate([[0], np.cumsum([len(each) for each in cells])])
    return Ranks(np.concatenate(cells), starts, store.cell_ids[rows], len(store))


def token_named(folder: Path, gene: str) -> int:
    """Returns the token of a gene by its id or symbol.

    Raises:
      InputError: the store's vocabulary has no such gene.
    """
    vocabulary = CellStore(folder).vocabulary
    token = int(vocabulary.tokens_of([gene], symbols="names")[0])
    if token < 0:
        known = [*vocabulary.gene_ids, *vocabulary.symbols]
        raise InputError(
            f'"{gene}" is no gene of the vocabulary{did_you_mean(gene, known)}; give a gene id or '
            "symbol"
        )
    return token


def gene_of_cells(folder: Path, gene: str, cells: pd.Index) -> pd.Series:
    """Returns the height of a gene in the ranking of cells by their ids; NaN of unknown cells.

    Raises:
      InputError: no such gene; none of the cells are in the store.
    """
    heights = read_ranks(folder).heights(token_named(folder, gene))
    values = heights[~heights.index.duplicated()].reindex(cells.astype(str))
    if values.isna().all():
        raise InputError(f"{folder.name} holds none of these cells; choose another store")
    return values.rename(f"{gene}: 1 first, 0 not there")


def _drawn(cells: int) -> np.ndarray:
    """Rows of at most 20,000 cells, in their order."""
    if cells <= MAX_POINTS:
        return np.arange(cells)
    return np.sort(np.random.default_rng(0).choice(cells, MAX_POINTS, replace=False))
