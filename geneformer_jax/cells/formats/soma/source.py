"""Raw counts from an experiment of TileDB-SOMA, one of a Census included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.matrix import Pieces, Rows
from geneformer_jax.cells.counts.matrix_choice import sum_of
from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.texts import as_packed_text
from geneformer_jax.cells.formats.features import FeatureSource
from geneformer_jax.cells.formats.soma.cells import (
    CELL_ID,
    JOIN_ID,
    choose_rows,
    obs_columns,
    read_cells,
)
from geneformer_jax.cells.formats.soma.experiment import choose_measurement, find_experiment
from geneformer_jax.cells.formats.soma.layer import LayerRows
from geneformer_jax.cells.formats.soma.library import require_library

if TYPE_CHECKING:
    import tiledbsoma

# Census has symbols too, but several genes may share one there.
_FEATURE_ID = "feature_id"
# Where Census says how many values each cell has.
_VALUES = "nnz"


class SomaSource(FeatureSource):
    """An experiment on disk: the cells that pass a filter, in the order of their join ids."""

    kind = "TileDB-SOMA"
    takes_soma_options = True
    _gene_table_name = "var"

    def __init__(self, path: Path, options: CountOptions):
        """Reads which cells and genes there are.

        Args:
          path: of an experiment, or of a Census.
          options: which organism, measurement, layer and cells.

        Raises:
          InputError: the library is not installed, the path is no experiment, or what the options
            name is not there.
        """
        super().__init__(path, options)
        require_library(path)
        with explain_damage(path, self.kind):
            self._place, build = find_experiment(path, options.organism)
            with self._place.open() as experiment:
                self._measurement = choose_measurement(path, experiment, options.measurement)
                self._set_cells(experiment.obs)
                features = self._read_features(experiment.ms[self._measurement].var)
                layers = sorted(experiment.ms[self._measurement].X)
            places = {name: f"{self._measurement}/X/{name}" for name in layers}
            self._choose_matrix(places, lambda name: self._layer(name))
        self._set_features(features, (len(self._chosen_rows.ids), len(self._gene_axis)))
        self.origin = {**build, **self._facts()}
        self.remark = self._describe(build)

    def _set_cells(self, obs: tiledbsoma.DataFrame) -> None:
        self._has_ids = CELL_ID in obs.keys()  # noqa: SIM118
        self._cell_columns = obs_columns(obs)
        self._chosen_rows = choose_rows(self.path, obs, self.options.obs_filter)
        self._ids_in_blocks(self._read_ids, len(self._chosen_rows.ids))

    def _read_features(self, var: tiledbsoma.DataFrame) -> dict[str, np.ndarray]:
        table = var.read().concat().sort_by(JOIN_ID)
        self._gene_axis = table[JOIN_ID].to_numpy()
        return {
            field.name: table[field.name].to_pandas().to_numpy(dtype=object)
            for field in table.schema
            if _is_text(field.type)
        }

    def candidate_gene_columns(self) -> Iterator[str]:
        """Yields the columns that may hold gene ids; `feature_id` alone where it is there."""
        if self.options.gene_column is None and _FEATURE_ID in self._gene_columns:
            yield _FEATURE_ID
            return
        yield from super().candidate_gene_columns()

    def _layer(self, name: str) -> LayerRows:
        return LayerRows(
            self._place, self._measurement, name, self._chosen_rows.ids, self._gene_axis
        )

    @contextlib.contextmanager
    def _matrix(self) -> Iterator[Rows | Pieces]:
        layers = [self._layer(name) for name in self._chosen]
        yield sum_of(layers, f"{self.path} ({self.matrix_name})")

    def _sizes(self, matrix: Rows, first: int, stop: int) -> np.ndarray:
        if _VALUES not in self._cell_columns:
            return super()._sizes(matrix, first, stop)
        return np.asarray(self._read([_VALUES], slice(first, stop))[_VALUES])

    def _read_ids(self, start: int, stop: int) -> np.ndarray:
        if not self._has_ids:
            return as_packed_text(self._chosen_rows.ids[start:stop])
        return as_packed_text(self._read([CELL_ID], slice(start, stop))[CELL_ID])

    def _obs_columns(self) -> list[str]:
        return self._cell_columns

    def _obs_shape(self, column: str) -> tuple[int, ...]:
        return self._chosen_rows.ids.shape

    def _read_obs(self, columns: list[str], rows: slice) -> dict[str, object]:
        return self._read(columns, rows)

    def _read(self, columns: Sequence[str], rows: slice) -> dict[str, object]:
        with self._place.open() as experiment:
            return read_cells(experiment.obs, columns, self._chosen_rows.ids[rows])

    def _facts(self) -> dict[str, object]:
        rows = self._chosen_rows
        return {
            "measurement": self._measurement,
            "obs_filter": self.options.obs_filter,
            "cells_in_experiment": rows.total,
            "cells_dropped_by_obs_filter": rows.total - len(rows.ids),
            "dropped_of_data_set": {name: list(each) for name, each in rows.dropped.items()},
        }

    def _describe(self, build: dict[str, str]) -> str:
        parts = [f"{name} {value}" for name, value in build.items()]
        if self.options.obs_filter is not None:
            parts.append(self._chosen_rows.describe())
        return "; ".join(parts)


def soma_obs_columns(path: Path) -> list[str]:
    """Names of the per-cell columns of an experiment, or of a Census of one organism.

    Raises:
      InputError: as from `SomaSource`.
    """
    require_library(path)
    with explain_damage(path, SomaSource.kind):
        place, _ = find_experiment(path, None)
        with place.open() as experiment:
            return obs_columns(experiment.obs)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
