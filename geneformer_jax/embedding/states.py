"""State embeddings: one vector for each group of cells, towards which perturbation measures shifts.

The original approximates means and medians by t-digests unless asked for exact ones; these here
are always exact.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import atomic_write
from geneformer_jax.embedding.embedder import Embedded
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.inference.filters import label_texts
from geneformer_jax.inference.finite import require_finite

MEAN, MEDIAN, LOWER_MEDIAN = "mean", "median", "lower_median"
QUANTILES = (0.25, 0.75)
_FACTS = b"geneformer_states"
_MAX_STATES = 1_000
_COLUMNS = pa.schema(
    {"state": pa.string(), "cells": pa.int64(), "layer": pa.int64(), "statistic": pa.string()}
)
_REASON_LETTERS = 120
# What is raised of a table that is another, or damaged.
_OTHER_FILE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True, eq=False)
class StateEmbeddings:
    """Statistics of the embeddings of each state.

    Attributes:
      column: obs column that names the states.
      table: one row for each state, layer and statistic: columns `state`, `cells`, `layer`,
        `statistic` and `embedding`, a float32 array [D].
      facts: of the embeddings: mode, hidden_layer, checkpoint, vocabulary_hash and so on.
    """

    column: str
    table: pd.DataFrame
    facts: Mapping[str, object]

    @property
    def states(self) -> list[str]:
        """Names of the states, in alphabetical order."""
        return list(dict.fromkeys(self.table["state"]))

    def vectors(self, statistic: str = MEAN, layer: int | None = None) -> dict[str, np.ndarray]:
        """Returns state -> float32 [D].

        Args:
          statistic: "mean", "median", "lower_median", or "quantile_0.25" and so on.
          layer: counted back from the last; may be left out where there is only one.

        Raises:
          InputError: there is no such statistic or layer.
        """
        layers = self.table["layer"].unique().tolist()
        if layer is None and len(layers) == 1:
            layer = layers[0]
        if layer not in layers:
            known = ", ".join(map(str, layers))
            raise InputError(f"the state embeddings have no layer {layer}; they have {known}")
        known = self.table["statistic"].unique().tolist()
        if statistic not in known:
            raise InputError(
                f'the state embeddings have no "{statistic}"{did_you_mean(statistic, known)}; they '
                f"have {', '.join(known)}"
            )
        rows = self.table[(self.table["layer"] == layer) & (self.table["statistic"] == statistic)]
        return {
            state: np.asarray(vector, np.float32)
            for state, vector in zip(rows["state"], rows["embedding"], strict=True)
        }

    def save(self, path: Path | str) -> None:
        """Writes a parquet file, whole or not at all."""
        vectors = np.stack(self.table["embedding"].to_numpy())
        lists = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        table = pa.Table.from_pandas(self.table.drop(columns="embedding"), preserve_index=False)
        facts = {"column": self.column, **self.facts}
        table = table.append_column("embedding", lists).replace_schema_metadata(
            {**table.schema.metadata, _FACTS: json.dumps(facts, default=str)}
        )
        with atomic_write(path) as aside:
            pq.write_table(table, aside, write_page_checksum=True)

    @classmethod
    def load(cls, path: Path | str) -> "StateEmbeddings":
        """Reads what `save` wrote.

        Raises:
          InputError: the file is not there or is something else.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path} does not exist; write state embeddings with embed --states")
        try:
            return cls(*_read(path))
        except _OTHER_FILE as error:
            reason = " ".join(str(error).split())[:_REASON_LETTERS]
            raise InputError(
                f"{path} holds no state embeddings ({reason}); write some with embed --states"
            ) from error


def _read(path: Path) -> tuple[str, pd.DataFrame, dict[str, object]]:
    """Returns column, table and facts; raises whatever is raised of a file that is another."""
    table = pq.read_table(path, page_checksum_verification=True)
    facts = json.loads((table.schema.metadata or {})[_FACTS])
    column = facts.pop("column")
    vectors = table["embedding"].combine_chunks()
    kind = vectors.type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise ValueError(f"embeddings are {kind}")
    rows = np.asarray(vectors.flatten()).reshape(-1, kind.list_size)
    texts = table.select(_COLUMNS.names).cast(_COLUMNS)
    if len(rows) != len(texts) or not len(rows) or not np.isfinite(rows).all():
        raise ValueError("embeddings are missing, NaN or infinite")
    if not isinstance(column, str) or any(each.null_count for each in texts.columns):
        raise ValueError("names are missing")
    return column, texts.to_pandas().assign(embedding=list(rows)), facts


def state_embeddings(
    embedded: Embedded, column: str, quantiles: Sequence[float] = QUANTILES
) -> StateEmbeddings:
    """Summarises the embeddings of the cells of each state, dimension by dimension.

    `mean`; `median`, the usual one, halfway between the two middle values of an even number of
    cells; `lower_median`, the lower of these, which is the original's (torch.median); and
    `quantile_q`, by linear interpolation. All are exact and computed in float64. Cells without a
    value are left out and counted in the facts.

    Args:
      embedded: one row per cell (modes "cell" and "cls").
      column: obs column whose values are the states.
      quantiles: between 0 and 1.

    Raises:
      InputError: there is no such column, it has no or too many values, a quantile is not
        between 0 and 1, or an embedding holds NaN or infinity.
    """
    check_states(embedded.table, column, quantiles)
    require_finite(embedded.rows, embedded.table.index)
    labels = label_texts(embedded.table[column])
    records = []
    for state, rows in sorted(labels.groupby(labels).indices.items()):
        for k, layer in enumerate(embedded.layers):
            vectors = np.asarray(embedded.rows[rows, k], np.float64)
            for statistic, vector in _summaries(vectors, quantiles).items():
                records.append((state, len(rows), layer, statistic, vector.astype(np.float32)))
    table = pd.DataFrame(records, columns=["state", "cells", "layer", "statistic", "embedding"])
    facts = {**embedded.facts, "cells_without_state": int(labels.isna().sum())}
    return StateEmbeddings(column, table, facts)


def check_states(obs: pd.DataFrame, column: str, quantiles: Sequence[float] = QUANTILES) -> None:
    """Raises InputError if `state_embeddings` would, before any cell is embedded."""
    check_columns(obs, [column])
    for quantile in quantiles:
        if not 0 <= quantile <= 1:
            raise InputError(f"quantile {quantile} is not between 0 and 1")
    states = obs[column].nunique()
    if not 1 <= states <= _MAX_STATES:
        raise InputError(
            f'column "{column}" has {states:,} different values; states need 1 to {_MAX_STATES:,}'
        )


def _summaries(vectors: np.ndarray, quantiles: Sequence[float]) -> dict[str, np.ndarray]:
    lower = np.partition(vectors, (len(vectors) - 1) // 2, axis=0)[(len(vectors) - 1) // 2]
    summaries = {
        MEAN: vectors.mean(axis=0),
        MEDIAN: np.median(vectors, axis=0),
        LOWER_MEDIAN: lower,
    }
    for quantile in quantiles:
        summaries[f"quantile_{quantile:g}"] = np.quantile(vectors, quantile, axis=0)
    return summaries
