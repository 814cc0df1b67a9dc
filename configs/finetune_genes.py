"""A gene classifier on a table of genes and their classes.

  python -m geneformer_jax.finetune --config=configs/finetune_genes.py --checkpoint=MODEL \\
      --config.data.store=STORE --config.task.genes=GENES.tsv --workdir=RUN

One split of 70, 10 and 20 % of the genes (train, valid, test); cells that express them are drawn
from the store. Classical classifiers on the same genes stand beside
(--config.task.baselines=False leaves them out). Whole folds and controls: see configs/tasks.
"""

from ml_collections import ConfigDict

from geneformer_jax.finetuning.classification.config import task_config
from geneformer_jax.finetuning.config import finetune_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = finetune_config()
    config.task = task_config(
        "gene",
        genes="",
        folds=1,
        test_fraction=0.2,
        valid_fraction=0.125,
        max_cells=10_000,
        controls=(),
    )
    config.search = ConfigDict(
        {
            "space": (
                "optimizer.learning_rate: log 1e-5 1e-3",
                "optimizer.warmup_ratio: uniform 0 0.3",
                "tuning.freeze_layers: int 0 4",
            ),
            "metric": "macro_f1",
            "seed": 0,
            "pruning_after": 5,
        }
    )
    return config
