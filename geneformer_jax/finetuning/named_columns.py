"""The obs columns that a configuration names: whether the store has them.

Imports no JAX: `finetune` asks before it loads it.
"""

from collections.abc import Mapping
from typing import Any

from geneformer_jax.finetuning.classification.config import TaskConfig, typed_task
from geneformer_jax.finetuning.config import MultitaskConfig, typed_multitask
from geneformer_jax.inference.columns import require_columns


def require_named_columns(configuration: Mapping[str, Any]) -> None:
    """Refuses obs columns that the store lacks.

    Args:
      configuration: of fine-tuning, with a section "task" or "targets".

    Raises:
      InputError: a column is not there, or the section of the task is wrong.
    """
    columns, filters = [], ()
    if given := configuration.get(TaskConfig.section):
        task = typed_task(given)
        columns, filters = [task.label, task.group], task.filters
    elif given := configuration.get(MultitaskConfig.section):
        targets = typed_multitask(given)
        columns = [*targets.columns("classes"), *targets.columns("numbers"), targets.group]
    require_columns(configuration["data"]["store"], columns, filters)
