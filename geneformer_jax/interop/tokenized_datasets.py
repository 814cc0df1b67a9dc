"""Reading cells that were tokenised elsewhere: Hugging Face `.dataset` folders, parquet files.

The original keeps its tokens in folders written by `datasets.save_to_disk`: Arrow streams
(`data-00000-of-0000N.arrow`) named in `state.json`, one row per cell with `input_ids`, `length` and
carried columns. Both kinds are read with pyarrow, tokens some cells at a time.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geneformer_jax.cells.rank_encoding import RankEncodings
from geneformer_jax.cells.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean

TOKENS, LENGTH, CELL_ID = "input_ids", "length", "cell_id"
STATE_FILE = "state.json"
_SPLITS_FILE = "dataset_dict.json"
_CELLS_PER_BATCH = 1000
# Arrow streams end with an empty message. Without this check a stream that was cut between two
# messages reads as a shorter, whole one.
_END_OF_STREAM = bytes(4)


def is_tokenized_dataset(path: Path | str) -> bool:
    """Whether `path` is a parquet file or a folder written by `datasets.save_to_disk`."""
    path = Path(path)
    if path.is_dir():
        return (path / STATE_FILE).is_file() or (path / _SPLITS_FILE).is_file()
    return path.suffix == ".parquet" and path.is_file()


class TokenizedDataset:
    """An open tokenised dataset; memory holds its carried columns and one batch of tokens.

    Args:
      path: a `.dataset` folder or a parquet file.
      vocabulary: the one the cells were tokenised with; every token is checked against it.

    Attributes:
      path: as given.
      obs: [cells] the carried columns, indexed by cell id: the column `cell_id` or, without one,
        name and row of the dataset ("pbmc:17").
      left_out: names of the columns that are not carried, because they hold something else than a
        number, a text or a truth value per cell.

    Raises:
      InputError: it is no such dataset, is damaged or cut off, has no column `input_ids` of whole
        numbers, or repeats a cell id.
    """

    def __init__(self, path: Path | str, vocabulary: GeneVocabulary):
        self.path = Path(path)
        self._vocabulary = vocabulary
        with _explained(self.path):
            self._files = _arrow_files(self.path) if self.path.is_dir() else None
            self._schema = self._read_schema()
            self._check_columns()
            carried = [each for each in self._schema if each.name not in (TOKENS, LENGTH)]
            plain = [each for each in carried if _is_plain(each.type)]
            self.left_out = [each.name for each in carried if each not in plain]
            self.obs = self._read_obs(pa.schema(plain))
        self._name_cells()

    def __len__(self) -> int:
        return len(self.obs)

    def encodings(self, cells_per_batch: int = _CELLS_PER_BATCH) -> Iterator[RankEncodings]:
        """Yields the tokens of all cells in order, at most `cells_per_batch` cells at a time.

        Raises:
          InputError: a token is outside the vocabulary, special tokens are missing or misplaced,
            `length` disagrees with `input_ids`, or a file is damaged.
        """
        start = 0
        columns = [name for name in (TOKENS, LENGTH) if name in self._schema.names]
        with _explained(self.path):
            for batch in self._record_batches(columns, cells_per_batch):
                yield self._checked(batch, start)
                start += batch.num_rows

    def _read_schema(self) -> pa.Schema:
        if self._files is None:
            return pq.ParquetFile(self.path).schema_arrow
        schemas = [_stream_schema(file) for file in self._files]
        for file, schema in zip(self._files, schemas, strict=True):
            if not schema.equals(schemas[0]):
                raise InputError(
                    f"{file} has other columns or types than {self._files[0].name}; write the "
                    "dataset again with one set of columns"
                )
        return schemas[0]

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
        if self._files is None:
            batches = pq.ParquetFile(self.path).iter_batches(cells, columns=columns)
        else:
            batches = (batch.select(columns) for file in self._files for batch in _stream(file))
        for batch in batches:
            for start in range(0, batch.num_rows, cells):
                part = batch.slice(start, cells)
                part.validate(full=True)
                yield part

    def _read_obs(self, schema: pa.Schema) -> pd.DataFrame:
        cells, parts = 0, []
        # Tokens come along to count the rows of a dataset without any other column.
        columns = schema.names or [TOKENS]
        for part in self._record_batches(columns, _CELLS_PER_BATCH):
            cells += part.num_rows
            parts.append(part.select(schema.names))
        if cells == 0:
            raise InputError(f"{self.path} holds no cells; name another dataset")
        table = pa.Table.from_batches(parts, schema) if schema.names else None
        return pd.DataFrame(index=range(cells)) if table is None else table.to_pandas()

    def _name_cells(self) -> None:
        if CELL_ID not in self.obs:
            self.obs.index = pd.Index([f"{self.path.stem}:{row}" for row in range(len(self))])
            return
        ids = self.obs.pop(CELL_ID)
        for wrong, fault in ((ids.isna(), "is missing"), (ids.duplicated(), "occurs before")):
            if wrong.any():
                row = int(wrong.to_numpy().argmax())
                raise InputError(
                    f'{self.path}: the {CELL_ID} "{ids.iloc[row]}" of row {row} {fault}; every '
                    "cell needs its own, or rename the column, and cells are named by their row"
                )
        self.obs.index = pd.Index(ids.astype(str))

    def _checked(self, batch: pa.RecordBatch, start: int) -> RankEncodings:
        rows = batch.column(TOKENS)
        if rows.null_count or rows.flatten().null_count:
            raise InputError(f"{self.path} misses some {TOKENS} after cell {start}; fill the gaps")
        lengths = pc.list_value_length(rows).to_numpy().astype(np.int64)
        self._check_lengths(batch, lengths, start)
        tokens = rows.flatten().to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        self._check_tokens(tokens, offsets, start)
        return RankEncodings(tokens.astype(np.uint16), offsets)

    def _check_lengths(self, batch: pa.RecordBatch, lengths: np.ndarray, start: int) -> None:
        if LENGTH not in batch.schema.names:
            return
        stated = batch.column(LENGTH).cast(pa.int64()).fill_null(-1).to_numpy()
        wrong = np.flatnonzero(stated != lengths)
        if wrong.size:
            row = wrong[0]
            raise InputError(
                f"{self._cell(start + row)} has the {LENGTH} {stated[row]} but {lengths[row]} "
                f"{TOKENS}; make them agree, or drop the column {LENGTH}"
            )

    def _check_tokens(self, tokens: np.ndarray, offsets: np.ndarray, start: int) -> None:
        vocabulary = self._vocabulary
        wrong = np.flatnonzero((tokens < 0) | (tokens >= vocabulary.size))
        if wrong.size:
            raise InputError(
                f"{self._cell_at(wrong[0], offsets, start)} has the token {tokens[wrong[0]]}, but "
                f"the vocabulary ends at {vocabulary.size - 1:,}; name the vocabulary that the "
                "cells were tokenised with"
            )
        wrong = np.flatnonzero(tokens <= vocabulary.mask_id)
        if wrong.size:
            name = vocabulary.gene_id_of(int(tokens[wrong[0]]))
            raise InputError(
                f"{self._cell_at(wrong[0], offsets, start)} holds {name}; whole cells without "
                "padding or masking are needed"
            )
        if vocabulary.cls_id is not None:
            self._check_ends(tokens, offsets, start)
        elif start == 0:
            self._refuse_second_version(tokens, offsets)

    def _check_ends(self, tokens: np.ndarray, offsets: np.ndarray, start: int) -> None:
        """Raises InputError unless every cell with tokens is <cls>, genes, <eos>."""
        vocabulary = self._vocabulary
        filled = np.flatnonzero(np.diff(offsets))
        expected = np.zeros(len(tokens), tokens.dtype)
        expected[offsets[filled]] = vocabulary.cls_id
        expected[offsets[filled + 1] - 1] = vocabulary.eos_id
        found = np.where(tokens < vocabulary.first_gene_token, tokens, 0)
        wrong = np.flatnonzero(found != expected)
        if wrong.size:
            raise InputError(
                f"{self._cell_at(wrong[0], offsets, start)} is not <cls>, genes, <eos> as this "
                "vocabulary has it; name the vocabulary that the cells were tokenised with"
            )

    def _refuse_second_version(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        """Raises InputError if all cells have <cls> and <eos> of V2, which are genes of V1."""
        filled = np.flatnonzero(np.diff(offsets))
        if not filled.size:
            return
        if (tokens[offsets[filled]] == 2).all() and (tokens[offsets[filled + 1] - 1] == 3).all():
            raise InputError(
                f"the cells of {self.path} begin with token 2 and end with token 3, as <cls> and "
                "<eos> of a V2 vocabulary do, but this vocabulary has none; name theirs"
            )

    def _cell_at(self, position: int, offsets: np.ndarray, start: int) -> str:
        return self._cell(start + int(np.searchsorted(offsets, position, side="right")) - 1)

    def _cell(self, row: int) -> str:
        return f'{self.path}: cell "{self.obs.index[row]}" (row {row})'


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not pa.types.is_nested(kind) and not any(is_binary(kind) for is_binary in binary)


def _arrow_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder written by `datasets.save_to_disk`, in order."""
    if not (folder / STATE_FILE).is_file():
        splits = [path.name for path in folder.iterdir() if (path / STATE_FILE).is_file()]
        if splits:
            raise InputError(f"{folder} holds the splits {', '.join(sorted(splits))}; name one")
        raise InputError(f"{folder} is no dataset (it has no {STATE_FILE}); name a .dataset folder")
    try:
        state = json.loads((folder / STATE_FILE).read_text())
        files = [folder / Path(each["filename"]).name for each in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / STATE_FILE} is damaged; save the dataset again") from error
    if not files or state.get("_indices_data_files"):
        raise InputError(f"{folder} holds no rows of its own; save the dataset again")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing, but {STATE_FILE} names it; get the whole dataset")
        _refuse_if_cut(file)
    return files


def _refuse_if_cut(file: Path) -> None:
    with file.open("rb") as content:
        content.seek(max(file.stat().st_size - len(_END_OF_STREAM), 0))
        if content.read() != _END_OF_STREAM:
            raise InputError(f"{file} is cut off (it has no end mark); get the whole file")


def _stream_schema(file: Path) -> pa.Schema:
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        return stream.schema


def _stream(file: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        yield from stream


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what pyarrow says about damaged files into one line."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        # pyarrow raises it without a number for damage; with one it is the system speaking.
        if error.errno is not None:
            raise
        raise _damaged(path, error) from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    said = " ".join(str(error).split())[:120]
    return InputError(f"{path} is damaged or cut off ({said}); get the whole dataset")
