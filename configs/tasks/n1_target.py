"""Targets that NOTCH1 (N1) activates against genes that are none.

  python -m geneformer_jax.finetune --config=configs/tasks/n1_target.py \\
      --checkpoint=MODEL --config.data.store=STORE --config.task.genes=GENES \\
      --config.task.counts=COUNTS --workdir=RUN

GENES: n1_target of Genecorpus-30M's example files: 570 activated, 570 that are no targets.
STORE, COUNTS: about 30,000 endothelial cells in the paper.
Without --config.task.counts the baselines on counts are left out.

Published (Nature 2023, V1-10M, learning rate 5e-5, linear, 500 steps of warmup, weight decay 0.001,
batches of 12 cells, one epoch, 5 folds over genes; AUC, mean and standard deviation over folds):
PUBLISHED below. How many layers the paper froze here is in its Supplementary Table 2, which is not
at hand; 4 is what the original's notebook freezes for dosage sensitivity.
"""

from ml_collections import ConfigDict

from geneformer_jax.finetuning.classification.config import task_config
from geneformer_jax.finetuning.config import finetune_config

PUBLISHED = {
    "Geneformer": "AUC 0.81 ± 0.07",
    "SVM, ranks": "AUC 0.60 ± 0.06",
    "random forest, ranks": "AUC 0.58 ± 0.06",
    "logistic regression, ranks": "AUC 0.60 ± 0.02",
    "SVM, counts": "AUC 0.53 ± 0.05",
    "random forest, counts": "AUC 0.61 ± 0.04",
    "logistic regression, counts": "AUC 0.62 ± 0.03",
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = finetune_config()
    config.optimizer.warmup_steps = 500
    config.tuning.freeze_layers = 4
    config.task = task_config(
        "gene",
        name="N1 target vs non-target",
        max_cells=30_000,
        untrained_layers=(6, 4, 3, 1),
        published=PUBLISHED,
    )
    return config
