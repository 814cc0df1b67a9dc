"""Small tasks of the toy cells: which of two types a cell is, which half a gene is of."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from ml_collections import ConfigDict

from geneformer_jax.batches.labelled import UNLABELLED, LabelledCells
from geneformer_jax.finetuning.classification.task import FoldData
from geneformer_jax.finetuning.config import FinetuneConfig, finetune_config, typed_finetune_config
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import init_params
from geneformer_jax.model.heads import HeadTask
from geneformer_jax.model.pretrained import PretrainedModel, save_model
from tests.helpers.toy import GENES, toy_vocabulary

TINY = EncoderConfig(
    152, 2, 16, 2, 32, 256, dropout=0.1, attention_dropout=0.0, initializer_range=0.1
)


def save_base(folder: Path, seed: int = 1) -> Path:
    """Saves a model with the masked-gene head, as pretraining leaves it; returns its checkpoint."""
    params = jax.jit(lambda: init_params(TINY, jax.random.key(seed)))()
    model = PretrainedModel(TINY, params, toy_vocabulary(), "made up", step=5)
    return save_model(model, folder, {"command": "test"})


@dataclass(frozen=True, eq=False)
class ToyTask:
    """Folds of every n-th cell or gene."""

    unit: str
    cells: object
    folds: int = 2
    name: str = "toy"
    outputs: tuple[HeadTask, ...] = (HeadTask("label", ("a", "b")),)
    summary: tuple[str, ...] = ()
    labels: np.ndarray | None = None

    @property
    def split(self):
        return SimpleNamespace(folds=self.folds)

    def all_labels(self) -> np.ndarray:
        """Class number of each cell, or of each token."""
        if self.labels is not None:
            return self.labels
        if self.unit == "cell":
            return (self.cells.obs["kind"] == "b").to_numpy().astype(np.int32)
        labels = np.full(self.cells.vocabulary.size, UNLABELLED, np.int32)
        labels[2:] = np.arange(GENES) >= GENES // 2
        return labels

    def fold_data(self, fold: int) -> FoldData:
        labels = self.all_labels()
        part = np.arange(len(labels)) % (self.folds + 2)
        chosen = [(part != fold) & (part != self.folds), part == self.folds, part == fold]
        if self.unit == "cell":
            rows = [np.flatnonzero(each) for each in chosen]
            return FoldData(*(LabelledCells(each, labels[each]) for each in rows))
        every = np.arange(0, len(self.cells), 3)
        return FoldData(
            *(LabelledCells(every, np.where(each, labels, UNLABELLED)) for each in chosen)
        )


def quick_config(**changes) -> ConfigDict:
    """A quick run on one device; changes are by dotted name."""
    config = finetune_config()
    config.model = dict(vars(TINY), vocabulary_size=0)
    quick = {
        "mesh.data": 1,
        "data.cells_per_batch": 8,
        "data.max_buckets": 1,
        "optimizer.learning_rate": 3e-3,
        "optimizer.warmup_steps": 2,
        "log_every_steps": 4,
    }
    config.update_from_flattened_dict(quick | changes)
    return config


def config_of(**changes) -> FinetuneConfig:
    """The same, typed."""
    return typed_finetune_config(quick_config(**changes))
