"""The folder of a classification task: what is there already is read, not computed again."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, slug
from geneformer_jax.common.provenance import FILE_NAME
from geneformer_jax.finetuning.classification.config import TaskConfig
from geneformer_jax.finetuning.classification.predictions import read_predictions, write_predictions
from geneformer_jax.finetuning.classification.task import ClassificationTask

_TASK, SPLIT, LABELS = "task.json", "split.parquet", "labels.csv"


class TaskFolder:
    """Tables of one task, each written once.

    Opening writes the task's description, its split and its labels, or checks that those in the
    folder are the same.
    """

    def __init__(self, path: Path, config: TaskConfig, task: ClassificationTask):
        """Opens or begins a folder.

        Raises:
          InputError: the folder holds another task.
        """
        self.path = path
        self.config = config
        description = {"task": dataclasses.asdict(config), "content": _content_hash(task)}
        text = json.dumps(description, indent=2) + "\n"
        file = path / _TASK
        if file.is_file():
            if file.read_text() != text:
                raise InputError(
                    f"{path} holds another task (see its {_TASK}: another configuration, other "
                    "labels, splits or cells); name another folder"
                )
            return
        task.split.write(path / SPLIT)
        with atomic_write(path / LABELS) as aside:
            task.labels.rename("class").rename_axis("id").to_csv(aside)
        with atomic_write(file) as aside:
            aside.write_text(text)

    @property
    def finished(self) -> bool:
        """Whether all is there: provenance.json is written last."""
        return (self.path / FILE_NAME).is_file()

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Returns a table by its name, as "predictions/SVM, ranks"; makes it if not yet there."""
        folder, _, file = name.partition("/")
        path = self.path / folder / f"{slug(file)}.parquet"
        if not path.is_file():
            write_predictions(make(), path)
        return read_predictions(path)

    def network(self, name: str) -> Path:
        """Returns the folder that a network may use for its own files."""
        folder = self.path / "networks" / slug(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _content_hash(task: ClassificationTask) -> str:
    """Of what decides the results: labels, split, vocabulary, and the drawn cells with lengths."""
    digest = hashlib.sha256(task.cells.vocabulary.hash.encode())
    for table in (
        task.labels.reset_index(),
        task.split.table,
        pd.DataFrame({"id": task.cells.obs.index.astype(str), "length": task.cells.lengths}),
    ):
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()
