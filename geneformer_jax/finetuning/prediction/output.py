"""Predictions in files of several formats."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from geneformer_jax.common.files import atomic_write, suffix_of
from geneformer_jax.common.provenance import provenance_beside, without_times
from geneformer_jax.common.tables import write_csv
from geneformer_jax.finetuning.classification.predictions import PROBABILITY
from geneformer_jax.finetuning.prediction.tables import CLASSES, PROBABILITIES
from geneformer_jax.inference.written_anndata import write_anndata

SUFFIXES = (".h5ad", ".parquet", ".csv")


def write_predicted(
    predicted: ad.AnnData | pd.DataFrame, output: Path, provenance: Mapping[str, Any]
) -> None:
    """Writes predictions with their provenance beside them.

    Args:
      predicted: from `predict_cells` or `predict_genes`.
      output: file: .h5ad (of cells), .parquet or .csv.
      provenance: of the run.
    """
    with atomic_write(provenance_beside(output)) as aside:
        aside.write_text(_as_json(provenance))
    with atomic_write(output) as aside:
        if suffix_of(output) == ".h5ad":
            predicted.uns["provenance"] = _as_json(without_times(provenance))
            write_anndata(predicted, aside)
            return
        table = _side_by_side(predicted) if isinstance(predicted, ad.AnnData) else predicted
        if suffix_of(output) == ".parquet":
            table.to_parquet(aside)
        else:
            write_csv(table, aside, index=True)


def _as_json(provenance: Mapping[str, Any]) -> str:
    return json.dumps(provenance, indent=2, default=str) + "\n"


def _side_by_side(predicted: ad.AnnData) -> pd.DataFrame:
    """Returns obs and all probabilities as one table."""
    parts = [predicted.obs]
    for name, probabilities in predicted.obsm.items():
        output = name.removeprefix(PROBABILITIES)
        columns = [f"{PROBABILITY}{output}_{label}" for label in predicted.uns[CLASSES + output]]
        parts.append(pd.DataFrame(probabilities, predicted.obs_names, columns))
    return pd.concat(parts, axis=1)
