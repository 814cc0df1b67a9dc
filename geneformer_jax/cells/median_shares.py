"""Shares of a corpus measured by several processes, kept in files until they are joined."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from geneformer_jax.cells.quality import QualityRules
from geneformer_jax.cells.vocabulary_building import CorpusGenes
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import fingerprint, write_aside

_KEY, _DROPPED = "key", "dropped"


def shares_folder(output: Path) -> Path:
    """Where the shares of a vocabulary in the making are kept: beside its folder."""
    return output.with_name(output.name + ".shares")


def work_key(corpus: CorpusGenes, paths: Sequence[Path], rules: QualityRules, reading: str) -> str:
    """A hash of all that the shares of one corpus must have in common.

    Args:
      corpus: surveyed.
      paths: of all its files.
      rules: of quality control.
      reading: how files are opened.
    """
    files = [fingerprint(path) for path in paths]
    parts = [corpus.gene_ids.tolist(), files, dataclasses.asdict(rules), reading]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def save_share(
    folder: Path, share: tuple[int, int], key: str, corpus: CorpusGenes, dropped: Mapping[str, int]
) -> Path:
    """Writes what one process measured: its medians, and the cells it left out by reason."""
    path = _share_path(folder, *share)
    content = io.BytesIO()
    story = np.array(json.dumps({_KEY: key, _DROPPED: dropped}))
    np.savez(content, story=story, **corpus.medians.to_arrays())
    with write_aside(path) as aside:
        # numpy's own way to a file does not say that the disk is full.
        aside.write_bytes(content.getbuffer())
    return path


def join_shares(folder: Path, key: str, corpus: CorpusGenes) -> None:
    """Adds all shares to a surveyed corpus.

    Args:
      folder: see `shares_folder`.
      key: see `work_key`.
      corpus: gets their medians and the numbers of cells they left out.

    Raises:
      InputError: a share is missing, or was measured on other files or with other options.
    """
    count = _count_shares(folder)
    paths = [_share_path(folder, index, count) for index in range(count)]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {count} shares are not measured yet; run --shard={missing[0]}/"
            f"{count}, then --finish again"
        )
    for index, path in enumerate(paths):
        with np.load(path, allow_pickle=False) as arrays:
            story = json.loads(str(arrays["story"]))
            if story[_KEY] != key:
                raise InputError(
                    f"{path} was measured on other files or with other options; run "
                    f"--shard={index}/{count} again"
                )
            corpus.medians.merge_arrays(arrays)
        corpus.add_dropped(story[_DROPPED])


def _count_shares(folder: Path) -> int:
    """How many shares there are to be, as the names of those that are there say."""
    counts = {int(path.stem.rpartition("-")[2]) for path in folder.glob("*-of-*.npz")}
    if not counts:
        raise InputError(f"{folder} holds no share; run the same command with --shard first")
    if len(counts) > 1:
        listed = " and of ".join(map(str, sorted(counts)))
        raise InputError(f"{folder} holds shares of {listed}; remove those that are not wanted")
    return counts.pop()


def _share_path(folder: Path, index: int, count: int) -> Path:
    return folder / f"{index}-of-{count}.npz"
