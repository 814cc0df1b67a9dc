"""What a corpus of tokenised cells holds, counted in bounded memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.label_counts import LabelCounts, add_values
from geneformer_jax.cells.store.layout import obs_kinds
from geneformer_jax.cells.store.obs_columns import stored_name
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.progress import Progress
from geneformer_jax.common.provenance import read_provenance
from geneformer_jax.common.threads import compiled

_CELLS_PER_BATCH = 4096


@dataclass(frozen=True, eq=False)
class CorpusSummary:
    """The counts behind a corpus report.

    Attributes:
      cells: number of cells in the store.
      cells_in_files: number of cells in the files it was made of.
      dropped: reason -> number of cells that were left out.
      sources: one row per file: path, cells_in_file, cells, dropped.
      remarks: what else is to be said of single sources, such as which cells of an experiment were
        read.
      length_counts: int64 [max_length + 1], number of cells of each number of tokens.
      covered_cells: number of cells all of whose genes fit into the context.
      covered_exactly: False where the store does not know how many genes were cut off; then only
        cells below the limit count as covered, and a few at the limit may be covered too.
      cells_per_gene: int64 [G], number of cells with the gene among their tokens, in the order of
        the vocabulary's genes. Genes beyond the context of a cell are not in the store.
      groups: column -> number of cells of each value, largest first; `NO_VALUE` for none.
      by_label: kept and dropped cells of each label, see `count_by_label`.
    """

    cells: int
    cells_in_files: int
    dropped: dict[str, int]
    sources: pd.DataFrame
    remarks: Sequence[str]
    length_counts: np.ndarray
    covered_cells: int
    covered_exactly: bool
    cells_per_gene: np.ndarray
    groups: dict[str, pd.Series]
    by_label: LabelCounts

    @property
    def max_length(self) -> int:
        """Maximal number of tokens of a cell."""
        return len(self.length_counts) - 1

    @property
    def covered(self) -> float:
        """Fraction of cells all of whose genes fit into the context; see `covered_exactly`."""
        return self.covered_cells / self.cells

    @property
    def median_detection(self) -> float:
        """Median number of cells that a gene is found in, over the genes found at all."""
        found = self.cells_per_gene[self.cells_per_gene > 0]
        return float(np.median(found))


def summarise_corpus(folder: Path | str, groupby: Sequence[str] = ()) -> CorpusSummary:
    """Counts what a cell store holds; memory does not grow with the number of cells.

    Args:
      folder: a complete cell store.
      groupby: obs columns to count the values of, such as "tissue".

    Raises:
      InputError: no complete store, or it does not hold a column of `groupby`.
    """
    store = CellStore.open(folder)
    _require_columns(store, groupby)
    counts = read_provenance(store.folder)["counts"]
    sources = [
        (source["path"], source["cells_in_file"], source["cells"], sum(source["dropped"].values()))
        for source in counts["sources"]
    ]
    length_counts = np.bincount(store.lengths, minlength=store.max_length + 1)
    covered = int(length_counts[:-1].sum())
    if store.n_genes is not None:
        room = store.max_length - store.vocabulary.special_per_cell
        covered = int((store.n_genes <= room).sum())
    return CorpusSummary(
        cells=len(store),
        cells_in_files=counts["cells_in_files"],
        dropped=counts["dropped"],
        sources=pd.DataFrame(sources, columns=["path", "cells_in_file", "cells", "dropped"]),
        remarks=[f"{s['path']}: {s['remark']}" for s in counts["sources"] if "remark" in s],
        length_counts=length_counts,
        covered_cells=covered,
        covered_exactly=store.n_genes is not None,
        cells_per_gene=_count_cells_per_gene(store),
        groups={name: _count_values(store, name) for name in groupby},
        by_label=counts.get("by_label", {}),
    )


def _require_columns(store: CellStore, names: Sequence[str]) -> None:
    known = list(obs_kinds(store.folder))
    for name in names:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise InputError(
                f'{store.folder} has no obs column "{name}"{did_you_mean(name, known)}; it '
                f"has {listed}; name one of them, or tokenise again with `obs`={name}"
            )


def _count_values(store: CellStore, name: str) -> pd.Series:
    """Number of cells of each value of an obs column, largest first."""
    counts: Counter[str] = Counter()
    for batch in store.obs_batches(_CELLS_PER_BATCH, [stored_name(name)]):
        add_values(counts, batch.column(0))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return pd.Series(dict(ordered), name=name, dtype=np.int64)


def _count_cells_per_gene(store: CellStore) -> np.ndarray:
    first_gene, cells = store.vocabulary.first_gene_token, len(store)
    counts = np.zeros(store.vocabulary.size, np.int64)
    last_cell = np.full(store.vocabulary.size, -1, np.int64)
    with Progress(cells, "counting genes", "cells") as progress:
        for start in range(0, cells, _CELLS_PER_BATCH):
            batch = store.read(np.arange(start, min(start + _CELLS_PER_BATCH, cells)))
            lengths = np.array([len(cell) for cell in batch])
            cell_of_token = np.repeat(np.arange(start, start + len(batch)), lengths)
            _count_new(np.concatenate(batch), cell_of_token, last_cell, counts)
            progress.advance(len(batch))
    return counts[first_gene:]


@compiled
def _count_new(
    tokens: np.ndarray, cell_of_token: np.ndarray, last_cell: np.ndarray, counts: np.ndarray
) -> None:
    """Counts each token once per cell: in datasets of the original a cell may repeat one."""
    for position in range(len(tokens)):
        token, cell = tokens[position], cell_of_token[position]
        if last_cell[token] != cell:
            last_cell[token] = cell
            counts[token] += 1
