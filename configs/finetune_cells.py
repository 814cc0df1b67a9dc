"""A cell classifier on the labels of an obs column.

  python -m geneformer_jax.finetune --config=configs/finetune_cells.py --checkpoint=MODEL \\
      --config.data.store=STORE --config.task.label=cell_type --workdir=RUN

One split of 70, 10 and 20 % of the cells (train, valid, test); name a donor or batch column with
--config.task.group to hold whole ones out. Classical classifiers on the same cells stand beside
(--config.task.baselines=False leaves them out). Learning rate and epochs are the paper's, for tens
of thousands of cells. With a few hundred or thousand of them begin with logistic regression on the
cells' embeddings in place of a random head: --config.head.initial=probe --config.head.pooling=mean
--config.optimizer.learning_rate=2e-4 --config.epochs=2. --trials=20 searches rates and the like.
"""

from ml_collections import ConfigDict

from geneformer_jax.finetuning.classification.config import task_config
from geneformer_jax.finetuning.config import finetune_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = finetune_config()
    config.task = task_config(
        "cell",
        label="",
        folds=1,
        test_fraction=0.2,
        valid_fraction=0.125,
        controls=(),
    )
    config.search = ConfigDict(
        {
            "space": (
                "optimizer.learning_rate: log 1e-5 1e-3",
                "optimizer.warmup_ratio: uniform 0 0.3",
                "tuning.freeze_layers: int 0 2",
            ),
            "metric": "macro_f1",
            "seed": 0,
            "pruning_after": 5,
        }
    )
    return config
