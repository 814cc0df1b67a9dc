"""Which cells an analysis is about: a store or counts, and some of their cells, in input order."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.options import DEFAULT_OPTIONS, CountArguments, CountOptions
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.formats.paths import as_path, is_counts, is_zarr
from geneformer_jax.cells.store.cell_store import CellStore, EncodedCells
from geneformer_jax.cells.store.shorter_cells import shorten
from geneformer_jax.cells.tokenization.indices import require_indices
from geneformer_jax.cells.tokenization.quality_control import describe_left_out
from geneformer_jax.cells.tokenization.rank_encoding import describe_cut, describe_lengths
from geneformer_jax.cells.tokenization.tokenizer import (
    TokenizerOptions,
    default_max_length,
    tokenize_source,
)
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.arguments import describe
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.inference.arguments import check_model
from geneformer_jax.inference.draw import ORIGINAL_SEED, check_draw
from geneformer_jax.inference.filters import Filters, passing
from geneformer_jax.interop.tokenized_datasets import is_tokenized_dataset, read_tokenized
from geneformer_jax.model.pretrained import PretrainedModel

if TYPE_CHECKING:
    import anndata

FILTERED_OUT, NOT_DRAWN = "filtered out", "not drawn"


@dataclass(frozen=True, eq=False)
class ChosenCells:
    """Some cells of others, in their order; reads like a CellStore.

    Attributes:
      source: all cells.
      rows: int64 [chosen] numbers of the chosen ones in `source`, ascending.
      dropped: reason -> number of cells left out, those that `source` left out included.
    """

    source: EncodedCells
    rows: np.ndarray
    dropped: Mapping[str, int]

    def __repr__(self) -> str:
        return f"ChosenCells({describe_lengths(self.lengths)})"

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell; int32 [chosen]."""
        return np.asarray(self.source.lengths)[self.rows]

    @functools.cached_property
    def obs(self) -> pd.DataFrame:
        """Their per-cell columns, indexed by cell id."""
        return self.source.obs.iloc[self.rows]

    @property
    def vocabulary(self) -> GeneVocabulary:
        """Of the tokens."""
        return self.source.vocabulary

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens (uint16 arrays) of cells, in the order of `indices`."""
        return self.source.read(self.rows[require_indices("indices", indices, len(self.rows))])


def open_cells(
    cells: EncodedCells | anndata.AnnData | Path | str,
    model: PretrainedModel,
    *,
    whole: bool = False,
    **reading: Unpack[CountArguments],
) -> EncodedCells:
    """Opens cells that are tokenised already, or tokenises counts with the model's vocabulary.

    Cells with more tokens than the model takes are cut to their highest ranked genes.

    Args:
      cells: a store, a tokenised dataset of the original, tokenised cells or counts.
      model: that they are for.
      whole: asks for all genes of each cell, those that do not fit into the model too.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Raises:
      InputError: the cells cannot be read or do not fit the model.
    """
    # Imported where cells are opened, not by all that use cells.
    import anndata

    check_model(model)
    check_vocabulary(model)
    options = CountOptions.from_arguments(reading)
    is_path = isinstance(cells, str | Path)
    if is_path:
        cells = as_path(cells)
    if isinstance(cells, anndata.AnnData):
        source = AnnDataSource(cells, options)
    elif is_path and not is_tokenized_dataset(cells) and _may_be_counts(cells):
        source = open_counts(cells, options)
    else:
        _require_no_options(options)
        encoded = _open_path(cells, model) if is_path else _require_encoded(cells)
        _check_cells(encoded, model, whole)
        return encoded if whole else shorten(encoded, model.config.positions)
    longest = min(default_max_length(model.vocabulary), model.config.positions)
    if whole:
        longest = model.vocabulary.size
    tokenized = tokenize_source(source, model.vocabulary, TokenizerOptions(max_length=longest))
    if (is_cut := tokenized.is_cut).any():
        logger.info(describe_cut(is_cut, longest))
    return tokenized


def places_in_input(cells: ChosenCells) -> tuple[pd.DataFrame, np.ndarray]:
    """Returns (per-cell columns of all cells of the input, int64 rows of the chosen in them).

    Of a store all cells are those that it holds: others were left out when it was made.
    """
    all_obs = getattr(cells.source, "all_obs", None)
    if all_obs is None:
        return cells.source.obs, cells.rows
    return all_obs, cells.source.rows[cells.rows]


def fill_rows(values: np.ndarray, rows: np.ndarray, total: int) -> np.ndarray:
    """Returns float32 [total, ...] with values in some of the rows, and NaN in the others."""
    result = np.full((total, *values.shape[1:]), np.nan, np.float32)
    result[rows] = values
    return result


def _may_be_counts(path: Path) -> bool:
    # Of a collection, which is no source itself, `open_counts` says what to do.
    return path.is_file() or is_counts(path) or is_zarr(path)


def _open_path(path: Path | str, model: PretrainedModel) -> EncodedCells:
    if is_tokenized_dataset(path):
        return read_tokenized(path, model.vocabulary)
    return CellStore.open(path)


def _require_encoded(cells: object) -> EncodedCells:
    """Returns tokenised cells, or raises InputError for an object that is something else."""
    if not all(hasattr(cells, name) for name in ("lengths", "obs", "vocabulary", "read")):
        raise InputError(
            f"`cells` is {describe(cells)}; give an AnnData of raw counts (cells x genes, gene ids "
            "in .var), a file of counts, a cell store, or tokenised cells"
        )
    return cells


def _require_no_options(options: CountOptions) -> None:
    if options != DEFAULT_OPTIONS:
        given = " and ".join(f"`{name}`" for name in options.changed())
        raise InputError(
            f"{given} chooses among counts, but these cells are tokenised already; leave it out"
        )


def reading_facts(cells: EncodedCells) -> dict[str, object]:
    """How cells were read, for a provenance.

    Returns:
      `cells_cut`, the number of those that have more genes than the model takes; and `counts_read`,
      where counts and gene ids were found, but of cells that were tokenised already.
    """
    rows = np.arange(len(cells.lengths))
    while isinstance(cells, ChosenCells):
        cells, rows = cells.source, cells.rows[rows]
    is_cut, match = getattr(cells, "is_cut", None), getattr(cells, "match", None)
    facts = {"cells_cut": 0 if is_cut is None else int(is_cut[rows].sum())}
    return facts if match is None else facts | {"counts_read": match.facts()}


def select_cells(
    cells: EncodedCells,
    filters: Filters | None = None,
    max_cells: int | None = None,
    seed: int = ORIGINAL_SEED,
) -> ChosenCells:
    """Chooses cells by their obs columns, and draws some of them at random.

    Cells stay in input order. With the default seed the drawn cells are those that the original's
    `max_ncells` keeps: the first of numpy's `default_rng(seed).permutation` of the filtered cells.

    Args:
      cells: to choose from.
      filters: see `filters.passing`.
      max_cells: cells to draw; None keeps all.
      seed: of the draw.

    Raises:
      InputError: a column or value does not occur, or no cell is left.
    """
    keep = np.ones(len(cells.lengths), bool) if not filters else passing(cells.obs, filters)
    rows = np.flatnonzero(keep)
    check_draw(max_cells, seed)
    passed = len(rows)
    if max_cells is not None and max_cells < passed:
        rows = np.sort(rows[np.random.default_rng(seed).permutation(passed)[:max_cells]])
    now = {FILTERED_OUT: len(keep) - passed, NOT_DRAWN: passed - len(rows)}
    return ChosenCells(cells, rows, left_out_of(cells) | {name: n for name, n in now.items() if n})


def left_out_of(cells: EncodedCells) -> dict[str, int]:
    """Returns reason -> number of cells that were left out, without reasons of none."""
    return {reason: n for reason, n in getattr(cells, "dropped", {}).items() if n}


def describe_chosen(cells: ChosenCells, source: str, runtime: str) -> list[str]:
    """Returns lines on the cells of a run: how many, of which others were left out, and how.

    Args:
      cells: that are chosen.
      source: of the model.
      runtime: the line on how is computed.
    """
    head = f"{len(cells.lengths):,} cells, model {source}"
    return [head, *describe_left_out(left_out_of(cells)), runtime]


def check_vocabulary(model: PretrainedModel) -> None:
    """Raises InputError if the model carries no vocabulary, or another one than its own."""
    vocabulary = model.vocabulary
    if vocabulary is None:
        raise InputError(
            f"the model of {model.source} carries no vocabulary; give its own `vocabulary`"
        )
    if vocabulary.size != model.config.vocabulary_size:
        raise InputError(
            f"the vocabulary has {vocabulary.size:,} tokens but the model of {model.source} "
            f"{model.config.vocabulary_size:,}; give the vocabulary it was trained with"
        )


def _check_cells(cells: EncodedCells, model: PretrainedModel, whole: bool) -> None:
    if cells.vocabulary.hash != model.vocabulary.hash:
        raise InputError(
            f"the cells were tokenised with vocabulary {cells.vocabulary.hash[:12]} but the model "
            f"of {model.source} was trained with {model.vocabulary.hash[:12]}: a token would mean "
            "another gene; tokenize the counts with the model's vocabulary"
        )
    if not len(cells.lengths):
        raise InputError("there is no cell to embed; tokenize some first")
    longest = int(np.max(cells.lengths))
    if whole and longest >= getattr(cells, "max_length", longest + 1):
        raise InputError(
            f"the cells were cut at {longest:,} tokens, but genes beyond the cut are needed; "
            f"tokenise with `max_length` {model.vocabulary.size}, or give the counts"
        )
