"""Training runs: their losses by step, and where each stands at its end."""

from collections.abc import Mapping
from pathlib import Path

import altair as alt
import pandas as pd

from geneformer_jax.finetuning.classification.figures import SIDES, loss_chart
from geneformer_jax.training.telemetry import read_metrics


def runs_chart(runs: Mapping[str, Path]) -> alt.LayerChart | None:
    """Charts the losses of runs (name -> folder) against training steps; None without any."""
    return loss_chart({name: read_metrics(path) for name, path in runs.items()})


def last_values(runs: Mapping[str, Path]) -> pd.DataFrame:
    """Returns a run a row: run, step, and the last loss in training and on held-out cells."""
    rows = []
    for name, path in runs.items():
        metrics = read_metrics(path)
        row: dict[str, object] = {"run": name}
        row["step"] = max((each["step"] for each in metrics if "step" in each), default=0)
        for key, (side, _) in SIDES.items():
            row[f"{side} loss (nats)"] = next(
                (each[key] for each in reversed(metrics) if key in each), None
            )
        rows.append(row)
    return pd.DataFrame(rows)
