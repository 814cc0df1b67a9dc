"""Attention that is read off part by part, and goes on where an earlier run stopped."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from geneformer_jax.attention_analysis.extractor import Attended, AttentionExtractor, sum_devices
from geneformer_jax.attention_analysis.sums import AttentionTotals, CellMeasures
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, require_new_folder
from geneformer_jax.common.progress import Progress
from geneformer_jax.inference.resume import (
    PLAN,
    as_json,
    identity_of,
    parts_folder,
    refuse_other_plan,
)

# Sums are float32 on the devices, and float64 on the host between parts.
CELLS_PER_PART = {"cpu": 1_024}
CELLS_PER_ACCELERATOR_PART = 16_384


def begin(
    output: Path, attenders: Mapping[str, AttentionExtractor], command: Mapping[str, Any]
) -> Path:
    """Returns the folder of the parts of `output`: a new one, or one of the same command.

    Raises:
      InputError: it holds parts of other cells, of another model or of another command.
    """
    folder = parts_folder(output)
    attender = next(iter(attenders.values()))
    plan = {**identity_of(attender.model, attender.cells), "command": as_json(command)}
    if (folder / PLAN).is_file():
        refuse_other_plan(folder, plan)
        return folder
    require_new_folder(folder, "remove it, or name another output")
    with atomic_write(folder) as aside:
        aside.mkdir()
        (aside / PLAN).write_text(json.dumps(plan, indent=2) + "\n")
    return folder


def attend_in_parts(
    attenders: Mapping[str, AttentionExtractor], folder: Path
) -> dict[str, Attended]:
    """Runs each attender, going on with the parts that an interrupted run left in `folder`."""
    return {
        name: AttentionParts(folder / name.replace(" ", "_"), attender).attend()
        for name, attender in attenders.items()
    }


class AttentionParts:
    """The unfinished attention of one output: totals so far, and the cells of each part."""

    def __init__(self, folder: Path, attender: AttentionExtractor):
        """Goes on with what is in `folder`, which belongs to this run alone."""
        self.folder, self._attender = folder, attender

    def attend(self) -> Attended:
        """Reads off what is missing; returns the attention in all cells."""
        attender = self._attender
        cells = len(attender.cells.lengths)
        totals, done = self._kept()
        with Progress(cells, "attend", "cells", initial=done) as progress:
            while done < cells:
                stop = min(done + _part_size(attender), cells)
                part = attender.run(done, stop, progress)
                totals = jax.tree.map(np.add, totals, part.totals)
                self._write(self._cells_path(done), part.cells._asdict() | {"stop": stop})
                self._write(self._totals_path, totals._asdict() | {"done": stop})
                done = stop
        return Attended(totals, self._measures(cells))

    @property
    def _totals_path(self) -> Path:
        return self.folder / "totals.npz"

    def _cells_path(self, start: int) -> Path:
        return self.folder / f"cells-{start:09d}.npz"

    def _write(self, path: Path, arrays: Mapping[str, Any]) -> None:
        with atomic_write(path) as aside, aside.open("wb") as file:
            np.savez(file, **arrays)

    def _kept(self) -> tuple[AttentionTotals, int]:
        if not self._totals_path.is_file():
            return jax.tree.map(lambda leaf: sum_devices(leaf[None]), self._attender.empty()), 0
        kept = self._read(self._totals_path)
        return AttentionTotals(*(kept[name] for name in AttentionTotals._fields)), int(kept["done"])

    def _measures(self, cells: int) -> CellMeasures:
        parts, start = [], 0
        while start < cells:
            kept = self._read(self._cells_path(start))
            parts.append([kept[name] for name in CellMeasures._fields])
            start = int(kept["stop"])
        return CellMeasures(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    def _read(self, path: Path) -> Mapping[str, np.ndarray]:
        try:
            # Zip files carry checksums of their own.
            with np.load(path) as kept:
                return {name: kept[name] for name in kept.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise InputError(
                f"{path} is damaged; remove {self.folder.parent} to begin anew"
            ) from None


def _part_size(attender: AttentionExtractor) -> int:
    platform = attender.pass_.mesh.devices.flat[0].platform
    return attender.pass_.mesh.size * CELLS_PER_PART.get(platform, CELLS_PER_ACCELERATOR_PART)
