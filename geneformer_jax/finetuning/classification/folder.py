"""The folder of a classification task: finished tables are read, not computed again."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geneformer_jax.common.files import slug
from geneformer_jax.common.provenance import FILE_NAME
from geneformer_jax.common.tables import write_csv
from geneformer_jax.finetuning.classification.config import TaskConfig
from geneformer_jax.finetuning.classification.predictions import read_predictions, write_predictions
from geneformer_jax.finetuning.classification.task import ClassificationTask
from geneformer_jax.inference.resume.folder import PartsFolder
from geneformer_jax.model.pretrained import FOLD, NETWORKS
from geneformer_jax.model.processes import by_first, is_first, of_first

SPLIT, LABELS = "split.parquet", "labels.csv"


class TaskFolder:
    """The results of one task; each table is a part that is written once.

    Attributes:
      path: of the folder.
      config: of the task.
    """

    def __init__(
        self,
        path: Path,
        config: TaskConfig,
        task: ClassificationTask,
        identity: Mapping[str, Any] | None = None,
    ):
        """Begins a folder with the split and the labels, or opens that of the same task.

        Args:
          path: of the folder.
          config: of the task.
          task: its labels, cells and folds.
          identity: what else the results depend on, as of the networks.

        Raises:
          InputError: the folder is of another task.
        """
        self.path, self.config = path, config
        self._parts = PartsFolder(path)

        def prepare(folder: Path) -> None:
            task.split.write(folder / SPLIT)
            labels = task.labels.rename("class").rename_axis("id")
            write_csv(labels, folder / LABELS, index=True)

        of_task = {"task": dataclasses.asdict(config), "content": _content_hash(task)}
        identity = {**(identity or {}), **of_task}
        by_first(lambda: self._parts.begin(identity, prepare=prepare))

    @property
    def finished(self) -> bool:
        """Whether all is there: provenance.json is written last."""
        return bool(of_first((self.path / FILE_NAME).is_file()))

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Returns a table by its name, as "predictions/SVM, ranks".

        It is made if it is not there or damaged.
        """
        part, path = self._place_of(name)
        if not self._parts.is_done(part):
            self._write(part, make())
        return read_predictions(path)

    def table_of_all(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Returns a table that all processes of a run make together, and ask for together."""
        part, path = self._place_of(name)
        if not of_first(is_first() and self._parts.is_done(part)):
            table = make()
            by_first(lambda: self._write(part, table))
        return read_predictions(path)

    def _place_of(self, name: str) -> tuple[str, Path]:
        """Returns the part of a table, and its file."""
        folder, _, title = name.partition("/")
        part = f"{folder}/{slug(title)}"
        return part, self.path / f"{part}.parquet"

    def _write(self, part: str, table: pd.DataFrame) -> None:
        self._parts.write(part, {f"{part}.parquet": lambda path: write_predictions(table, path)})

    def folds(self, name: str) -> list[Path]:
        """Returns the folders of a network's folds, in order; empty if the method is none."""
        folders = (self.path / NETWORKS / slug(name)).glob(f"{FOLD}*")
        return sorted(folders, key=lambda each: int(each.name.removeprefix(FOLD)))

    def network(self, name: str) -> Path:
        """Returns the folder for a network's own files."""
        folder = self.path / NETWORKS / slug(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _content_hash(task: ClassificationTask) -> str:
    """Hashes labels, split, vocabulary, and the drawn cells with their lengths."""
    digest = hashlib.sha256(task.cells.vocabulary.hash.encode())
    for table in (
        task.labels.reset_index(),
        task.split.table,
        pd.DataFrame({"id": task.cells.obs.index.astype(str), "length": task.cells.lengths}),
    ):
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()
