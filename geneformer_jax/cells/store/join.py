"""What lies beside the shards of a complete store: its sources' tables as one, and TFDS's files."""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from geneformer_jax.cells.counts.lazy_columns import iter_blocks
from geneformer_jax.cells.counts.source import CELL_ID
from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store.obs_columns import NUMPY_TYPES, stored_name
from geneformer_jax.cells.store.records import TOKENS
from geneformer_jax.common.files import checksum, read_json

_VERSION = "1.0.0"
_TABLES = (layout.LENGTHS, layout.N_GENES, layout.OBS)


def join_tables(sources: Sequence[Path], into: Path) -> None:
    """Writes lengths, numbers of genes (where all know them) and obs of all sources, in order.

    Their checksums lie beside them.

    Args:
      sources: folders of whole sources.
      into: folder to write in.
    """
    for name in _TABLES:
        parts = [each / name for each in sources]
        if name == layout.N_GENES and not all(map(_counts_genes, sources)):
            continue
        if len(parts) == 1:
            shutil.copyfile(parts[0], into / name)
        elif name == layout.OBS:
            _join_obs(parts, into / name)
        else:
            _join_arrays(parts, into / name)
    written = [into / name for name in _TABLES]
    known = {path.name: checksum(path) for path in written if path.is_file()}
    (into / layout.CHECKSUMS).write_text(json.dumps(known, indent=2) + "\n")


def _counts_genes(source: Path) -> bool:
    # What an earlier version wrote does not say so. To look for the file alone could miss what
    # another machine wrote a moment ago.
    told = read_json(source / layout.SOURCE)
    return told.get(layout.COUNTS_GENES, (source / layout.N_GENES).is_file())


def _join_arrays(parts: list[Path], into: Path) -> None:
    joined = GrowingArray(into, np.int32)
    for part in parts:
        for block in iter_blocks(np.load(part, mmap_mode="r")):
            joined.append(block)
    joined.close()


def _join_obs(parts: list[Path], into: Path) -> None:
    with pq.ParquetWriter(into, pq.read_schema(parts[0]), write_page_checksum=True) as table:
        for part in parts:
            for batch in pq.ParquetFile(part).iter_batches():
                table.write_batch(batch)


def write_dataset_info(
    folder: Path, shards: Sequence[Mapping[str, Any]], kinds: Mapping[str, str], into: Path
) -> None:
    """Writes what TFDS needs to know to open a store.

    Args:
      folder: of the store.
      shards: their cells and bytes, in order.
      kinds: obs column -> kind.
      into: folder to write in.
    """
    # It takes a quarter of a second to import: only those who complete a store wait for it.
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template=layout.FILE_NAMES,
        dataset_name=layout.DATASET,
        split=layout.SPLIT,
        filetype_suffix="array_record",
    )
    split = tfds.core.SplitInfo(
        name=layout.SPLIT,
        shard_lengths=[shard["cells"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
        filename_template=template,
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=layout.DATASET,
        version=tfds.core.Version(_VERSION),
        data_dir=str(folder),
        module_name="",
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(_features(kinds, tfds.features))
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(into)


def _features(kinds: Mapping[str, str], library: ModuleType) -> dict[str, Any]:
    """Features of a store's records: tokens, cell id and obs columns, by their stored names."""
    as_bytes = {"encoding": library.Encoding.BYTES}
    features = {
        TOKENS: library.Tensor(shape=(None,), dtype=np.uint16, **as_bytes),
        CELL_ID: library.Text(),
    }
    for name, kind in kinds.items():
        features[stored_name(name)] = (
            library.Text()
            if kind == "text"
            else library.Tensor(shape=(), dtype=NUMPY_TYPES[kind], **as_bytes)
        )
    return features


class GrowingArray:
    """Writes a one-dimensional array of numbers, part by part; `close` makes the file whole."""

    def __init__(self, path: Path, dtype: type[np.generic]):
        self._dtype = np.dtype(dtype)
        self._file, self._length = path.open("wb"), 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        """Adds values at the end."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def close(self) -> None:
        """Writes down how many values there are."""
        self._file.seek(0)
        # NumPy leaves room in the header, so that its size does not depend on the length.
        self._write_header()
        self._file.close()

    def abandon(self) -> None:
        """Closes a file that will not become whole."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _write_header(self) -> None:
        shape = {"shape": (self._length,), "fortran_order": False, "descr": self._dtype.str}
        np.lib.format.write_array_header_1_0(self._file, shape)
