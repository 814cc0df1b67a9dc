"""Checks that rows of tokens are whole cells of a vocabulary, and their conversion to ours."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneformer_jax.cells.tokenization.rank_encoding import RankEncodings
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError

NameCell = Callable[[int], str]
_REMEDY = "name the vocabulary that the cells were tokenised with"


def checked_encodings(
    rows: pa.Array, stated: pa.Array | None, vocabulary: GeneVocabulary, name: NameCell
) -> RankEncodings:
    """Converts rows of tokens.

    Args:
      rows: [cells] list of whole numbers per cell.
      stated: [cells] the column `length`, or None if there is none.
      vocabulary: which tokens there are.
      name: index of a cell -> how to call it in a message.

    Raises:
      InputError: a value is missing or outside the vocabulary, a length disagrees, or special
        tokens are missing or misplaced.
    """
    tokens = rows.flatten()
    if rows.null_count or tokens.null_count:
        raise InputError(f"{name(0)} or a later one misses tokens; fill the gaps")
    lengths = pc.list_value_length(rows).to_numpy().astype(np.int64)
    if stated is not None:
        _check_lengths(stated, lengths, name)
    tokens, offsets = tokens.to_numpy(), np.concatenate([[0], np.cumsum(lengths)])

    def name_at(position: int) -> str:
        return name(int(np.searchsorted(offsets, position, side="right")) - 1)

    _check_range(tokens, vocabulary, name_at)
    if vocabulary.cls_id is not None:
        _check_ends(tokens, offsets, vocabulary, name_at)
    return RankEncodings(tokens.astype(np.uint16), offsets)


def looks_like_second_version(encodings: RankEncodings) -> bool:
    """Whether all cells begin with 2 and end with 3, as with <cls> and <eos> of a V2 vocabulary."""
    tokens, offsets = encodings.tokens, encodings.offsets
    filled = np.flatnonzero(np.diff(offsets))
    first, last = tokens[offsets[filled]], tokens[offsets[filled + 1] - 1]
    return bool(filled.size and (first == 2).all() and (last == 3).all())


def _check_lengths(stated: pa.Array, lengths: np.ndarray, name: NameCell) -> None:
    numbers = stated.cast(pa.int64()).fill_null(-1).to_numpy()
    wrong = np.flatnonzero(numbers != lengths)
    if wrong.size:
        row = int(wrong[0])
        raise InputError(
            f"{name(row)} has the length {numbers[row]} but {lengths[row]} input_ids; make them "
            "agree, or drop the column length"
        )


def _check_range(tokens: np.ndarray, vocabulary: GeneVocabulary, name_at: NameCell) -> None:
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocabulary.size))
    if wrong.size:
        raise InputError(
            f"{name_at(wrong[0])} has the token {tokens[wrong[0]]}, but the vocabulary ends at "
            f"{vocabulary.size - 1:,}; {_REMEDY}"
        )
    wrong = np.flatnonzero(tokens <= vocabulary.mask_id)
    if wrong.size:
        raise InputError(
            f"{name_at(wrong[0])} holds {vocabulary.gene_id_of(int(tokens[wrong[0]]))}; whole "
            "cells without padding or masking are needed"
        )


def _check_ends(
    tokens: np.ndarray, offsets: np.ndarray, vocabulary: GeneVocabulary, name_at: NameCell
) -> None:
    """Raises InputError unless every cell with tokens is <cls>, genes, <eos>."""
    filled = np.flatnonzero(np.diff(offsets))
    expected = np.zeros(len(tokens), tokens.dtype)
    expected[offsets[filled]] = vocabulary.cls_id
    expected[offsets[filled + 1] - 1] = vocabulary.eos_id
    found = np.where(tokens < vocabulary.first_gene_token, tokens, 0)
    wrong = np.flatnonzero(found != expected)
    if wrong.size:
        raise InputError(
            f"{name_at(wrong[0])} is not <cls>, genes, <eos> as this vocabulary has it; {_REMEDY}"
        )
