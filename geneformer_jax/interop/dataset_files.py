"""Writing what `datasets.load_from_disk` and parquet readers open."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.cells.carried_columns import arrow_schema
from geneformer_jax.interop.tokenized_datasets import LENGTH, STATE_FILE, TOKENS

SHARD_BYTES = 500_000_000
PARQUET_PROVENANCE = "geneformer_jax.provenance"
_INFO_FILE = "dataset_info.json"
_FEATURE_NAMES = {pa.float64(): "float64", pa.string(): "string", pa.bool_(): "bool"}

RowReader = Callable[[int, int], Iterator[pa.RecordBatch]]


def dataset_schema(token_type: pa.DataType, obs_kinds: Mapping[str, str]) -> pa.Schema:
    """Columns of a tokenised dataset, with the description that `datasets` keeps in a schema.

    Args:
      token_type: of the elements of `input_ids`.
      obs_kinds: carried column -> "text", "int", "float" or "bool".
    """
    carried = arrow_schema(obs_kinds)
    schema = pa.schema([(TOKENS, pa.list_(token_type)), *carried, (LENGTH, pa.int64())])
    return schema.with_metadata(
        {"huggingface": json.dumps({"info": {"features": _features(schema)}})}
    )


def write_dataset_folder(
    folder: Path,
    schema: pa.Schema,
    read: RowReader,
    cells: int,
    tokens: int,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder as `datasets.save_to_disk` does.

    Args:
      folder: a new folder.
      schema: from `dataset_schema`.
      read: read(first, last) yields the rows from first to before last, in order.
      cells: number of rows, at least one.
      tokens: number of tokens, from which the number of shards follows.
      shard_bytes: about how large a shard may become.
    """
    folder.mkdir()
    token_bytes = tokens * schema.field(TOKENS).type.value_type.bit_width // 8
    shards = min(cells, token_bytes // shard_bytes + 1)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    digest = hashlib.sha256()
    for shard, name in enumerate(names):
        first, last = cells * shard // shards, cells * (shard + 1) // shards
        with pa.ipc.new_stream(str(folder / name), schema) as stream:
            for batch in read(first, last):
                stream.write_batch(batch)
                digest.update(batch.serialize())
    _write_json(folder / STATE_FILE, _state(names, digest.hexdigest()))
    info = {"citation": "", "description": "", "homepage": "", "license": ""}
    _write_json(folder / _INFO_FILE, {**info, "features": _features(schema)})


def write_parquet_file(
    path: Path, schema: pa.Schema, read: RowReader, cells: int, story: Mapping[str, Any]
) -> None:
    """Writes all rows as one parquet file, with its provenance in the schema's metadata.

    Args:
      path: a new file.
      schema: from `dataset_schema`.
      read: see `write_dataset_folder`.
      cells: number of rows.
      story: see `common.provenance`.
    """
    words = {PARQUET_PROVENANCE: json.dumps(story, default=str)}
    with pq.ParquetWriter(path, schema.with_metadata({**schema.metadata, **words})) as file:
        for batch in read(0, cells):
            file.write_batch(batch)


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
