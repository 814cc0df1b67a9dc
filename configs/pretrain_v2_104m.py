"""Geneformer V2-104M, as far as its recipe is known.

  python -m geneformer_jax.pretrain --config=configs/pretrain_v2_104m.py \\
      --config.data.store=STORE --workdir=RUN

STORE: cells tokenised with the original's 104M vocabulary (20,275 tokens, --max_length=4096).
Recipe: by the original's run name: batch 18 a device, 13 devices or nodes, learning rate 2e-4,
cosine, 3 epochs, warmup over 0.7 % of the steps. Weight decay is that of the models before it. Its
attention dropout of 0.1 is left out: the fused kernels have none, and without them the devices
would spend most of their time on attention. To have it, set model.attention_dropout back to 0.1.
Hardware: 8 H100; other numbers with data.tokens_per_batch changed in proportion.
Hours: estimates, not measurements: at most 146 for 104 million cells if every cell had 4,096
tokens, 56 if every cell had 2,048 (30 % of the stated peak).
Loss: the original's is not published.
"""

from ml_collections import ConfigDict

from geneformer_jax.training.config import pretrain_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = pretrain_config("v2_104m")
    config.data.tokens_per_batch = 8 * 18 * 4096  # 18 cells of full length on each of 8 devices
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_ratio = 0.007
    config.model.attention_dropout = 0.0  # the fused attention kernels have none
    config.runtime.precision = "bfloat16"
    config.runtime.remat = "dots"
    config.evaluation.held_out_cells = 10_000
    config.evaluation.every_steps = 10_000
    config.checkpoint.every_steps = 2_000
    return config
