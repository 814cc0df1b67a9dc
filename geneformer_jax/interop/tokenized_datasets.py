"""Reading cells that were tokenised elsewhere: Hugging Face `.dataset` folders, parquet files.

The original keeps its tokens in folders written by `datasets.save_to_disk`: one row per cell with
`input_ids`, `length` and obs columns. Both kinds are read some cells at a time.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geneformer_jax.cells.counts.source import cell_index
from geneformer_jax.cells.store.obs_columns import original_name
from geneformer_jax.cells.tokenization.rank_encoding import RankEncodings, join_encodings
from geneformer_jax.cells.tokenization.tokenizer import (
    NO_GENE,
    TokenizedCells,
    default_max_length,
)
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import suffix_of
from geneformer_jax.common.log import logger
from geneformer_jax.interop.dataset_folders import (
    is_dataset_folder,
    iterate_record_batches,
    open_dataset_folder,
)
from geneformer_jax.interop.vocabulary_statement import NAME, check_statement

TOKENS, LENGTH, CELL_ID = "input_ids", "length", "cell_id"
OWN_COLUMNS = (TOKENS, LENGTH, CELL_ID)
_CELLS_PER_BATCH = 1000
_CLASS_LABEL = "ClassLabel"
_ID_REMEDY = "every cell needs its own; rename the column, and cells are named by their row"

NameCell = Callable[[int], str]
_REMEDY = "name the vocabulary that the cells were tokenised with"


def is_tokenized_dataset(path: Path | str) -> bool:
    """Whether `path` is a parquet file or a folder written by `datasets.save_to_disk`."""
    path = Path(path)
    if path.is_dir():
        return is_dataset_folder(path)
    return suffix_of(path) == ".parquet" and path.is_file()


class TokenizedBatch(NamedTuple):
    """Some consecutive cells of a tokenised dataset.

    Attributes:
      encodings: their tokens; a cell may have none.
      cell_ids: [cells] str.
      obs: [cells] the obs columns.
    """

    encodings: RankEncodings
    cell_ids: np.ndarray
    obs: pd.DataFrame


class TokenizedDataset:
    """An open tokenised dataset; memory holds some cells at a time, and 8 bytes for each other.

    Cells are named by the column `cell_id` or, where there is none, by file name and row
    ("pbmc:17").

    Args:
      path: a `.dataset` folder or a parquet file.
      vocabulary: the one the cells were tokenised with; every token is checked against it.

    Attributes:
      path: as given.
      vocabulary: as given.
      n_cells: number of rows.
      obs_kinds: obs column -> "text", "int", "float" or "bool" (see `cells.store.obs_columns`); of
        classes (ClassLabel) the names are read, not the numbers.
      left_out: names of the columns that are not read, because they hold something else than a
        number, a text or a truth value per cell.
      states_vocabulary: whether it says itself that `vocabulary` is its own; otherwise that is
        taken on trust.

    Raises:
      InputError: it is no such dataset, is damaged or cut off, says that it was made with another
        vocabulary, has no column `input_ids` of whole numbers, or repeats a cell id.
    """

    def __init__(self, path: Path | str, vocabulary: GeneVocabulary):
        self.path = Path(path)
        self.vocabulary = vocabulary
        with _explain_damage(self.path):
            self._dataset = open_dataset_folder(self.path) if self.path.is_dir() else None
            self._schema = self._read_schema()
            self._check_columns()
            self.states_vocabulary = check_statement(self._description(), vocabulary, self.path)
            others = [each for each in self._schema if each.name not in OWN_COLUMNS]
            plain = [each for each in others if _is_plain(each.type)]
            self.left_out = [each.name for each in others if each not in plain]
            self.n_cells, missing = self._survey([each.name for each in plain])
        self._obs = {each.name: original_name(each.name, OWN_COLUMNS) for each in plain}
        self._classes = {name: names for name, names in self._class_names() if name in self._obs}
        self.obs_kinds = {
            self._obs[each.name]: "text"
            if each.name in self._classes
            else _kind(each.type, missing[each.name] > 0)
            for each in plain
        }

    def batches(self, cells_per_batch: int = _CELLS_PER_BATCH) -> Iterator[TokenizedBatch]:
        """Yields all cells in order, at most `cells_per_batch` at a time.

        Raises:
          InputError: a token is outside the vocabulary, special tokens are missing or misplaced,
            `length` disagrees with `input_ids`, or a file is damaged.
        """
        start = 0
        own = [name for name in OWN_COLUMNS if name in self._schema.names]
        with _explain_damage(self.path):
            for batch in self._record_batches([*own, *self._obs], cells_per_batch):
                cell_ids = self._cell_ids(batch, start)
                encodings = self._encodings(batch, cell_ids, start)
                obs = batch.select(list(self._obs)).to_pandas()
                for name, classes in self._classes.items():
                    obs[name] = self._named_classes(batch.column(name), classes, name)
                yield TokenizedBatch(encodings, cell_ids, obs.rename(columns=self._obs))
                start += batch.num_rows

    def _read_schema(self) -> pa.Schema:
        if self._dataset is None:
            return pq.ParquetFile(self.path).schema_arrow
        return self._dataset.data.schema

    def _class_names(self) -> Iterator[tuple[str, list[str]]]:
        """Yields the columns that hold numbers of classes, with the names of these."""
        if self._dataset is not None:
            for name, feature in self._dataset.features.items():
                if type(feature).__name__ == _CLASS_LABEL:
                    yield name, list(feature.names)
            return
        # What the library writes into parquet files too.
        text = (self._schema.metadata or {}).get(b"huggingface", b"{}")
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            features = json.loads(text)["info"]["features"]
            for name, feature in features.items():
                if isinstance(feature, dict) and feature.get("_type") == _CLASS_LABEL:
                    names = feature["names"]
                    yield name, list(names.values() if isinstance(names, dict) else names)

    def _named_classes(self, numbers: pa.Array, names: list[str], column: str) -> np.ndarray:
        """Returns the names of numbered classes; None for -1, the library's number for none."""
        found = numbers.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        if found.size and not -1 <= found.min() <= found.max() < len(names):
            wrong = found[(found < -1) | (found >= len(names))][0]
            raise InputError(
                f'{self.path}: column "{column}" holds class {wrong}, but has {len(names)} class '
                "names; write the dataset again"
            )
        return np.array([*names, None], dtype=object)[found]

    def _description(self) -> str:
        if self._dataset is not None:
            return str(self._dataset.info.description or "")
        stated = (self._schema.metadata or {}).get(NAME.encode(), b"")
        return f"{NAME}: {stated.decode(errors='replace')}"

    def _check_columns(self) -> None:
        names = self._schema.names
        if TOKENS not in names:
            raise InputError(
                f'{self.path} has no column "{TOKENS}"{did_you_mean(TOKENS, names)}; only '
                "tokenised cells are read here, raw counts are read by tokenize"
            )
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise InputError(f'{self.path} has two columns "{repeated.pop()}"; rename one of them')
        kind = self._schema.field(TOKENS).type
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(is_list(kind) for is_list in lists) or not pa.types.is_integer(kind.value_type):
            raise InputError(
                f"{self.path} keeps {TOKENS} as {kind}; a list of whole numbers per cell is needed"
            )
        if LENGTH in names and not pa.types.is_integer(self._schema.field(LENGTH).type):
            kind = self._schema.field(LENGTH).type
            raise InputError(f"{self.path} keeps {LENGTH} as {kind}; a whole number is needed")

    def _record_batches(self, columns: list[str], cells: int) -> Iterator[pa.RecordBatch]:
        """Yields batches of at most `cells` rows, validated so that no damage reaches numpy."""
        if self._dataset is not None:
            yield from iterate_record_batches(self._dataset, columns, cells)
            return
        for batch in pq.ParquetFile(self.path).iter_batches(cells, columns=columns):
            batch.validate(full=True)
            yield batch

    def _survey(self, columns: list[str]) -> tuple[int, Counter[str]]:
        """Number of rows, and of missing values per column; raises InputError for bad cell ids."""
        named = CELL_ID in self._schema.names
        # Tokens come along to count the rows of a dataset without any other column.
        read = [*columns, CELL_ID] if named else columns or [TOKENS]
        missing: Counter[str] = Counter()
        hashes, cells = [np.empty(0, np.uint64)], 0
        for batch in self._record_batches(read, _CELLS_PER_BATCH):
            missing.update({name: batch.column(name).null_count for name in read})
            if named:
                hashes.append(pd.util.hash_array(self._cell_ids(batch, cells)))
            cells += batch.num_rows
        if cells == 0:
            raise InputError(f"{self.path} holds no cells; name another dataset")
        everything = np.sort(np.concatenate(hashes))
        if (everything[1:] == everything[:-1]).any():
            self._report_repeated_id()
        return cells, missing

    def _report_repeated_id(self) -> None:
        seen: set[str] = set()
        for batch in self._record_batches([CELL_ID], _CELLS_PER_BATCH):
            for cell_id in self._cell_ids(batch, len(seen)).tolist():
                if cell_id in seen:
                    raise InputError(
                        f'{self.path}: the {CELL_ID} "{cell_id}" of row {len(seen)} occurs before; '
                        f"{_ID_REMEDY}"
                    )
                seen.add(cell_id)

    def _cell_ids(self, batch: pa.RecordBatch, start: int) -> np.ndarray:
        if CELL_ID not in self._schema.names:
            names = [f"{self.path.stem}:{row}" for row in range(start, start + batch.num_rows)]
            return np.array(names, dtype=object)
        ids = batch.column(CELL_ID)
        if ids.null_count:
            row = start + int(ids.is_null().to_numpy(zero_copy_only=False).argmax())
            raise InputError(f"{self.path}: the {CELL_ID} of row {row} is missing; {_ID_REMEDY}")
        return np.array([str(each) for each in ids.to_pylist()], dtype=object)

    def _encodings(self, batch: pa.RecordBatch, cell_ids: np.ndarray, start: int) -> RankEncodings:
        stated = batch.column(LENGTH) if LENGTH in self._schema.names else None

        def name(row: int) -> str:
            return f'{self.path}: cell "{cell_ids[row]}" (row {start + row})'

        encodings = checked_encodings(batch.column(TOKENS), stated, self.vocabulary, name)
        if start == 0 and self.vocabulary.cls_id is None and looks_like_second_version(encodings):
            raise InputError(
                f"the cells of {self.path} begin with token 2 and end with token 3, as <cls> and "
                "<eos> of a V2 vocabulary do, but this vocabulary has none; name theirs"
            )
        return encodings


