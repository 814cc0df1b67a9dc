"""MLflow: a run of its own for each workdir, in a database there or wherever MLflow is told."""

import logging
import os
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from geneformer_jax.training.tracking.tracker import PROJECT, TrackedRun

REFUSALS = (MlflowException,)
_DATABASE = "mlflow.db"
_ID_TAG = "geneformer_jax.run_id"
# MLflow takes no more in one call.
_PARAMS_AT_ONCE = 100


class MlflowRun:
    """A run that this process goes on with."""

    def __init__(self, run: TrackedRun):
        """Finds the run by its id, or begins it. MLFLOW_TRACKING_URI names a server."""
        # It would tell of each table that it makes.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        database = f"sqlite:///{(run.folder / _DATABASE).resolve()}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", database))
        found = self._find(run)
        self._run_id = found.info.run_id
        self._written = {
            (name, metric.step)
            for name in found.data.metrics
            for metric in self._client.get_metric_history(self._run_id, name)
        }

    def _find(self, run: TrackedRun) -> Run:
        experiment = self._client.get_experiment_by_name(PROJECT)
        if experiment is None:
            number = self._client.create_experiment(PROJECT)
        else:
            number = experiment.experiment_id
        if known := self._client.search_runs([number], f"tags.`{_ID_TAG}` = '{run.run_id}'"):
            return known[0]
        begun = self._client.create_run(number, run_name=run.name, tags={_ID_TAG: run.run_id})
        settings = [Param(name, str(value)) for name, value in run.settings.items()]
        for start in range(0, len(settings), _PARAMS_AT_ONCE):
            part = settings[start : start + _PARAMS_AT_ONCE]
            self._client.log_batch(begun.info.run_id, params=part)
        return begun

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Adds numbers of a step, but those that the run has."""
        now = int(1000 * time.time())
        self._client.log_batch(
            self._run_id,
            metrics=[
                Metric(name, value, now, step)
                for name, value in values.items()
                if (name, step) not in self._written
            ],
        )

    def close(self) -> None:
        """Marks the run as finished; one that goes on is marked again."""
        self._client.set_terminated(self._run_id)


def open_run(run: TrackedRun) -> MlflowRun:
    """Begins or goes on with a run."""
    return MlflowRun(run)
