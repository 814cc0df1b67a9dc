"""A classification task: labels of genes or cells, the cells to learn them from, and the folds."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_jax.batches.labelled import UNLABELLED, LabelledCells
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification.config import CELL, GENE, SplitRule
from geneformer_jax.finetuning.classification.splits import Split, make_split
from geneformer_jax.inference.cells import ChosenCells
from geneformer_jax.inference.draw import ORIGINAL_SEED
from geneformer_jax.model.heads import HeadTask

_CELLS_AT_A_TIME = 4_096


class FoldData(NamedTuple):
    """The labelled cells of a fold.

    Attributes:
      train, valid, test: cells with their labels, or with those of their genes; `valid` may be
        empty.
    """

    train: LabelledCells
    valid: LabelledCells
    test: LabelledCells


@dataclass(frozen=True, eq=False)
class ClassificationTask:
    """Labels, cells and folds, under the ids of the input.

    Attributes:
      name: short, for files.
      unit: "gene" or "cell": what has a label.
      classes: names of the C classes, in the order of the logits.
      labels: class name of each id that takes part, indexed by id (text).
      split: of those ids.
      cells: tokenised cells.
      groups: group of each id that no fold divides, or None.
      max_cells: genes only: cells drawn for each side of a fold; 0 takes all that have a
        labelled gene of that side.
      rule: by which `split` was made; None where it was given.
      summary: lines that describe it.
    """

    name: str
    unit: str
    classes: tuple[str, ...]
    labels: pd.Series
    split: Split
    cells: EncodedCells
    groups: pd.Series | None = None
    max_cells: int = 0
    rule: SplitRule | None = None
    summary: tuple[str, ...] = ()

    def __post_init__(self):
        if self.unit not in (GENE, CELL):
            raise InputError(f'the unit of a task is "{self.unit}"; it must be "gene" or "cell"')

    @property
    def outputs(self) -> tuple[HeadTask, ...]:
        """Of a network's head: one classification."""
        return (HeadTask("label", self.classes),)

    def fold_data(self, fold: int) -> FoldData:
        """Returns the labelled cells of each side of a fold, as numbers.

        A cell may be on several sides of a gene task: genes are held out. Cells beyond
        `max_cells` are drawn from those with a labelled gene of the side, with the seed of
        the original.
        """
        return FoldData(*(self._side(fold, side) for side in FoldData._fields))

    def with_labels(self, labels: pd.Series) -> "ClassificationTask":
        """Returns the task with other labels of the same ids, for controls.

        Ids are split again by the same rule, so that folds stay stratified; a given split stays.
        """
        split = self.split
        if self.rule is not None:
            split = make_split(labels, self.rule, self.groups)
        return dataclasses.replace(self, labels=labels, split=split)

    def gene_frequencies(self) -> pd.Series:
        """Gene tasks: number of cells that have each labelled gene, indexed by gene id."""
        counts = np.bincount(self._occurrences.tokens, minlength=self.cells.vocabulary.size)
        return pd.Series(counts[self.tokens.to_numpy()], index=self.labels.index)

    @cached_property
    def tokens(self) -> pd.Series:
        """Gene tasks: token of each labelled gene, indexed by gene id."""
        tokens = self.cells.vocabulary.tokens_of(self.labels.index, symbols="never")
        return pd.Series(tokens, index=self.labels.index)

    @cached_property
    def class_numbers(self) -> pd.Series:
        """Number of the class of each id, indexed by id."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return self.labels.map(numbers).astype(np.int32)

    @cached_property
    def _occurrences(self) -> "Occurrences":
        return find_occurrences(self.cells, self.tokens.to_numpy())

    @cached_property
    def _row_of(self) -> pd.Series:
        return pd.Series(np.arange(len(self.cells.obs)), index=self.cells.obs.index.astype(str))

    def _side(self, fold: int, side: str) -> LabelledCells:
        ids = self.split.ids(fold, side)
        numbers = self.class_numbers[ids].to_numpy()
        if self.unit == CELL:
            rows = self._row_of[ids].to_numpy(np.int64)
            order = np.argsort(rows)
            return LabelledCells(rows[order], numbers[order])
        tokens = self.tokens[ids].to_numpy()
        labels = np.full(self.cells.vocabulary.size, UNLABELLED, np.int32)
        labels[tokens] = numbers
        rows = self._occurrences.cells_with(tokens)
        return LabelledCells(_draw(rows, self.max_cells), labels)


class Occurrences(NamedTuple):
    """Positions of chosen genes in cells.

    Attributes:
      cells: int64 [n] row of the cell of each occurrence, ascending.
      tokens: int32 [n] its gene.
      positions: int32 [n] its rank in the cell: 0 for the first gene.
    """

    cells: np.ndarray
    tokens: np.ndarray
    positions: np.ndarray

    def cells_with(self, tokens: np.ndarray) -> np.ndarray:
        """Returns int64 [m] the rows of cells that have one of these tokens, ascending."""
        return np.unique(self.cells[np.isin(self.tokens, tokens)])


def find_occurrences(cells: EncodedCells, tokens: np.ndarray) -> Occurrences:
    """Finds genes in cells, a few thousand cells at a time."""
    wanted = np.zeros(cells.vocabulary.size, bool)
    wanted[tokens] = True
    first = 0 if cells.vocabulary.cls_id is None else 1
    parts: list[tuple[np.ndarray, ...]] = []
    total = len(cells.lengths)
    for start in range(0, total, _CELLS_AT_A_TIME):
        rows = np.arange(start, min(start + _CELLS_AT_A_TIME, total))
        read = cells.read(rows)
        lengths = np.array([len(each) for each in read])
        flat = np.concatenate(read) if len(read) else np.zeros(0, np.uint16)
        hits = np.flatnonzero(wanted[flat])
        cell = np.repeat(np.arange(len(rows)), lengths)[hits]
        offsets = np.cumsum(lengths) - lengths
        parts.append((rows[cell], flat[hits].astype(np.int32), hits - offsets[cell] - first))
    if not parts:
        return Occurrences(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))
    joined = [np.concatenate(each) for each in zip(*parts, strict=True)]
    return Occurrences(joined[0].astype(np.int64), joined[1], joined[2].astype(np.int32))


def labelled_cells(
    cells: EncodedCells, labels: pd.Series, max_cells: int
) -> tuple[ChosenCells, np.ndarray]:
    """Returns the cells with at least one labelled gene, at most `max_cells`, drawn at random.

    The paper's task draws 10,000 cells of a random sample in this way.

    Returns:
      (the cells, ids of the genes that are in none of them).

    Raises:
      InputError: no cell has one.
    """
    tokens = cells.vocabulary.tokens_of(labels.index, symbols="never")
    occurrences = find_occurrences(cells, tokens)
    rows = np.unique(occurrences.cells)
    if not len(rows):
        raise InputError(
            f"none of the {len(cells.lengths):,} cells has one of the {len(labels):,} labelled "
            "genes; give cells that express them"
        )
    kept = _draw(rows, max_cells)
    dropped = dict(getattr(cells, "dropped", {}))
    dropped |= {"no labelled gene": len(cells.lengths) - len(rows)}
    dropped |= {"not drawn": dropped.get("not drawn", 0) + len(rows) - len(kept)}
    found = np.unique(occurrences.tokens[np.isin(occurrences.cells, kept)])
    absent = labels.index[~np.isin(tokens, found)].to_numpy(object)
    return ChosenCells(cells, kept, {reason: n for reason, n in dropped.items() if n}), absent


def _draw(rows: np.ndarray, max_cells: int) -> np.ndarray:
    if not max_cells or len(rows) <= max_cells:
        return rows
    drawn = np.random.default_rng(ORIGINAL_SEED).permutation(len(rows))[:max_cells]
    return np.sort(rows[drawn])
