"""Dosage-sensitive against dosage-insensitive transcription factors.

  python -m geneformer_jax.finetune --config=configs/tasks/dosage.py \\
      --checkpoint=MODEL --config.data.store=STORE --config.task.genes=GENES \\
      --config.task.counts=COUNTS --workdir=RUN

GENES: dosage_sensitivity_TFs of Genecorpus-30M's example files: 122 sensitive, 368 insensitive
  factors.
STORE, COUNTS: 10,000 cells with a labelled gene are drawn; the paper's come from a random 50,000 of
  Genecorpus-30M.
Without --config.task.counts the baselines on counts are left out.

Published (Nature 2023, V1-10M, learning rate 5e-5, linear, 500 steps of warmup, weight decay 0.001,
batches of 12 cells, one epoch, 5 folds over genes; AUC, mean and standard deviation over folds):
PUBLISHED below. The original's own rerun in 2024 (4 layers frozen): folds .937 .941 .964 .890 .878,
weighted 0.914 ± 0.032.
"""

from ml_collections import ConfigDict

from geneformer_jax.finetuning.classification.config import task_config
from geneformer_jax.finetuning.config import finetune_config

PUBLISHED = {
    "Geneformer": "AUC 0.91 ± 0.02",
    "SVM, ranks": "AUC 0.75 ± 0.08",
    "random forest, ranks": "AUC 0.72 ± 0.06",
    "logistic regression, ranks": "AUC 0.65 ± 0.05",
    "SVM, counts": "AUC 0.67 ± 0.09",
    "random forest, counts": "AUC 0.67 ± 0.07",
    "logistic regression, counts": "AUC 0.61 ± 0.05",
    "no pretraining, 6 layers": "AUC 0.41 ± 0.05",
    "no pretraining, 4 layers": "AUC 0.41 ± 0.04",
    "no pretraining, 3 layers": "AUC 0.51 ± 0.07",
    "no pretraining, 1 layer": "AUC 0.56 ± 0.07",
}


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = finetune_config()
    config.optimizer.warmup_steps = 500
    config.tuning.freeze_layers = 4
    config.task = task_config(
        "gene",
        name="dosage sensitivity",
        max_cells=10_000,
        untrained_layers=(6, 4, 3, 1),
        published=PUBLISHED,
    )
    return config
