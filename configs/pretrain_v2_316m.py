"""Geneformer V2-316M, by the recipe of V2-104M: its own was not published.

  python -m geneformer_jax.pretrain --config=configs/pretrain_v2_316m.py \\
      --config.data.store=STORE --workdir=RUN

STORE: cells tokenised with the original's 104M vocabulary (20,275 tokens, --max_length=4096).
Attention dropout is left out, as in pretrain_v2_104m.py.
Hardware: 8 H100; other numbers with data.tokens_per_batch changed in proportion.
Hours: estimates, not measurements: at most 413 for 104 million cells if every cell had 4,096
tokens, 168 if every cell had 2,048 (30 % of the stated peak).
Loss: the original's is not published.
"""

from ml_collections import ConfigDict

from geneformer_jax.training.config import pretrain_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = pretrain_config("v2_316m")
    config.mesh.fsdp = 8  # 1.3 GB of weights and 2.5 GB of optimizer state, spread over 8 devices
    config.data.tokens_per_batch = 8 * 18 * 4096
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_ratio = 0.007
    config.model.attention_dropout = 0.0  # the fused attention kernels have none
    config.runtime.precision = "bfloat16"
    config.runtime.remat = "full"
    config.evaluation.held_out_cells = 10_000
    config.evaluation.every_steps = 10_000
    config.checkpoint.every_steps = 2_000
    return config
