"""Writing what `datasets.load_from_disk` and parquet readers open."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.interop.tokenized_datasets import LENGTH, STATE_FILE, TOKENS

SHARD_BYTES = 500_000_000
PARQUET_PROVENANCE = "geneformer_jax.provenance"
_INFO_FILE = "dataset_info.json"
_FEATURE_NAMES = {pa.float64(): "float64", pa.string(): "string", pa.bool_(): "bool"}


def dataset_schema(token_type: pa.DataType, obs: pa.Schema) -> pa.Schema:
    """Columns of a tokenised dataset, with the description that `datasets` keeps in a schema.

    Args:
      token_type: of the elements of `input_ids`.
      obs: cell id and carried columns: text, int64, float64 or bool.
    """
    schema = pa.schema([(TOKENS, pa.list_(token_type)), *obs, (LENGTH, pa.int64())])
    description = {"info": {"features": _features(schema)}}
    return schema.with_metadata({"huggingface": json.dumps(description)})


def write_dataset_folder(
    folder: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    cells: int,
    tokens: int,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder as `datasets.save_to_disk` does.

    Args:
      folder: a new folder.
      schema: from `dataset_schema`.
      batches: all rows, in order.
      cells: number of rows, at least one.
      tokens: number of tokens, from which the number of shards follows.
      shard_bytes: about how large a shard may become.
    """
    folder.mkdir()
    token_bytes = tokens * schema.field(TOKENS).type.value_type.bit_width // 8
    shards = min(cells, token_bytes // shard_bytes + 1)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    rows = _RowQueue(batches)
    digest = hashlib.sha256()
    for shard, name in enumerate(names):
        first, last = cells * shard // shards, cells * (shard + 1) // shards
        with pa.ipc.new_stream(str(folder / name), schema) as stream:
            for batch in rows.take(last - first):
                stream.write_batch(batch)
                digest.update(batch.serialize())
    _write_json(folder / STATE_FILE, _state(names, digest.hexdigest()))
    info = {"citation": "", "description": "", "homepage": "", "license": ""}
    _write_json(folder / _INFO_FILE, {**info, "features": _features(schema)})


def write_parquet_file(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], story: Mapping[str, Any]
) -> None:
    """Writes all rows as one parquet file, with its provenance in the schema's metadata.

    Args:
      path: a new file.
      schema: from `dataset_schema`.
      batches: all rows, in order.
      story: see `common.provenance`.
    """
    words = {PARQUET_PROVENANCE: json.dumps(story, default=str)}
    with pq.ParquetWriter(path, schema.with_metadata({**schema.metadata, **words})) as file:
        for batch in batches:
            file.write_batch(batch)


class _RowQueue:
    """Hands out rows of batches in numbers that do not follow the batches' borders."""

    def __init__(self, batches: Iterable[pa.RecordBatch]):
        self._batches = iter(batches)
        self._rest: pa.RecordBatch | None = None

    def take(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows:
            batch = self._rest if self._rest is not None else next(self._batches)
            yield batch.slice(0, rows)
            self._rest = batch.slice(rows) if batch.num_rows > rows else None
            rows -= min(rows, batch.num_rows)


def _features(schema: pa.Schema) -> dict[str, Any]:
    return {field.name: _feature(field.type) for field in schema}


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        # "Sequence" is what releases of `datasets` before 4 know; later ones still read it.
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": _FEATURE_NAMES.get(kind, str(kind)), "_type": "Value"}


def _state(names: list[str], digest: str) -> dict[str, Any]:
    return {
        "_data_files": [{"filename": name} for name in names],
        # `datasets` names its cached results by it: datasets with other rows need another one.
        "_fingerprint": digest[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