def read_tokenized(path: Path | str, vocabulary: GeneVocabulary) -> TokenizedCells:
    """Reads all cells of a tokenised dataset into memory; those without a gene are left out.

    Args:
      path: a `.dataset` folder or a parquet file.
      vocabulary: the one that the cells were tokenised with.

    Raises:
      InputError: see `TokenizedDataset`; or no cell has a gene.
    """
    dataset = TokenizedDataset(path, vocabulary)
    if not dataset.states_vocabulary:
        logger.info(f"{path} does not say with which vocabulary it was made: taken on trust")
    parts, ids, tables = [], [], []
    for encodings, cell_ids, obs in dataset.batches():
        parts.append(encodings)
        ids.append(cell_ids)
        tables.append(obs)
    encodings = join_encodings(parts)
    filled = encodings.lengths > vocabulary.special_per_cell
    rows = np.flatnonzero(filled)
    if not len(rows):
        raise InputError(f"{path}: none of {dataset.n_cells:,} cells has a gene; name other cells")
    table = pd.concat(tables).set_axis(cell_index(np.concatenate(ids), dataset.obs_kinds))
    return TokenizedCells(
        encodings=encodings.kept(filled),
        rows=rows,
        obs=table.iloc[rows],
        vocabulary=vocabulary,
        max_length=default_max_length(vocabulary),
        dropped={NO_GENE: dataset.n_cells - len(rows)},
        all_obs=None if filled.all() else table,
    )


def _kind(arrow_type: pa.DataType, missing: bool) -> str:
    """The kind of an obs column, by the rules of `cells.store.obs_columns`."""
    if pa.types.is_dictionary(arrow_type):
        return _kind(arrow_type.value_type, missing)
    if pa.types.is_boolean(arrow_type):
        return "text" if missing else "bool"
    if pa.types.is_integer(arrow_type):
        return "float" if missing else "int"
    return "float" if pa.types.is_floating(arrow_type) else "text"


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not pa.types.is_nested(kind) and not any(is_binary(kind) for is_binary in binary)


@contextlib.contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    """Turns pyarrow's errors of damaged files into one line."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        # pyarrow raises it without a number for damage; with one it is an error of the system.
        if error.errno is not None:
            raise
        raise _damaged(path, error) from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:120]
    return InputError(f"{path} is damaged or cut off ({reason}); get the whole dataset")


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
