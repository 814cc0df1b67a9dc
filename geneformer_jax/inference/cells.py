"""Which cells an analysis is about: a store or counts, and some of their cells, in input order."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.options import DEFAULT_OPTIONS, CountArguments, CountOptions
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.formats.paths import is_counts
from geneformer_jax.cells.store.cell_store import CellStore, EncodedCells
from geneformer_jax.cells.store.shorter_cells import shorten
from geneformer_jax.cells.tokenization.rank_encoding import describe_lengths
from geneformer_jax.cells.tokenization.tokenizer import (
    TokenizerOptions,
    default_max_length,
    tokenize_source,
)
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.model.pretrained import PretrainedModel

# The original shuffles with this seed before it takes its first `max_ncells`.
ORIGINAL_SEED = 42
FILTERED_OUT, NOT_DRAWN = "filtered out", "not drawn"
_EXAMPLES = 8


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
        return self.source.read(self.rows[np.asarray(indices)])


def open_cells(
    cells: EncodedCells | ad.AnnData | Path | str,
    model: PretrainedModel,
    *,
    whole: bool = False,
    **reading: Unpack[CountArguments],
) -> EncodedCells:
    """Opens a cell store, or tokenises counts with the model's vocabulary.

    Cells with more tokens than the model takes are cut to their highest ranked genes.

    Args:
      cells: a store, tokenised cells or counts.
      model: that they are for.
      whole: asks for all genes of each cell, those that do not fit into the model too.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Raises:
      InputError: the cells cannot be read or do not fit the model.
    """
    check_vocabulary(model)
    options = CountOptions.from_arguments(reading)
    if isinstance(cells, ad.AnnData):
        source = AnnDataSource(cells, options)
    elif isinstance(cells, str | Path) and (Path(cells).is_file() or is_counts(Path(cells))):
        source = open_counts(cells, options)
    else:
        if options != DEFAULT_OPTIONS:
            given = " and ".join(f"`{name}`" for name, value in reading.items() if value)
            raise InputError(
                f"{given} chooses among counts, but these cells are tokenised already; leave it out"
            )
        encoded = CellStore.open(cells) if isinstance(cells, str | Path) else cells
        _check_cells(encoded, model, whole)
        return encoded if whole else shorten(encoded, model.config.positions)
    longest = min(default_max_length(model.vocabulary), model.config.positions)
    if whole:
        longest = model.vocabulary.size
    return tokenize_source(source, model.vocabulary, TokenizerOptions(max_length=longest))


def select_cells(
    cells: EncodedCells,
    filters: Mapping[str, Sequence[str]] | None = None,
    max_cells: int | None = None,
    seed: int = ORIGINAL_SEED,
) -> ChosenCells:
    """Chooses cells by their obs columns, and draws some of them at random.

    Cells stay in input order. With the default seed the drawn cells are those that the original's
    `max_ncells` keeps: the first of numpy's `default_rng(seed).permutation` of the filtered cells.

    Args:
      cells: to choose from.
      filters: column -> values of which a cell must have one; a cell must pass every column.
      max_cells: cells to draw; None keeps all.
      seed: of the draw.

    Raises:
      InputError: a column or value does not occur, or no cell is left.
    """
    keep = np.ones(len(cells.lengths), bool)
    for column, values in (filters or {}).items():
        keep &= _has_value(cells.obs, column, values)
    rows = np.flatnonzero(keep)
    if not len(rows):
        shown = " and ".join(f"{name}: {'|'.join(values)}" for name, values in filters.items())
        raise InputError(f"no cell passes {shown} together; drop one of the filters")
    if max_cells is not None and max_cells < 1:
        raise InputError(f"{max_cells} cells were asked for; ask for at least 1")
    passed = len(rows)
    if max_cells is not None and max_cells < passed:
        rows = np.sort(rows[np.random.default_rng(seed).permutation(passed)[:max_cells]])
    dropped = dict(getattr(cells, "dropped", {}))
    dropped |= {FILTERED_OUT: len(keep) - passed, NOT_DRAWN: passed - len(rows)}
    return ChosenCells(cells, rows, {reason: n for reason, n in dropped.items() if n})


def parse_filters(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Reads "column:value|value" texts into column -> values.

    Raises:
      InputError: a text has another form, or a column is named twice.
    """
    filters: dict[str, tuple[str, ...]] = {}
    for text in texts:
        column, separator, listed = text.partition(":")
        values = tuple(value.strip() for value in listed.split("|") if value.strip())
        if not separator or not column.strip() or not values:
            raise InputError(f'filter "{text}" must have the form column:value|value')
        if column.strip() in filters:
            raise InputError(
                f'two filters name column "{column.strip()}"; write its values as one, value|value'
            )
        filters[column.strip()] = values
    return filters


def check_columns(obs: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raises InputError if a column is not in `obs`."""
    for column in columns:
        if column not in obs:
            known = ", ".join(map(str, obs.columns)) or "none"
            raise InputError(
                f'the cells have no obs column "{column}"{did_you_mean(column, obs.columns)}; '
                f"they carry {known} (tokenize carries the columns named by --obs)"
            )


def is_number(values: pd.Series) -> bool:
    """Whether a column holds numbers and not labels."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _has_value(obs: pd.DataFrame, column: str, values: Sequence[str]) -> np.ndarray:
    check_columns(obs, [column])
    present, wanted = obs[column], list(values)
    if is_number(present):
        # "1" and "1.0" are the same number.
        try:
            wanted = [float(value) for value in values]
        except ValueError:
            raise InputError(
                f'column "{column}" holds numbers, but its filter is {"|".join(values)}'
            ) from None
    else:
        present = present.astype("object").map(str, na_action="ignore")
    known = present.dropna().unique()
    for value, text in zip(wanted, values, strict=True):
        if value not in known:
            names = sorted(str(each) for each in known)
            shown = ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
            raise InputError(
                f'column "{column}" has no value "{text}"{did_you_mean(text, names)}; '
                f"it has {shown}"
            )
    return present.isin(wanted).to_numpy()


def check_vocabulary(model: PretrainedModel) -> None:
    """Raises InputError if the model carries no vocabulary, or another one than its own."""
    vocabulary = model.vocabulary
    if vocabulary is None:
        raise InputError(
            f"the model of {model.source} carries no vocabulary; give its own with --vocabulary"
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
            f"tokenize with --max_length={model.vocabulary.size}, or give the counts"
        )
