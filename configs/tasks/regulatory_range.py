"""Long-range against short-range transcription factors.

  python -m geneformer_jax.finetune --config=configs/tasks/regulatory_range.py \\
      --checkpoint=MODEL --config.data.store=STORE --config.task.genes=GENES \\
      --config.task.counts=COUNTS --workdir=RUN

GENES: tf_regulatory_range of Genecorpus-30M's example files: 46 long-range, 130 short-range
  factors.
STORE, COUNTS: 34,000 to 38,000 cells of iPSC that become cardiomyocytes in the paper.
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
    "Geneformer": "AUC 0.74 ± 0.08",
    "SVM, ranks": "AUC 0.49 ± 0.09",
    "random forest, ranks": "AUC 0.48 ± 0.07",
    "logistic regression, ranks": "AUC 0.59 ± 0.12",
    "SVM, counts": "AUC 0.49 ± 0.09",
    "random forest, counts": "AUC 0.51 ± 0.08",
    "logistic regression, counts": "AUC 0.58 ± 0.13",
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = finetune_config()
    config.optimizer.warmup_steps = 500
    config.tuning.freeze_layers = 4
    config.task = task_config(
        "gene",
        name="regulatory range",
        max_cells=38_000,
        untrained_layers=(6, 4, 3, 1),
        published=PUBLISHED,
    )
    return config
