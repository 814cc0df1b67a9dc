"""Shards of a vocabulary in the making: what each of several processes has measured of a corpus."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.cells.tokenization.vocabulary_building import CorpusGenes
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, fingerprint

_KEY, _DROPPED = "key", "dropped"


def shards_folder(output: Path) -> Path:
    """Folder of the shards of an unfinished vocabulary, beside the vocabulary's own."""
    return output.with_name(output.name + ".shards")


def work_key(corpus: CorpusGenes, paths: Sequence[Path], rules: QualityRules, reading: str) -> str:
    """A hash of all that the shards of one corpus must have in common.

    Args:
      corpus: surveyed.
      paths: of all its files.
      rules: of quality control.
      reading: how files are opened.
    """
    files = [fingerprint(path) for path in paths]
    parts = [corpus.gene_ids.tolist(), files, dataclasses.asdict(rules), reading]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def save_shard(
    folder: Path, shard: tuple[int, int], key: str, corpus: CorpusGenes, dropped: Mapping[str, int]
) -> Path:
    """Writes what one process measured: its medians, and the cells it left out by reason."""
    path = _shard_path(folder, *shard)
    content = io.BytesIO()
    summary = np.array(json.dumps({_KEY: key, _DROPPED: dropped}))
    np.savez(content, summary=summary, **corpus.medians.to_arrays())
    with atomic_write(path) as aside:
        # numpy does not report a full disk when it writes the file itself.
        aside.write_bytes(content.getbuffer())
    return path


def join_shards(folder: Path, key: str, corpus: CorpusGenes) -> None:
    """Adds all shards to a surveyed corpus.

    Args:
      folder: see `shards_folder`.
      key: see `work_key`.
      corpus: gets their medians and the numbers of cells they left out.

    Raises:
      InputError: a shard is missing, or was measured on other files or with other options.
    """
    count = _count_shards(folder)
    paths = [_shard_path(folder, index, count) for index in range(count)]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {count} shards are not measured yet; run `shard`={missing[0]}/"
            f"{count}, then `finish` again"
        )
    for index, path in enumerate(paths):
        with np.load(path, allow_pickle=False) as arrays:
            summary = json.loads(str(arrays["summary"]))
            if summary[_KEY] != key:
                raise InputError(
                    f"{path} was measured on other files or with other options; run "
                    f"`shard`={index}/{count} again"
                )
            corpus.medians.merge_arrays(arrays)
        corpus.add_dropped(summary[_DROPPED])


def _count_shards(folder: Path) -> int:
    """Returns the number of shards, which is part of each one's file name."""
    counts = {int(path.stem.rpartition("-")[2]) for path in folder.glob("*-of-*.npz")}
    if not counts:
        raise InputError(f"{folder} holds no shard; run the same command with `shard` first")
    if len(counts) > 1:
        listed = " and of ".join(map(str, sorted(counts)))
        raise InputError(f"{folder} holds shards of {listed}; remove those that are not wanted")
    return counts.pop()


def _shard_path(folder: Path, index: int, count: int) -> Path:
    return folder / f"{index}-of-{count}.npz"
