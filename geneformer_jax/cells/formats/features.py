"""Features of a matrix that has more than genes: antibodies, guides, peaks, control probes."""

from collections import Counter
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.source import MatrixSource
from geneformer_jax.cells.counts.texts import as_fixed_text
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger

ID, SYMBOL, TYPE = "gene_ids", "gene_name", "feature_types"
# Names of the column of types, as scanpy and others write it.
_TYPE_COLUMNS = (TYPE, "feature_type")
_GENES = "Gene Expression"
# Types that 10x Genomics gives to what is no gene. Of a file without genes they tell that it is of
# features; other words in their place are of something else.
_OTHERS = (
    "Antibody Capture",
    "Antigen Capture",
    "CRISPR Guide Capture",
    "Custom",
    "Multiplexing Capture",
    "Peaks",
)


def genes_among(types: np.ndarray, path: Path) -> np.ndarray | None:
    """Finds the genes among features, by their types, and logs how many others are left out.

    Args:
      types: [features] str.
      path: of the file, for messages.

    Returns:
      The numbers of the genes; None where all are genes, or types say nothing about it.

    Raises:
      InputError: no feature is a gene, or a type is missing or misspelt.
    """
    others = Counter(types[types != _GENES].tolist())
    if others.total() == len(types):
        if not others.keys() & set(_OTHERS):
            return None
        raise InputError(
            f"{path}: none of its features is a gene (they are {_listed(others)}); give a file "
            f'with features of the type "{_GENES}"'
        )
    if not others:
        return None
    damaged = [name for name in others if not name or get_close_matches(name, [_GENES], cutoff=0.7)]
    if damaged:
        raise InputError(
            f'{path}: feature type "{damaged[0]}" is not known; the file is damaged: copy or write '
            "it again"
        )
    logger.info("%s: leaves out what is no gene: %s", path, _listed(others))
    return np.flatnonzero(types == _GENES)


def _listed(types: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in types.items())


class TypedFeatures(MatrixSource):
    """A source whose table of genes may have the types of its features."""

    def _leave_out_other_features(self) -> None:
        """Leaves out what is no gene, as it is no part of a cell's total."""
        column = next((name for name in _TYPE_COLUMNS if name in self._gene_columns), None)
        if column is None:
            return
        with explain_damage(self.path, self.kind):
            types = as_fixed_text(self._read_genes(column))
        genes = genes_among(types, self.path)
        if genes is not None:
            self._keep_features(genes)


class FeatureSource(TypedFeatures):
    """A source whose features are in a small table of their own, without an index.

    So are the per-cell columns, if there are any.
    """

    _gene_table_name = "features"
    _has_gene_index = False
    _obs_table = pd.DataFrame()

    def _set_features(self, features: dict[str, np.ndarray], shape: tuple[int, int]) -> None:
        """Takes ids, and leaves out what is no gene."""
        self._feature_table = features
        self._set_genes(list(features))
        self._finish(shape)
        self._leave_out_other_features()

    def _read_genes(self, column: str | None) -> object:
        return self._feature_table[column]

    def _obs_columns(self) -> list[str]:
        return list(self._obs_table.columns)

    def _obs_shape(self, column: str) -> tuple[int, ...]:
        return self._obs_table[column].shape

    def _read_obs(self, columns: list[str], rows: slice) -> dict[str, object]:
        return {column: self._obs_table[column].array[rows] for column in columns}
