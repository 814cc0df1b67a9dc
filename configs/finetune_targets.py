"""Several outputs of a cell at once: classes and numbers of obs columns.

  python -m geneformer_jax.finetune --config=configs/finetune_targets.py --checkpoint=MODEL \\
      --config.data.store=STORE --config.targets.classes=cell_type,disease \\
      --config.targets.numbers=age --config.targets.group=donor --workdir=RUN

A single column of numbers is a regression. Cells are pooled by their mean, since several targets
have no one best gene to look at.
"""

from ml_collections import ConfigDict

from geneformer_jax.finetuning.config import finetune_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = finetune_config()
    config.head.pooling = "mean"
    config.targets = ConfigDict(
        {
            "name": "targets",
            "classes": "",
            "numbers": "",
            "weights": "",
            "group": "",
            "folds": 1,
            "test_fraction": 0.2,
            "valid_fraction": 0.1,
            "seed": 0,
        }
    )
    return config
