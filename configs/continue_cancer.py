"""Continual pretraining: go on from a pretrained checkpoint on cells it was kept away from.

  python -m geneformer_jax.pretrain --config=configs/continue_cancer.py \\
      --config.initial=CHECKPOINT --config.data.store=STORE --workdir=RUN

The original left malignant cells out of its corpus and later continued its 12-layer model on about
14 million cancer cells with matched controls; how, it did not publish. Here: one epoch at a tenth
of the peak learning rate, short warmup. STORE must be tokenised with the checkpoint's vocabulary.
Hardware: 8 H100; other numbers with data.tokens_per_batch changed in proportion.
Hours: an estimate, not a measurement: at most 7 for 14 million cells if every cell had 4,096
tokens (30 % of the stated peak).
Loss: the original's is not published.
"""

from ml_collections import ConfigDict

from geneformer_jax.training.config import pretrain_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = pretrain_config("v2_104m")
    config.data.tokens_per_batch = 8 * 18 * 4096
    config.epochs = 1
    config.optimizer.learning_rate = 2e-5
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 500
    config.model.attention_dropout = 0.0  # the fused attention kernels have none
    config.runtime.precision = "bfloat16"
    config.runtime.remat = "dots"
    config.evaluation.held_out_cells = 10_000
    config.evaluation.every_steps = 2_000
    return config
