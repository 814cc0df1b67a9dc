"""Predictions of cells beside labels that are known."""

import anndata as ad
import pandas as pd

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.finetuning.prediction.tables import PREDICTED
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.model.heads import HeadTask
from geneformer_jax.model.pretrained import PretrainedModel


def find_output(model: PretrainedModel, name: str = "") -> HeadTask:
    """Returns the output of classes that labels are compared with.

    Args:
      model: with a cell classifier.
      name: of the output; by default the first of classes.

    Raises:
      InputError: the model has no such output.
    """
    outputs = {task.name: task for task in model.head.outputs if not task.regression}
    if not outputs:
        raise InputError("labels are compared with classes, but the model gives numbers only")
    name = name or next(iter(outputs))
    if name not in outputs:
        raise InputError(
            f'"{name}" is no output of classes{did_you_mean(name, outputs)}; use one of '
            f"{', '.join(outputs)}"
        )
    return outputs[name]


def check_labels(obs: pd.DataFrame, column: str, task: HeadTask) -> pd.Series:
    """Returns the known labels of cells, as text, to compare predictions with.

    Raises:
      InputError: there is no such column, or none of its values is a class of the model.
    """
    check_columns(obs, [column])
    known = obs[column].astype("object")
    texts = known[known.notna()].astype(str)
    if not texts.isin(task.labels).any():
        first = texts.iloc[0] if len(texts) else "nothing"
        raise InputError(
            f'no value of "{column}" is a class of the model: it holds "{first}"'
            f"{did_you_mean(first, task.labels)}, the model knows {', '.join(task.labels)}"
        )
    return texts


def compare_with_labels(predicted: ad.AnnData, known: pd.Series, task: HeadTask) -> list[str]:
    """Returns lines on how predictions agree with known labels.

    Args:
      predicted: as `predict_cells` returns it.
      known: labels of the cells that have one, from `check_labels`.
      task: the output of classes to compare with.
    """
    shared = known.isin(task.labels)
    lines = []
    strange = sorted(set(known[~shared]))
    if strange:
        lines.append(
            f"{int((~shared).sum()):,} cells have a label that the model does not know, and are "
            f"not compared: {', '.join(strange)}"
        )
    if missing := int(predicted.obs[f"{PREDICTED}_{task.name}"].notna().sum()) - len(known):
        lines.append(f'{missing:,} cells have no "{known.name}", and are not compared')
    own = predicted.obs.loc[known.index[shared], f"{PREDICTED}_{task.name}"].astype(str)
    agreement = float((own.to_numpy() == known[shared].to_numpy()).mean())
    lines.append(
        f'"{known.name}": {agreement:.2%} of {int(shared.sum()):,} cells are predicted right'
    )
    return lines
