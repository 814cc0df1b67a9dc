"""Cell type annotation.

  python -m geneformer_jax.finetune --config=configs/tasks/cell_types.py --checkpoint=MODEL \\
      --config.data.store=STORE --config.task.label=cell_type --config.task.counts=COUNTS \\
      --workdir=RUN

STORE, COUNTS: cells with an obs column of cell types (tokenize carries it with --obs). Where there
are donors, name their column with --config.task.group: cells of one donor resemble each other, and
without it scores need not hold for a new donor.
Without --config.task.counts the baselines on counts are left out.

Published (the original's notebook, V1-10M, learning rate 5e-5, linear, 500 steps of warmup, 10
epochs, no frozen layer, one split of 80 and 20 % of cells, types below 0.5 % left out; accuracy and
macro F1 of the last epoch): spleen .992 .975, kidney .935 .895, immune .950 .909, large intestine
.940 .886, pancreas .947 .905, liver .919 .828. Here there are 5 folds; --config.task.folds=1 makes
one split. Position 0 of a V1 cell is its top-ranked gene, from which the original classifies;
--config.head.pooling=mean takes all genes.
"""

from ml_collections import ConfigDict

from geneformer_jax.finetuning.classification.config import task_config
from geneformer_jax.finetuning.config import finetune_config

PUBLISHED = {"Geneformer": "accuracy .919 to .992, macro F1 .828 to .975 (six tissues)"}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = finetune_config()
    config.optimizer.warmup_steps = 500
    config.epochs = 10
    config.task = task_config(
        "cell",
        name="cell types",
        label="cell_type",
        min_fraction=0.005,
        controls=("shuffled",),
        untrained_layers=(6, 4, 3, 1),
        published=PUBLISHED,
    )
    return config
